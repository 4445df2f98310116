// Forks in mid-life. The child has no memories: it must be told so, or die, and
// never read zeroes where the parent has missing pages; the parent must not
// notice.

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_pieces.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/tests/hostile/program.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::hostile {
namespace {

// Runs `body` in a forked child and returns its wait status. A child that
// skips, because the kernel lacks what it asks for, skips the whole.
int InChild(const std::function<void()>& body) {
  std::fflush(stdout);
  const pid_t child = fork();
  HOSTILE_CHECK(child >= 0);
  if (child == 0) {
    alarm(20);
    body();
    _exit(0);
  }
  int status = 0;
  HOSTILE_CHECK_EQ(waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == kSkipExitCode) {
    _exit(kSkipExitCode);
  }
  return status;
}

void ExpectFailedPrecondition(const absl::Status& status) {
  if (status.code() != absl::StatusCode::kFailedPrecondition) {
    Fail(__FILE__, __LINE__,
         absl::StrCat("not FailedPrecondition: ", status.ToString()));
  }
}

class SourceOfZeroes : public PageSource {
 public:
  absl::Status Fetch(PageIndex, std::span<std::byte>) override {
    return absl::OkStatus();
  }
};

}  // namespace

void Forks(const Setting& setting) {
  constexpr uint64_t kPages = 32;
  ServiceOptions options = PoolOptions(setting);
  options.layout.instances = 2;
  std::unique_ptr<Service> service = MakeService(options);
  const ImageRef image = MakeImage(kPages, 1);
  Memory memory = Acquire(*service, {.image = image,
                                     .size_bytes = kPages * kPageBytes,
                                     .trap_callback = CatchTrap});
  std::byte* const base = memory.base();
  Poke(base, std::byte{42});

  // Touched, missing, outside: all the same to the child.
  for (const uint64_t page : {uint64_t{0}, kPages - 1, kPages}) {
    const int status = InChild([&] { Peek(base + page * kPageBytes); });
    HOSTILE_CHECK(WIFSIGNALED(status));
    HOSTILE_CHECK_EQ(WTERMSIG(status), SIGSEGV);
  }
  const int written = InChild([&] { Poke(base + kPageBytes, std::byte{1}); });
  HOSTILE_CHECK(WIFSIGNALED(written) && WTERMSIG(written) == SIGSEGV);

  // Every call says that it is of no use here.
  const int asked = InChild([&] {
    ExpectFailedPrecondition(
        service->Acquire({.size_bytes = kPageBytes}).status());
    ExpectFailedPrecondition(memory.Grow((kPages + 1) * kPageBytes));
    ExpectFailedPrecondition(memory.MakeReady(0, 1, Access::kRead));
    ExpectFailedPrecondition(memory.Snapshot("snapshot").status());
    ExpectFailedPrecondition(memory.Reset());
    ExpectFailedPrecondition(service->Trim().status());
    const MemoryPages pages = memory.CountPages();
    HOSTILE_CHECK_EQ(pages.touched + pages.writable + pages.changed, 0u);
    HOSTILE_CHECK_EQ(service->Stats().slots, 2u);
    HOSTILE_CHECK(!service->Describe().empty());
    // What the child has inherited of handles can be dropped.
    memory = Memory();
    service = nullptr;
  });
  HOSTILE_CHECK(WIFEXITED(asked) && WEXITSTATUS(asked) == 0);

  // The parent goes on as before: what was written, what is missing, bounds.
  HOSTILE_CHECK(Peek(base) == std::byte{42});
  HOSTILE_CHECK(Peek(base + 1) == PatternByte(1, 0));
  for (uint64_t page = 1; page < kPages; ++page) {
    HOSTILE_CHECK(Peek(base + page * kPageBytes) == PatternByte(1, page));
    Poke(base + page * kPageBytes, std::byte{43});
  }
  HOSTILE_CHECK(Traps([&] { Peek(base + kPages * kPageBytes); }));
  HOSTILE_CHECK_OK(memory.Grow((kPages + 1) * kPageBytes));
  HOSTILE_CHECK(Peek(base + kPages * kPageBytes) == std::byte{0});
  for (uint64_t page = 0; page < kPages; ++page) {
    HOSTILE_CHECK(image->PageBytes(PageIndex(page))[0] == PatternByte(1, page));
  }
  HOSTILE_CHECK_OK(memory.Release());
  Memory next =
      Acquire(*service, {.image = image, .size_bytes = kPages * kPageBytes});
  for (uint64_t page = 0; page < kPages; ++page) {
    HOSTILE_CHECK(Peek(next.base() + page * kPageBytes) ==
                  PatternByte(1, page));
  }
}

// The child's death as a judge sees it: by SIGSEGV, with no word of ours that
// takes the touch for one of a memory.
void ForkedChildTouches(const Setting& setting) {
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  Memory memory = Acquire(
      *service, {.image = MakeImage(8, 1), .size_bytes = 8 * kPageBytes});
  const pid_t parent = getpid();
  const pid_t child = fork();
  HOSTILE_CHECK(child >= 0);
  if (child == 0) {
    std::printf("child of %s read %d\n", getppid() == parent ? "us" : "init",
                static_cast<int>(Peek(memory.base() + kPageBytes)));
    std::fflush(stdout);
    _exit(0);
  }
  int status = 0;
  HOSTILE_CHECK_EQ(waitpid(child, &status, 0), child);
  if (WIFSIGNALED(status)) std::printf("child: signal %d\n", WTERMSIG(status));
}

// A worker process of a host that has a pool already makes one for itself.
// Where the parent's lies, the child has free address space.
void ForkedChildMakesPool(const Setting& setting) {
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  const ImageRef image = MakeImage(8, 1);
  const MemoryOptions wanted = {.image = image,
                                .size_bytes = 16 * kPageBytes,
                                .trap_callback = CatchTrap};
  Memory memory = Acquire(*service, wanted);
  Poke(memory.base(), std::byte{42});
  // One whose source's threads the child does not have. (Where there is no
  // userfaultfd it is a built image.)
  absl::StatusOr<ImageRef> sourced =
      ImageFromSource({.name = "sourced", .size_bytes = kPageBytes},
                      std::make_shared<SourceOfZeroes>());
  HOSTILE_CHECK_OK(sourced.status());
  const int status = InChild([&] {
    std::unique_ptr<Service> mine = MakeService(PoolOptions(setting));
    const absl::Status nobody_answers =
        mine->Acquire({.image = *sourced, .size_bytes = kPageBytes}).status();
    if ((*sourced)->has_source()) ExpectFailedPrecondition(nobody_answers);
    sourced = ImageRef();
    Memory here = Acquire(*mine, wanted);
    HOSTILE_CHECK(Peek(here.base() + kPageBytes) == PatternByte(1, 1));
    Poke(here.base(), std::byte{1});
    TrapInfo trap;
    HOSTILE_CHECK(Traps([&] { Peek(here.base() + 17 * kPageBytes); }, &trap));
    HOSTILE_CHECK_EQ(trap.pool_id, mine->pool_id());
    HOSTILE_CHECK_OK(here.Release());
    // In the order in which a worker would let go of them.
    memory = Memory();
    service = nullptr;
    Memory again = Acquire(*mine, wanted);
    HOSTILE_CHECK(Peek(again.base()) == PatternByte(1, 0));
    HOSTILE_CHECK_OK(again.Release());
  });
  HOSTILE_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  HOSTILE_CHECK(Peek(memory.base()) == std::byte{42});
  HOSTILE_CHECK(Peek(memory.base() + kPageBytes) == PatternByte(1, 1));
  HOSTILE_CHECK(Traps([&] { Peek(memory.base() + 16 * kPageBytes); }));
}

// A daemon: the image that its parent has used is all that it inherits, and the
// parent ends. The pages come from where the image has them, which is not the
// parent's memory.
void ForkedChildOutlivesParent(const Setting& setting) {
  constexpr uint64_t kPages = 64;
  int told[2];
  HOSTILE_CHECK_EQ(pipe(told), 0);
  const int status = InChild([&] {
    const ImageRef parent_image = MakeImage(kPages, 1);
    const std::vector<std::byte> other(kPageBytes, std::byte{99});
    const absl::StatusOr<ImageRef> delta =
        DeltaOf({.name = "delta", .size_bytes = kPages * kPageBytes},
                parent_image, {{{PageIndex(7), other.data()}}});
    HOSTILE_CHECK_OK(delta.status());
    const MemoryOptions wanted = {.image = *delta,
                                  .size_bytes = kPages * kPageBytes};
    std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
    Memory memory = Acquire(*service, wanted);
    HOSTILE_CHECK(Peek(memory.base()) == PatternByte(1, 0));
    int alive[2];
    HOSTILE_CHECK_EQ(pipe(alive), 0);
    const pid_t daemon = fork();
    HOSTILE_CHECK(daemon >= 0);
    if (daemon != 0) return;
    alarm(20);
    close(alive[1]);
    std::byte none;
    // Ends when the parent has: its memory is gone before its descriptors.
    HOSTILE_CHECK_EQ(read(alive[0], &none, 1), 0);
    memory = Memory();
    service = MakeService(PoolOptions(setting));
    for (int tenant = 0; tenant < 2; ++tenant) {
      Memory here = Acquire(*service, wanted);
      for (uint64_t page = 0; page < kPages; ++page) {
        HOSTILE_CHECK(Peek(here.base() + page * kPageBytes) ==
                      (page == 7 ? std::byte{99} : PatternByte(1, page)));
        Poke(here.base() + page * kPageBytes, std::byte{1});
      }
      HOSTILE_CHECK_OK(here.Release());
    }
    HOSTILE_CHECK_EQ(write(told[1], "x", 1), 1);
  });
  HOSTILE_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  close(told[1]);
  std::byte done;
  HOSTILE_CHECK_EQ(read(told[0], &done, 1), 1);
}

}  // namespace firsttouch::hostile
