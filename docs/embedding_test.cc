// The code of docs/embedding.md, compiled and run. A region between the lines
// "NAME: begin" and "NAME: end" is a block of the guide, word for word; the
// test code_test compares them.

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/service/run_trapped.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr uint64_t kWasmPage = 65536;

// create: begin
absl::StatusOr<std::unique_ptr<Service>> MakePool() {
  return Service::Create({
      .name = "tenants",
      .layout = LayoutOptions::ForWasm32(64),
  });
}
// create: end

// image: begin
absl::StatusOr<ImageRef> MakeImage(std::string_view rodata) {
  const std::array<DataSegment, 1> segments = {{
      {.offset_bytes = 1024, .bytes = std::as_bytes(std::span(rodata))},
  }};
  return ImageFromSegments({.name = "guest.wasm", .size_bytes = 17 * 65536},
                           segments);
}
// image: end

// serve: begin
absl::Status Serve(Service& service, const ImageRef& image) {
  absl::StatusOr<Memory> memory = service.Acquire(
      {.image = image, .deadline = absl::Now() + absl::Seconds(1)});
  if (!memory.ok()) return memory.status();
  memory->base()[2048] = std::byte{1};  // The guest runs here.
  return memory->Release();             // Says whether the slot is clean.
}
// serve: end

int64_t g_logged_offset = 0;
void LogTrap(int64_t offset_bytes, bool) { g_logged_offset = offset_bytes; }

// trapped: begin
absl::Status RunTenant(Memory& memory, void (*guest)(std::span<std::byte>)) {
  TrapInfo trap;
  absl::Status ended = RunTrapped(
      memory, [&] { guest(memory.span()); }, &trap);
  if (absl::IsOutOfRange(ended)) {
    LogTrap(trap.offset_bytes, trap.access == Access::kWrite);
  }
  return ended;
}
// trapped: end

// longjmp: begin
struct Sandbox {
  sigjmp_buf leave;
  int64_t offset_bytes = 0;
};

// In signal context: remember what is needed, and leave.
TrapAction LeaveSandbox(const TrapInfo& trap) {
  auto* sandbox = static_cast<Sandbox*>(trap.user);
  sandbox->offset_bytes = trap.offset_bytes;
  siglongjmp(sandbox->leave, 1);
}

absl::Status RunGuest(Service& service, void (*guest)(std::byte* memory)) {
  Sandbox sandbox;
  absl::StatusOr<Memory> memory =
      service.Acquire({.size_bytes = kWasmPage,
                       .trap_callback = LeaveSandbox,
                       .trap_user = &sandbox});
  if (!memory.ok()) return memory.status();
  // 0: no mask to save, the callback runs with the guest's own mask.
  if (sigsetjmp(sandbox.leave, 0) != 0) {
    return absl::OutOfRangeError("the guest left its memory");
  }
  guest(memory->base());
  return memory->Release();
}
// longjmp: end

// context: begin
// What a code generator emits: a load, and where to go if it traps.
asm(R"(
  .text
guest_load:
  movzbl (%rdi), %eax
  ret
guest_load_trapped:
  movl $-1, %eax
  ret
)");
extern "C" int guest_load(const std::byte* address);
extern "C" int guest_load_trapped();

TrapAction GoToLandingPad(const TrapInfo& trap) {
  if (trap.program_counter != reinterpret_cast<uintptr_t>(&guest_load)) {
    return TrapAction::kUnhandled;
  }
  auto* context = static_cast<ucontext_t*>(trap.ucontext);
  context->uc_mcontext.gregs[REG_RIP] =
      reinterpret_cast<greg_t>(&guest_load_trapped);
  return TrapAction::kResume;
}
// context: end

// host: begin
// The host's one handler for SIGBUS and SIGSEGV.
void HostHandler(int signal, siginfo_t* info, void* context) {
  if (HandleFault(signal, info, context) == FaultOutcome::kResolved) return;
  // Not ours, or a trap that nobody took: what the host does with a crash.
  struct sigaction default_action = {};
  default_action.sa_handler = SIG_DFL;
  sigaction(signal, &default_action, nullptr);
  raise(signal);  // the touch may have become legal meanwhile
}

