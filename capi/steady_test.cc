// The steady cycle through C: once a pool knows what its guests write, acquire,
// write and release make no system call, raise no signal and allocate nothing.
// No time is looked at.

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/uffd/test_util.h"
#include "gtest/gtest.h"

namespace {

std::atomic<uint64_t> g_allocations{0};

}  // namespace

// The C library's own, counted.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* old, size_t bytes);

void* malloc(size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(old, bytes);
}
}

namespace firsttouch::capi {
namespace {

constexpr uint64_t kPage = FT_PAGE_BYTES;
constexpr uint64_t kImagePages = 64;
constexpr uint64_t kMemoryPages = 256;

// Until what a pool learns of an image is settled.
constexpr int kWarmup = 150;
constexpr int kCycles = 200;

// From now on each system call but exit_group(2) and write(2) ends this process
// by SIGSYS, the return from a signal handler included.
bool ForbidSystemCalls() {
  const std::array<sock_filter, 5> filter = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog program = {
      .len = filter.size(), .filter = const_cast<sock_filter*>(filter.data())};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// A pool of one slot, and an image. What goes wrong ends the process, a child,
// with a line.
class Cycles {
 public:
  Cycles() {
    ft_error error = FT_ERROR_INIT;
    ft_layout_options layout = FT_LAYOUT_OPTIONS_INIT;
    layout.instances = 1;
    layout.max_memory_bytes = kMemoryPages * kPage;
    layout.guard_after_bytes = kMemoryPages * kPage;
    ft_pool_options options = FT_POOL_OPTIONS_INIT;
    options.layout = &layout;
    OrEnd(ft_pool_create(&options, &pool_, &error), error);
    const std::vector<char> bytes(kImagePages * kPage, 'i');
    ft_image_options image = FT_IMAGE_OPTIONS_INIT;
    image.size_bytes = bytes.size();
    OrEnd(ft_image_from_bytes(&image, bytes.data(), bytes.size(), &image_,
                              &error),
          error);
  }

  bool HasUserfaultfd() const {
    ft_pool_info info = FT_POOL_INFO_INIT;
    return ft_pool_get_info(pool_, &info, nullptr) == FT_OK &&
           info.supply == FT_SUPPLY_USERFAULTFD;
  }

  void Trim() const { ft_pool_trim(pool_, nullptr, nullptr); }

  // Acquire, write to some pages in the image and some behind it, release.
  void Run() const {
    ft_error error = FT_ERROR_INIT;
    ft_memory_options options = FT_MEMORY_OPTIONS_INIT;
    options.image = image_;
    options.size_bytes = kMemoryPages * kPage;
    ft_memory memory = {};
    void* base = nullptr;
    OrEnd(ft_memory_acquire(pool_, &options, &memory, &base, &error), error);
    auto* const bytes = static_cast<volatile char*>(base);
    for (const uint64_t page : {1, 5, 63, 64, 200}) {
      if (bytes[page * kPage] != (page < kImagePages ? 'i' : '\0')) {
        End("a memory that is not clean");
      }
      bytes[page * kPage] = 'w';
    }
    OrEnd(ft_memory_release(memory, &error), error);
  }

 private:
  static void End(const char* why) {
    const std::string line = std::string(why) + "\n";
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) _exit(3);
    _exit(2);
  }
  static void OrEnd(ft_status status, const ft_error& error) {
    if (status != FT_OK) End(error.message);
  }

  ft_pool pool_ = {};
  ft_image image_ = {};
};

// Runs cycles in a child that may make no system call from some time on, then
// `then`, and says how that ended: its text, or the signal's.
template <typename Body>
ChildResult InQuiet(Body then) {
  return RunInChild([&]() -> std::string {
    const Cycles cycles;
    if (!cycles.HasUserfaultfd()) return "no userfaultfd";
    for (int i = 0; i < kWarmup; ++i) cycles.Run();
    const uint64_t before = g_allocations;
    if (!ForbidSystemCalls()) return "no seccomp";
    then(cycles);
    const bool none = g_allocations == before;
    const char* const text = none ? "no allocation" : "allocations";
    if (write(STDOUT_FILENO, text, strlen(text)) < 0) _exit(3);
    _exit(0);
  });
}

#define SKIP_WHERE_REFUSED(result)                          \
  if ((result).output == "no userfaultfd" ||                \
      (result).output == "no seccomp") {                    \
    GTEST_SKIP() << "this machine has " << (result).output; \
  }

TEST(SteadyCycleInC, MakesNoSystemCallAndAllocatesNothing) {
  const ChildResult result = InQuiet([](const Cycles& cycles) {
    for (int i = 0; i < kCycles; ++i) cycles.Run();
  });
  SKIP_WHERE_REFUSED(result);
  EXPECT_EQ(result.output, "no allocation");
  EXPECT_EQ(result.exit_code, 0);
}

// What counts sees what it is there for.

TEST(SteadyCycleInC, IsEndedByASystemCall) {
  const ChildResult result = InQuiet([](const Cycles& cycles) {
    cycles.Trim();
    cycles.Run();
  });
  SKIP_WHERE_REFUSED(result);
  EXPECT_EQ(result.signal, SIGSYS);
  EXPECT_EQ(result.output, "");
}

TEST(SteadyCycleInC, IsSeenToAllocate) {
  const ChildResult result = InQuiet([](const Cycles&) {
    void* const volatile bytes = malloc(10);
    free(bytes);
  });
  SKIP_WHERE_REFUSED(result);
  EXPECT_EQ(result.output, "allocations");
}

}  // namespace
}  // namespace firsttouch::capi
