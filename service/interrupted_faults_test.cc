// A signal of the host interrupts guests while their fault is resolved, and its
// handler leaves by siglongjmp: at each call of the kernel, and at any
// instruction of the fault path. The next lease must see its initial bytes, its
// bounds must hold, and no thread may wait for what the interrupted guest was
// doing.
//
// Every single instruction, which takes minutes:
//   bazel test //service:interrupted_faults_test
//       --test_env=FIRSTTOUCH_INTERRUPTED_STRIDE=1
// Other instructions: --test_env=FIRSTTOUCH_INTERRUPTED_SEED=7

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/synchronization/notification.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/signal_mask.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

constexpr uint64_t kImagePages = 8;
constexpr uint64_t kHole = 3;
constexpr uint64_t kPages = 24;
constexpr uint64_t kNextPages = 9;
constexpr uint64_t kMaxPages = 32;

// What a guest does before it is interrupted, and what it does then.
struct Deed {
  const char* name;
  void (*before)(const Memory& memory);
  void (*interrupted)(const Memory& memory);
};

void Nothing(const Memory&) {}

constexpr Deed kDeeds[] = {
    {"ReadsAnImagePage", Nothing, [](const Memory& m) { Load(m, 1); }},
    {"WritesAnImagePage", Nothing, [](const Memory& m) { Store(m, 1, 9); }},
    {"WritesACleanPage", [](const Memory& m) { Load(m, 1); },
     [](const Memory& m) { Store(m, 2, 9); }},
    {"ReadsAHole", Nothing,
     [](const Memory& m) { Load(m, kHole * kPageBytes); }},
    {"ReadsAZeroPage", Nothing,
     [](const Memory& m) { Load(m, 20 * kPageBytes); }},
    {"WritesAZeroPage", Nothing,
     [](const Memory& m) { Store(m, 20 * kPageBytes, 9); }},
};

constexpr Way kWays[] = {
    {Backing::kShared, Resolve::kInThread},
    {Backing::kCopied, Resolve::kInThread},
    {Backing::kShared, Resolve::kInThread, Tracking::kAsync},
};

sigjmp_buf g_leave;
// Instructions of the fault path until the signal comes; 0: no signal comes.
volatile uint64_t g_steps = 0;
volatile uint64_t g_steps_left = 0;

void LeaveGuest(int) { siglongjmp(g_leave, 1); }

void Interrupt() {
  syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1);
}

// x86's trap flag: SIGTRAP after every instruction.
constexpr greg_t kTrapFlag = 0x100;

[[gnu::noinline]] void BeginStepping() {
  asm volatile("pushfq; orq $0x100, (%%rsp); popfq" : : : "memory", "cc");
}
[[gnu::noinline]] void EndStepping() {
  asm volatile("pushfq; andq $~0x100, (%%rsp); popfq" : : : "memory", "cc");
}

void OnStep(int, siginfo_t*, void* context) {
  if (g_steps_left == 0) return;
  g_steps_left = g_steps_left - 1;
  if (g_steps_left != 0) return;
  static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL] &= ~kTrapFlag;
  Interrupt();
}

void OnFault(int signal, siginfo_t* info, void* context) {
  g_steps_left = g_steps;
  if (g_steps != 0) BeginStepping();
  const FaultOutcome outcome = HandleFault(signal, info, context);
  if (g_steps != 0) EndStepping();
  if (outcome != FaultOutcome::kResolved) abort();
}

// Installs an action for the lifetime of the object.
class WithAction {
 public:
  WithAction(int signal, void (*handler)(int, siginfo_t*, void*),
             bool full_mask)
      : signal_(signal) {
    struct sigaction action = {};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    if (full_mask) FillFaultHandlerMask(&action.sa_mask);
    sigaction(signal, &action, &before_);
  }
  ~WithAction() { sigaction(signal_, &before_, nullptr); }
  WithAction(const WithAction&) = delete;
  WithAction& operator=(const WithAction&) = delete;