void InstallHostHandler() {
  struct sigaction action = {};
  action.sa_sigaction = HostHandler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  FillFaultHandlerMask(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
  sigaction(SIGSEGV, &action, nullptr);
}
// host: end

// thread: begin
void GuestThread(std::byte* memory, absl::Status& status) {
  status = PrepareGuestThread();  // Once, before any guest code.
  if (!status.ok()) return;
  memory[0] = std::byte{1};
}
// thread: end

// systemcall: begin
// read(2) into a memory, where the guest wants it.
absl::StatusOr<size_t> ReadInto(const Memory& memory, int fd, uint64_t offset,
                                uint64_t bytes) {
  absl::Status ready = memory.MakeReady(offset, bytes, Access::kWrite);
  if (!ready.ok()) return ready;
  const ssize_t count = read(fd, memory.base() + offset, bytes);
  if (count < 0) return absl::ErrnoToStatus(errno, "read");
  return static_cast<size_t>(count);
}
// systemcall: end

// grow: begin
// memory.grow: the old size in Wasm pages, or -1.
int64_t MemoryGrow(Memory& memory, uint64_t delta_wasm_pages) {
  if (delta_wasm_pages > memory.max_bytes() / kWasmPage) return -1;
  absl::StatusOr<uint64_t> before = memory.GrowBy(delta_wasm_pages * kWasmPage);
  return before.ok() ? static_cast<int64_t>(*before / kWasmPage) : -1;
}
// grow: end

// snapshot: begin
// Runs the set-up once; every later memory starts behind it.
absl::StatusOr<ImageRef> Prepare(Service& service, const ImageRef& image,
                                 void (*set_up)(std::byte* memory)) {
  absl::StatusOr<Memory> memory = service.Acquire({.image = image});
  if (!memory.ok()) return memory.status();
  set_up(memory->base());
  return memory->Snapshot("guest.wasm, set up");
}
// snapshot: end

// delta: begin
// Keeps what a memory has become, as a file of the pages that differ.
absl::Status SaveDelta(const Memory& memory, const std::string& path) {
  absl::StatusOr<ImageRef> delta = memory.SnapshotDelta("guest.wasm, later");
  if (!delta.ok()) return delta.status();
  return WriteImageFile(**delta, path, {.parent = (*delta)->parent()}).status();
}
// delta: end

// instance: begin
absl::StatusOr<std::vector<Memory>> AcquireTwo(Service& service) {
  const std::array<MemoryOptions, 2> options = {{
      {.size_bytes = kWasmPage},
      {.size_bytes = 2 * kWasmPage},
  }};
  return service.AcquireInstance(options);
}
// instance: end

class EmbeddingTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Service>> service = MakePool();
    if (!service.ok()) GTEST_SKIP() << "userfaultfd: " << service.status();
    service_ = *std::move(service);
    absl::StatusOr<ImageRef> image = MakeImage("a table");
    ASSERT_TRUE(image.ok()) << image.status();
    image_ = *image;
  }

  std::unique_ptr<Service> service_;
  ImageRef image_;
};

TEST_F(EmbeddingTest, Serves) {
  EXPECT_EQ(image_->stored_pages(), 1u);
  EXPECT_TRUE(Serve(*service_, image_).ok());
  EXPECT_EQ(service_->Stats().handovers, 1u);
}

TEST_F(EmbeddingTest, TakesATrapAsAnError) {
  absl::StatusOr<Memory> memory = service_->Acquire({.size_bytes = kWasmPage});
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_TRUE(RunTenant(*memory, [](std::span<std::byte> bytes) {
                bytes[kWasmPage - 1] = std::byte{1};
              }).ok());
  const absl::Status ended = RunTenant(*memory, [](std::span<std::byte> bytes) {
    bytes.data()[kWasmPage + 3] = std::byte{1};
  });
  EXPECT_EQ(ended.code(), absl::StatusCode::kOutOfRange) << ended;
  EXPECT_EQ(g_logged_offset, static_cast<int64_t>(kWasmPage + 3));
}

TEST_F(EmbeddingTest, LeavesByLongjmp) {
  EXPECT_TRUE(RunGuest(*service_, [](std::byte* memory) {
                memory[kWasmPage - 1] = std::byte{1};
              }).ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(
        RunGuest(*service_,
                 [](std::byte* memory) { memory[kWasmPage] = std::byte{1}; })
            .code(),
        absl::StatusCode::kOutOfRange);
  }
  EXPECT_EQ(service_->Stats().traps, 3u);
  EXPECT_EQ(service_->Stats().slots_in_use, 0u);
}

TEST_F(EmbeddingTest, GoesOnAtALandingPad) {
  absl::StatusOr<Memory> memory = service_->Acquire(
      {.size_bytes = kWasmPage, .trap_callback = GoToLandingPad});
  ASSERT_TRUE(memory.ok()) << memory.status();
  memory->base()[7] = std::byte{42};
  EXPECT_EQ(guest_load(memory->base() + 7), 42);
  EXPECT_EQ(guest_load(memory->base() + kWasmPage), -1);
}

