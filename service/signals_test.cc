#include "firsttouch/service/signals.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "firsttouch/service/service.h"
#include "firsttouch/service/service_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSize = 4 * kPageBytes;

std::unique_ptr<Service> MakeService(SignalOwnership signals,
                                     TrapCallback callback = JumpOutOfTrap) {
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create({.name = "signals",
                       .layout = {.instances = 2,
                                  .max_memory_bytes = 16 * kPageBytes,
                                  .guard_after_bytes = 65536},
                       .signals = signals,
                       .trap_callback = callback});
  EXPECT_TRUE(service.ok()) << service.status();
  return service.ok() ? *std::move(service) : nullptr;
}

// What the host's own handler saw.
struct HostSaw {
  sigjmp_buf jump;
  int calls = 0;
  int signal = 0;
  void* address = nullptr;
  int code = 0;
  bool usr1_blocked = false;
  bool usr2_blocked = false;
  bool itself_blocked = false;
  FaultOutcome outcome = FaultOutcome::kResolved;
};
HostSaw g_host;

void HostHandler(int signal, siginfo_t* info, void*) {
  ++g_host.calls;
  g_host.signal = signal;
  g_host.address = info->si_addr;
  g_host.code = info->si_code;
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  g_host.usr1_blocked = sigismember(&mask, SIGUSR1) == 1;
  g_host.usr2_blocked = sigismember(&mask, SIGUSR2) == 1;
  g_host.itself_blocked = sigismember(&mask, signal) == 1;
  siglongjmp(g_host.jump, 1);
}

void HostHandlerThatAsksUs(int signal, siginfo_t* info, void* context) {
  g_host.outcome = HandleFault(signal, info, context);
  if (g_host.outcome == FaultOutcome::kResolved) return;
  HostHandler(signal, info, context);
}

// Installs actions for SIGBUS and SIGSEGV and puts the old ones back.
class WithActions {
 public:
  explicit WithActions(void (*handler)(int, siginfo_t*, void*),
                       int flags = SA_SIGINFO | SA_ONSTACK) {
    struct sigaction action = {};
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGUSR1);
    sigaction(SIGBUS, &action, &old_bus_);
    sigaction(SIGSEGV, &action, &old_segv_);
    g_host = HostSaw();
  }
  ~WithActions() {
    sigaction(SIGBUS, &old_bus_, nullptr);
    sigaction(SIGSEGV, &old_segv_, nullptr);
  }

 private:
  struct sigaction old_bus_;
  struct sigaction old_segv_;
};

// A page that nobody may touch, not ours.
volatile char* ForbiddenPage() {
  static void* const page =
      mmap(nullptr, kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return static_cast<volatile char*>(page);
}

void TouchForbiddenPage() {
  if (sigsetjmp(g_host.jump, 1) == 0) {
    ForbiddenPage()[17] = 1;
    FAIL() << "touching a PROT_NONE page went well";
  }
}

TEST(SignalsTest, AForeignFaultReachesThePreviousHandlerAsBefore) {
  const WithActions host(HostHandler);
  const auto service = MakeService(SignalOwnership::kInstall);
  ASSERT_NE(service, nullptr);
  TouchForbiddenPage();
  EXPECT_EQ(g_host.calls, 1);
  EXPECT_EQ(g_host.signal, SIGSEGV);
  EXPECT_EQ(g_host.code, SEGV_ACCERR);
  EXPECT_EQ(g_host.address, const_cast<char*>(ForbiddenPage()) + 17);
  // The mask that the host asked for, and not ours, which blocks nearly all.
  EXPECT_TRUE(g_host.usr1_blocked);
  EXPECT_FALSE(g_host.usr2_blocked);
  EXPECT_TRUE(g_host.itself_blocked);

  // Our own faults still do not get there.
  absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
  ASSERT_TRUE(memory.ok()) << memory.status();
  Store(*memory, 5, 1);
  EXPECT_TRUE(TrapOf([&] { Store(*memory, kSize, 1); }).has_value());
  EXPECT_EQ(g_host.calls, 1);
}

TEST(SignalsTest, APreviousHandlerWithNodeferIsNotBlocked) {
  const WithActions host(HostHandler, SA_SIGINFO | SA_ONSTACK | SA_NODEFER);
  const auto service = MakeService(SignalOwnership::kInstall);
  TouchForbiddenPage();
  EXPECT_FALSE(g_host.itself_blocked);
  EXPECT_TRUE(g_host.usr1_blocked);
}

TEST(SignalsTest, UninstallRestoresExactly) {
  const WithActions host(HostHandler, SA_SIGINFO | SA_RESTART);
  struct sigaction before[2], after[2];
  sigaction(SIGBUS, nullptr, &before[0]);
  sigaction(SIGSEGV, nullptr, &before[1]);
  {
    const auto one = MakeService(SignalOwnership::kInstall);
    const auto two = MakeService(SignalOwnership::kInstall);
    struct sigaction ours;
    sigaction(SIGBUS, nullptr, &ours);
    EXPECT_NE(ours.sa_sigaction, before[0].sa_sigaction);
  }
  sigaction(SIGBUS, nullptr, &after[0]);
  sigaction(SIGSEGV, nullptr, &after[1]);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(after[i].sa_sigaction, before[i].sa_sigaction);
    EXPECT_EQ(after[i].sa_flags, before[i].sa_flags);
    for (int signal = 1; signal < 65; ++signal) {
      EXPECT_EQ(sigismember(&after[i].sa_mask, signal),
                sigismember(&before[i].sa_mask, signal))
          << signal;
    }
  }
}