 private:
  const int signal_;
  struct sigaction before_;
};

// Runs the deed, and returns whether the guest was left by a jump.
bool IsLeft(const Deed& deed, const Memory& memory) {
  if (sigsetjmp(g_leave, 1) != 0) return true;
  deed.interrupted(memory);
  return false;
}

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* const value = getenv(name);
  return value == nullptr ? otherwise : strtoull(value, nullptr, 10);
}

class PatternSource : public PageSource {
 public:
  explicit PatternSource(const ImageRef& image) : image_(image) {}
  absl::Status Fetch(PageIndex first, std::span<std::byte> bytes) override {
    return image_->Read(first.offset_bytes(), bytes);
  }

 private:
  const ImageRef image_;
};

class InterruptedTest : public testing::TestWithParam<std::tuple<Way, Deed>> {
 protected:
  void SetUp() override {
    struct sigaction leave = {};
    leave.sa_handler = LeaveGuest;
    leave.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR1, &leave, nullptr);
    g_steps = 0;
  }

  void MakeService(SignalOwnership signals) {
    const Way& way = std::get<0>(GetParam());
    if (const std::string missing = MissingFor(way); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService({.name = "interrupted",
                       .layout = {.instances = 1,
                                  .max_memory_bytes = kMaxPages * kPageBytes,
                                  .guard_after_bytes = 65536},
                       .supply = Asking(way),
                       .signals = signals,
                       .trap_callback = JumpOutOfTrap},
                      kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  const Deed& deed() const { return std::get<1>(GetParam()); }

  // Runs a lease that may be left half-way, and then the next one.
  bool RunOnce(const ImageRef& image, uint64_t steps = 0) {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image, .size_bytes = kPages * kPageBytes});
    EXPECT_TRUE(memory.ok()) << memory.status();
    if (!memory.ok()) return false;
    deed().before(*memory);
    g_steps = steps;
    const bool left = IsLeft(deed(), *memory);
    g_steps = 0;
    EXPECT_EQ(memory->Release(), absl::OkStatus());

    constexpr uint64_t kBytes = kNextPages * kPageBytes;
    absl::StatusOr<Memory> next =
        service_->Acquire({.image = image, .size_bytes = kBytes});
    EXPECT_TRUE(next.ok()) << next.status();
    if (!next.ok()) return false;
    EXPECT_EQ(FirstDifference(*next, InitialBytes(image, kBytes)),
              std::nullopt);
    for (uint64_t page = kNextPages; page < kMaxPages; ++page) {
      EXPECT_TRUE(TrapOf([&] { Load(*next, page * kPageBytes); }).has_value())
          << "page " << page << " is out of bounds and can be read";
    }
    return left;
  }

  // Leaves at one instruction after the other, skipping some of them.
  void Step(bool full_mask, absl::FunctionRef<ImageRef()> image) {
    const WithAction bus(SIGBUS, OnFault, full_mask);
    const WithAction segv(SIGSEGV, OnFault, full_mask);
    const WithAction trap(SIGTRAP, OnStep, false);
    MakeService(SignalOwnership::kHost);
    if (IsSkipped()) return;
    std::mt19937_64 random(FromEnvironment("FIRSTTOUCH_INTERRUPTED_SEED", 1));
    const uint64_t stride =
        FromEnvironment("FIRSTTOUCH_INTERRUPTED_STRIDE", kStride);
    RunOnce(image());
    uint64_t times = 0;
    for (uint64_t steps = 1 + random() % stride; !HasFailure();
         steps += 1 + random() % (2 * stride - 1)) {
      SCOPED_TRACE(testing::Message() << "left after instruction " << steps);
      // The deed ends before this many instructions, or takes no fault.
      if (!RunOnce(image(), steps)) break;
      ++times;
    }
    RecordProperty("times_left", static_cast<int>(times));
    EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
  }

  static constexpr uint64_t kStride = 300;

  FakeKernel kernel_;
  std::unique_ptr<Service> service_;
};