TEST(HostTest, OwnsTheHandlers) {
  struct sigaction bus, segv;
  sigaction(SIGBUS, nullptr, &bus);
  sigaction(SIGSEGV, nullptr, &segv);
  InstallHostHandler();
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create({.name = "host",
                       .layout = {.instances = 1,
                                  .max_memory_bytes = kWasmPage,
                                  .guard_after_bytes = kWasmPage},
                       .signals = SignalOwnership::kHost});
  if (!service.ok()) GTEST_SKIP() << "userfaultfd: " << service.status();
  EXPECT_TRUE(RunGuest(**service, [](std::byte* memory) {
                memory[100] = std::byte{1};
              }).ok());
  EXPECT_EQ((*service)->Stats().faults(), 1u);
  EXPECT_EQ(
      RunGuest(**service,
               [](std::byte* memory) { memory[kWasmPage] = std::byte{1}; })
          .code(),
      absl::StatusCode::kOutOfRange);
  sigaction(SIGBUS, &bus, nullptr);
  sigaction(SIGSEGV, &segv, nullptr);
}

TEST_F(EmbeddingTest, RunsAGuestOnAnotherThread) {
  absl::StatusOr<Memory> memory = service_->Acquire({.size_bytes = kWasmPage});
  ASSERT_TRUE(memory.ok()) << memory.status();
  absl::Status status;
  std::thread thread(GuestThread, memory->base(), std::ref(status));
  thread.join();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(memory->base()[0], std::byte{1});
}

TEST_F(EmbeddingTest, ReadsAFileIntoAMemory) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(write(ends[1], "hello", 5), 5);
  absl::StatusOr<Memory> memory =
      service_->Acquire({.image = image_, .size_bytes = image_->size_bytes()});
  ASSERT_TRUE(memory.ok()) << memory.status();
  absl::StatusOr<size_t> count = ReadInto(*memory, ends[0], 4094, 4096);
  ASSERT_TRUE(count.ok()) << count.status();
  EXPECT_EQ(*count, 5u);
  EXPECT_EQ(std::memcmp(memory->base() + 4094, "hello", 5), 0);
  EXPECT_EQ(ReadInto(*memory, ends[0], image_->size_bytes(), 1).status().code(),
            absl::StatusCode::kOutOfRange);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(EmbeddingTest, Grows) {
  absl::StatusOr<Memory> memory = service_->Acquire({.size_bytes = kWasmPage});
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(MemoryGrow(*memory, 2), 1);
  EXPECT_EQ(MemoryGrow(*memory, 0), 3);
  EXPECT_EQ(MemoryGrow(*memory, 65534), -1);
  EXPECT_EQ(MemoryGrow(*memory, ~uint64_t{0}), -1);
  EXPECT_EQ(memory->size_bytes(), 3 * kWasmPage);
}

TEST_F(EmbeddingTest, StartsFromASnapshot) {
  absl::StatusOr<ImageRef> prepared =
      Prepare(*service_, image_,
              [](std::byte* memory) { memory[70000] = std::byte{9}; });
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  absl::StatusOr<Memory> memory = service_->Acquire(
      {.image = *prepared, .size_bytes = (*prepared)->size_bytes()});
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->base()[70000], std::byte{9});
  EXPECT_EQ(memory->base()[1024], std::byte{'a'});
}

TEST_F(EmbeddingTest, SavesWhatHasChanged) {
  absl::StatusOr<Memory> memory =
      service_->Acquire({.image = image_, .size_bytes = image_->size_bytes()});
  ASSERT_TRUE(memory.ok()) << memory.status();
  memory->base()[70000] = std::byte{9};
  const std::string path = testing::TempDir() + "/later.ftimg";
  ASSERT_EQ(SaveDelta(*memory, path), absl::OkStatus());
  absl::StatusOr<ImageRef> later = OpenImageFile(path, {.parent = image_});
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_EQ((*later)->PageBytes(PageIndex(17))[70000 % 4096], std::byte{9});
}

TEST_F(EmbeddingTest, AChildOfForkMakesAPoolOfItsOwnFromTheSameImage) {
  absl::StatusOr<Memory> memory =
      service_->Acquire({.image = image_, .size_bytes = image_->size_bytes()});
  ASSERT_TRUE(memory.ok()) << memory.status();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (Serve(*service_, image_).code() !=
        absl::StatusCode::kFailedPrecondition) {
      _exit(1);
    }
    absl::StatusOr<std::unique_ptr<Service>> own = MakePool();
    _exit(own.ok() && Serve(**own, image_).ok() ? 0 : 2);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(memory->base()[1024], std::byte{'a'});
}

TEST(InstanceTest, HasTwoMemories) {
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create({.name = "twos",
                       .layout = {.instances = 2,
                                  .memories_per_instance = 2,
                                  .max_memory_bytes = 2 * kWasmPage,
                                  .guard_after_bytes = kWasmPage}});
  if (!service.ok()) GTEST_SKIP() << "userfaultfd: " << service.status();
  absl::StatusOr<std::vector<Memory>> memories = AcquireTwo(**service);
  ASSERT_TRUE(memories.ok()) << memories.status();
  EXPECT_EQ((*memories)[0].size_bytes(), kWasmPage);
  EXPECT_EQ((*memories)[1].size_bytes(), 2 * kWasmPage);
}

}  // namespace
}  // namespace firsttouch