TEST(SignalsTest, UninstallBehindSomebodyElsesBackIsRefused) {
  ASSERT_EQ(InstallFaultHandler(), absl::OkStatus());
  {
    const WithActions in_front(HostHandler);
    const absl::Status status = UninstallFaultHandler();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("the action for SIGBUS was changed after "
                          "InstallFaultHandler"));
  }
  EXPECT_EQ(UninstallFaultHandler(), absl::OkStatus());
  const absl::Status status = UninstallFaultHandler();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("without an InstallFaultHandler to undo"));
}

TEST(SignalsTest, AHostThatOwnsTheHandlerAsksUs) {
  const WithActions host(HostHandlerThatAsksUs,
                         SA_SIGINFO | SA_ONSTACK | SA_NODEFER);
  const auto service = MakeService(SignalOwnership::kHost);
  ASSERT_NE(service, nullptr);
  absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
  ASSERT_TRUE(memory.ok()) << memory.status();
  Store(*memory, 5, 1);
  EXPECT_EQ(g_host.outcome, FaultOutcome::kResolved);
  EXPECT_EQ(g_host.calls, 0);
  std::optional<TrapInfo> trap = TrapOf([&] { Store(*memory, kSize + 1, 1); });
  ASSERT_TRUE(trap.has_value());
  EXPECT_EQ(trap->offset_bytes, static_cast<int64_t>(kSize + 1));
  TouchForbiddenPage();
  EXPECT_EQ(g_host.outcome, FaultOutcome::kNotMine);
  EXPECT_EQ(g_host.calls, 1);
}

TEST(SignalsTest, ASignalThatWasSentIsNotAFault) {
  const WithActions host(HostHandler);
  const auto service = MakeService(SignalOwnership::kInstall);
  if (sigsetjmp(g_host.jump, 1) == 0) {
    raise(SIGBUS);
    FAIL() << "the host's handler was not called";
  }
  EXPECT_EQ(g_host.signal, SIGBUS);
  EXPECT_EQ(g_host.code, SI_TKILL);
}

TEST(SignalsTest, ErrnoSurvivesAFault) {
  const auto service = MakeService(SignalOwnership::kInstall);
  absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
  ASSERT_TRUE(memory.ok()) << memory.status();
  errno = 12345;
  Store(*memory, 5, 1);
  EXPECT_EQ(errno, 12345);
}

// A callback that makes the touch legal by moving to the next instruction.
TrapAction SkipThreeBytes(const TrapInfo& trap) {
  auto* context = static_cast<ucontext_t*>(trap.ucontext);
  EXPECT_EQ(static_cast<greg_t>(trap.program_counter),
            context->uc_mcontext.gregs[REG_RIP]);
  context->uc_mcontext.gregs[REG_RIP] += 3;
  *static_cast<int*>(trap.user) += 1;
  return TrapAction::kResume;
}