std::string CaseName(
    const testing::TestParamInfo<std::tuple<Way, Deed>>& info) {
  return WayName({std::get<0>(info.param), info.index}) +
         std::get<1>(info.param).name;
}

INSTANTIATE_TEST_SUITE_P(Ways, InterruptedTest,
                         testing::Combine(testing::ValuesIn(kWays),
                                          testing::ValuesIn(kDeeds)),
                         CaseName);

TEST_P(InterruptedTest, AtAnyCallOfTheKernel) {
  MakeService(SignalOwnership::kInstall);
  if (IsSkipped()) return;
  RunOnce(PatternImage("image", kImagePages, {kHole}));
  for (const Op op :
       {Op::kCopy, Op::kZeroPage, Op::kContinue, Op::kWriteProtect}) {
    for (const bool after : {false, true}) {
      // The signal is sent to the thread that takes a fault, not to one that
      // prepares a lease.
      const pid_t guest = gettid();
      volatile bool came_back = true;
      volatile bool sent = false;
      const auto hook = [&](const FakeKernel::Call&) {
        if (gettid() != guest || g_steps == 0) return;
        sent = true;
        came_back = false;
        Interrupt();
        came_back = true;
      };
      if (after) {
        kernel_.HookAfter(op, hook);
      } else {
        kernel_.Hook(op, hook);
      }
      const bool left = RunOnce(PatternImage("image", kImagePages, {kHole}), 1);
      EXPECT_EQ(left, sent);
      EXPECT_TRUE(came_back) << "left in the middle of a fault";
      kernel_.Hook(op, nullptr);
      kernel_.HookAfter(op, nullptr);
    }
  }
}

// The memory's safety does not depend on the mask: see signals.h.
TEST_P(InterruptedTest, AtAnyInstructionWithoutTheMask) {
  // Each image is new, so that nothing is known of it.
  Step(/*full_mask=*/false,
       [] { return PatternImage("image", kImagePages, {kHole}); });
}

class InterruptedSourceTest : public InterruptedTest {};

INSTANTIATE_TEST_SUITE_P(Ways, InterruptedSourceTest,
                         testing::Combine(testing::Values(kWays[0], kWays[1]),
                                          testing::Values(kDeeds[0],
                                                          kDeeds[1])),
                         CaseName);

TEST_P(InterruptedSourceTest, NobodyWaitsForEverForThePageThatWasAskedFor) {
  const ImageRef image = PatternImage("image", kImagePages, {kHole});
  // Each image is new, so that none of its pages is present.
  Step(/*full_mask=*/true, [&] {
    absl::StatusOr<ImageRef> sourced = ImageFromSource(
        {.name = "sourced", .size_bytes = image->size_bytes()},
        std::make_shared<PatternSource>(image), {.chunk_pages = 2});
    EXPECT_TRUE(sourced.ok()) << sourced.status();
    return sourced.ok() ? *sourced : nullptr;
  });
}

// A guest on a thread of its own, which leaves when it is told to.
class LeavingGuest {
 public:
  explicit LeavingGuest(std::function<void()> body)
      : thread_([this, body = std::move(body)] {
          struct sigaction leave = {};
          leave.sa_handler = LeaveGuest;
          leave.sa_flags = SA_ONSTACK;
          sigaction(SIGUSR1, &leave, nullptr);
          EXPECT_TRUE(EnsureAlternateStack().ok());
          if (sigsetjmp(g_leave, 1) == 0) {
            body();
          } else {
            was_left_ = true;
          }
        }) {}

  // Returns once the guest has left; never returns where it cannot.
  bool MakeLeave() {
    pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
    return was_left_;
  }

 private:
  bool was_left_ = false;
  std::thread thread_;
};