TEST(SignalsTest, ACallbackMayEditTheContextAndResume) {
  const auto service = MakeService(SignalOwnership::kInstall, nullptr);
  int traps = 0;
  absl::StatusOr<Memory> memory =
      service->Acquire({.size_bytes = kSize,
                        .trap_callback = SkipThreeBytes,
                        .trap_user = &traps});
  ASSERT_TRUE(memory.ok()) << memory.status();
  volatile std::byte* const outside = memory->base() + kSize;
  // movb $1, (%rax): three bytes.
  asm volatile(".byte 0xc6, 0x00, 0x01" : : "a"(outside) : "memory");
  EXPECT_EQ(traps, 1);
}

TEST(SignalsDeathTest, AnUnhandledTrapDiesByItsSignalAndNamesSlotAndOffset) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const auto service = MakeService(SignalOwnership::kInstall, nullptr);
        absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
        Store(*memory, kSize + 123, 1);
      },
      testing::KilledBySignal(SIGBUS),
      "firsttouch: out of bounds write in pool \"signals\", instance 0, memory "
      "0 \\(slot 0\\): offset 16507 is not below the size of 16384 bytes "
      "\\(address 0x[0-9a-f]+, instruction 0x[0-9a-f]+\\); no trap callback "
      "took it");
}

TEST(SignalsDeathTest, AForeignFaultWithoutAPreviousHandlerKillsAsBefore) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        struct sigaction action = {};
        action.sa_handler = SIG_DFL;
        sigaction(SIGSEGV, &action, nullptr);
        const auto service = MakeService(SignalOwnership::kInstall);
        ForbiddenPage()[0] = 1;
      },
      testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EXIT(
      {
        struct sigaction action = {};
        action.sa_handler = SIG_DFL;
        sigaction(SIGBUS, &action, nullptr);
        const auto service = MakeService(SignalOwnership::kInstall);
        raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
}

// Runs `body` on a thread of its own, which has no alternate stack (the main
// thread's may come from a sanitizer).
template <typename Body>
void OnFreshThread(Body body) {
  std::thread([&] {
    stack_t disable = {};
    disable.ss_flags = SS_DISABLE;
    ASSERT_EQ(sigaltstack(&disable, nullptr), 0);
    body();
  }).join();
}

TEST(AlternateStackTest, IsMadeOnDemandAndIsLargeEnough) {
  OnFreshThread([] {
    const absl::Status missing = CheckAlternateStack();
    EXPECT_EQ(missing.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(missing.message()),
                HasSubstr("the thread has no alternate signal stack"));
    EXPECT_THAT(std::string(missing.message()),
                HasSubstr("call EnsureAlternateStack()"));
    EXPECT_EQ(EnsureAlternateStack(), absl::OkStatus());
    EXPECT_EQ(EnsureAlternateStack(), absl::OkStatus());
    EXPECT_EQ(CheckAlternateStack(), absl::OkStatus());
    stack_t stack;
    ASSERT_EQ(sigaltstack(nullptr, &stack), 0);
    EXPECT_GE(stack.ss_size, kAlternateStackBytes + getauxval(AT_MINSIGSTKSZ));
  });
}

TEST(AlternateStackTest, AStackThatIsTooSmallIsNamedWithBothSizes) {
  OnFreshThread([] {
    // What the kernel takes, but no handler of ours could run on.
    const size_t bytes = std::max<size_t>(getauxval(AT_MINSIGSTKSZ), 2048);
    std::vector<char> memory(bytes);
    stack_t small = {};
    small.ss_sp = memory.data();
    small.ss_size = bytes;
    ASSERT_EQ(sigaltstack(&small, nullptr), 0);
    const absl::Status status = EnsureAlternateStack();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(std::to_string(bytes) +
                          " bytes; the fault handler needs at least " +
                          std::to_string(bytes + 4096)));
    small.ss_flags = SS_DISABLE;
    sigaltstack(&small, nullptr);
  });
}

TEST(AlternateStackTest, AThreadThatAcquiresGetsOne) {
  const auto service = MakeService(SignalOwnership::kInstall);
  OnFreshThread([&] {
    absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(CheckAlternateStack(), absl::OkStatus());
  });
}

}  // namespace
}  // namespace firsttouch