TEST(InterruptedWaitTest, ForASourceMayBeLeftAndOthersGetThePage) {
  class SlowSource : public PageSource {
   public:
    absl::Status Fetch(PageIndex, std::span<std::byte> bytes) override {
      asked.Notify();
      answer.WaitForNotification();
      memset(bytes.data(), 7, bytes.size());
      return absl::OkStatus();
    }
    absl::Notification asked;
    absl::Notification answer;
  };
  for (const Backing backing : {Backing::kShared, Backing::kCopied}) {
    const Way way{backing, Resolve::kInThread};
    if (const std::string missing = MissingFor(way); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create({.name = "waiting",
                         .layout = {.instances = 1, .max_memory_bytes = 65536},
                         .supply = Asking(way)});
    ASSERT_TRUE(service.ok()) << service.status();
    const auto source = std::make_shared<SlowSource>();
    const ImageRef image =
        *ImageFromSource({.name = "slow", .size_bytes = 65536}, source);
    Memory memory = *(*service)->Acquire({.image = image, .size_bytes = 65536});
    LeavingGuest guest([&] { Load(memory, 5 * kPageBytes); });
    source->asked.WaitForNotification();
    EXPECT_TRUE(guest.MakeLeave());
    EXPECT_EQ(memory.Release(), absl::OkStatus());
    source->answer.Notify();
    memory = *(*service)->Acquire({.image = image, .size_bytes = 65536});
    EXPECT_EQ(Load(memory, 5 * kPageBytes), 7);
  }
}

TEST(InterruptedWaitTest, ForTheEndOfASnapshotMayBeLeft) {
  FakeKernel kernel;
  absl::Notification frozen;
  absl::Notification thaw;
  absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService({.name = "waiting",
                     .layout = {.instances = 1, .max_memory_bytes = 65536},
                     .supply = AnySupply{{.tracking = Tracking::kSignal}}},
                    kernel);
  ASSERT_TRUE(service.ok()) << service.status();
  Memory memory = *(*service)->Acquire({.size_bytes = 65536});
  Store(memory, 0, 1);
  // Do not fail the call that makes the room for the copies accessible.
  const auto base = reinterpret_cast<uintptr_t>(memory.base());
  kernel.HookAfter(Op::kMprotect, [&](const FakeKernel::Call& call) {
    if (call.start != base || frozen.HasBeenNotified()) return;
    frozen.Notify();
    thaw.WaitForNotification();
  });
  std::thread snapshot(
      [&] { EXPECT_TRUE(memory.Snapshot("frozen").status().ok()); });
  frozen.WaitForNotification();
  std::atomic<bool> writing{false};
  LeavingGuest guest([&] {
    writing = true;
    Store(memory, 0, 2);
  });
  // The guest leaves whether it waits already or is about to.
  for (int i = 0; i < 10'000 || !writing; ++i) sched_yield();
  EXPECT_TRUE(guest.MakeLeave());
  thaw.Notify();
  snapshot.join();
  EXPECT_EQ(Load(memory, 0), 1);
}

TEST(InterruptedWaitTest, OurHandlerBlocksWhatAHostsIsToBlock) {
  ASSERT_EQ(InstallFaultHandler(), absl::OkStatus());
  sigset_t wanted;
  FillFaultHandlerMask(&wanted);
  for (const int signal : {SIGBUS, SIGSEGV}) {
    struct sigaction ours;
    sigaction(signal, nullptr, &ours);
    // The kernel itself removes these two.
    EXPECT_EQ(
        SignalSetOf(ours.sa_mask) | SetOfSignal(SIGKILL) | SetOfSignal(SIGSTOP),
        SignalSetOf(wanted));
  }
  EXPECT_EQ(UninstallFaultHandler(), absl::OkStatus());
  for (int signal = 1; signal <= 64; ++signal) {
    const bool raised_by_instructions = signal == SIGSEGV || signal == SIGBUS ||
                                        signal == SIGILL || signal == SIGFPE ||
                                        signal == SIGTRAP ||
                                        signal == SIGABRT || signal == SIGSYS;
    EXPECT_EQ((SignalSetOf(wanted) & SetOfSignal(signal)) == 0,
              raised_by_instructions)
        << signal;
  }
}

}  // namespace
}  // namespace firsttouch
