#include "firsttouch/service/signals.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSize = 4 * kPageBytes;

ServiceOptions Options(SignalOwnership signals,
                       TrapCallback callback = JumpOutOfTrap) {
  return {.name = "signals",
          .layout = {.instances = 2,
                     .max_memory_bytes = 16 * kPageBytes,
                     .guard_after_bytes = 65536},
          .signals = signals,
          .trap_callback = callback};
}

std::unique_ptr<Service> MakeService(ServiceOptions options) {
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(std::move(options));
  EXPECT_TRUE(service.ok()) << service.status();
  return service.ok() ? *std::move(service) : nullptr;
}

std::unique_ptr<Service> MakeService(SignalOwnership signals,
                                     TrapCallback callback = JumpOutOfTrap) {
  return MakeService(Options(signals, callback));
}

// What the host's own handler has seen.
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
    Install(action);
  }
  // SIG_DFL or SIG_IGN.
  WithActions(void (*standing_for)(int), int flags) {
    struct sigaction action = {};
    action.sa_handler = standing_for;
    action.sa_flags = flags;
    Install(action);
  }
  ~WithActions() {
    sigaction(SIGBUS, &old_bus_, nullptr);
    sigaction(SIGSEGV, &old_segv_, nullptr);
  }

 private:
  void Install(struct sigaction action) {
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGUSR1);
    sigaction(SIGBUS, &action, &old_bus_);
    sigaction(SIGSEGV, &action, &old_segv_);
    g_host = HostSaw();
  }

  struct sigaction old_bus_;
  struct sigaction old_segv_;
};

// A page, not ours, that may not be touched.
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
  // The mask is the one that the host asked for, not ours, which blocks nearly
  // all.
  EXPECT_TRUE(g_host.usr1_blocked);
  EXPECT_FALSE(g_host.usr2_blocked);
  EXPECT_TRUE(g_host.itself_blocked);

  // Our own faults still do not reach the host's handler.
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

// The Go runtime sets SA_SIGINFO with them.
TEST(SignalsTest, AnIgnoredSignalWithSiginfoStaysIgnored) {
  const WithActions ignored(SIG_IGN, SA_SIGINFO | SA_ONSTACK);
  const auto service = MakeService(SignalOwnership::kInstall);
  EXPECT_EQ(raise(SIGSEGV), 0);
  EXPECT_EQ(raise(SIGBUS), 0);
  absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
  ASSERT_TRUE(memory.ok()) << memory.status();
  Store(*memory, 5, 1);
}

TEST(SignalsDeathTest, ADefaultActionWithSiginfoKillsByItsSignal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const WithActions defaults(SIG_DFL, SA_SIGINFO | SA_ONSTACK);
        const auto service = MakeService(SignalOwnership::kInstall);
        raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(
      {
        const WithActions ignored(SIG_IGN, SA_SIGINFO);
        const auto service = MakeService(SignalOwnership::kInstall);
        ForbiddenPage()[0] = 1;
      },
      testing::KilledBySignal(SIGSEGV), "");
}

// Stands in front of our handler, and makes the touch legal once ours has been
// asked.
struct sigaction g_ours;
void HostHandlerThatOpensThePage(int signal, siginfo_t* info, void* context) {
  g_ours.sa_sigaction(signal, info, context);
  mprotect(const_cast<char*>(ForbiddenPage()), kPageBytes,
           PROT_READ | PROT_WRITE);
}

TEST(SignalsDeathTest, AFaultThatKillsDoesSoThoughTheTouchBecameLegal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const WithActions defaults(SIG_DFL, 0);
        const auto service = MakeService(SignalOwnership::kInstall);
        sigaction(SIGSEGV, nullptr, &g_ours);
        const WithActions in_front(HostHandlerThatOpensThePage);
        ForbiddenPage()[0] = 1;
        _exit(3);  // went on
      },
      testing::KilledBySignal(SIGSEGV), "");
}

// A memory error that a scrubber found, in memory that no code touched.
int SendMemoryErrorOptional() {
  siginfo_t info = {};
  info.si_signo = SIGBUS;
  info.si_code = BUS_MCEERR_AO;
  info.si_addr = const_cast<char*>(ForbiddenPage());
  return static_cast<int>(syscall(SYS_rt_tgsigqueueinfo, getpid(),
                                  syscall(SYS_gettid), SIGBUS, &info));
}

TEST(SignalsDeathTest, AMemoryErrorThatNobodyTouchedKillsByDefault) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const WithActions defaults(SIG_DFL, 0);
        const auto service = MakeService(SignalOwnership::kInstall);
        SendMemoryErrorOptional();
        _exit(3);  // went on
      },
      testing::KilledBySignal(SIGBUS), "");
}

TEST(SignalsTest, AMemoryErrorThatNobodyTouchedCanBeIgnored) {
  const WithActions ignored(SIG_IGN, 0);
  const auto service = MakeService(SignalOwnership::kInstall);
  struct sigaction before, after;
  sigaction(SIGBUS, nullptr, &before);
  EXPECT_EQ(SendMemoryErrorOptional(), 0);
  sigaction(SIGBUS, nullptr, &after);
  EXPECT_EQ(after.sa_sigaction, before.sa_sigaction);
}

// What the callbacks of the two memories and of the service have been told.
struct Told {
  int by_memory[2] = {0, 0};
  int by_service = 0;
  TrapInfo trap;
};
Told g_told;
sigjmp_buf g_leave;

TrapAction MemoryWasTold(const TrapInfo& trap) {
  ++*static_cast<int*>(trap.user);
  g_told.trap = trap;
  siglongjmp(g_leave, 1);
}

TrapAction ServiceWasTold(const TrapInfo& trap) {
  ++g_told.by_service;
  g_told.trap = trap;
  siglongjmp(g_leave, 1);
}

void TouchAndBeTold(const std::byte* address) {
  g_told = Told();
  if (sigsetjmp(g_leave, 0) == 0) {
    static_cast<void>(*reinterpret_cast<const volatile std::byte*>(address));
    FAIL() << "no trap";
  }
}

TEST(SignalsTest, ATouchBetweenTwoMemoriesIsToldToNeither) {
  for (const uint64_t guard_before :
       {uint64_t{0}, 4 * kPageBytes, 16 * kPageBytes}) {
    SCOPED_TRACE(guard_before);
    ServiceOptions options = Options(SignalOwnership::kInstall, ServiceWasTold);
    options.layout.guard_before_bytes = guard_before;
    const uint64_t unowned = std::max(guard_before, kPageBytes);
    const auto service = MakeService(options);
    ASSERT_NE(service, nullptr);
    std::vector<Memory> memories;
    for (int i = 0; i < 2; ++i) {
      absl::StatusOr<Memory> memory =
          service->Acquire({.size_bytes = kSize,
                            .trap_callback = MemoryWasTold,
                            .trap_user = &g_told.by_memory[i]});
      ASSERT_TRUE(memory.ok()) << memory.status();
      memories.push_back(*std::move(memory));
    }
    const bool in_order = memories[0].base() < memories[1].base();
    const int front = in_order ? 0 : 1;
    const std::byte* const below = memories[front].base();
    const std::byte* const above = memories[1 - front].base();

    // Below the memory behind: by eight bytes, and by as much as it can reach.
    for (const std::byte* address : {above - 8, above - unowned}) {
      TouchAndBeTold(address);
      EXPECT_EQ(g_told.by_memory[0], 0);
      EXPECT_EQ(g_told.by_memory[1], 0);
      EXPECT_EQ(g_told.by_service, 1);
      EXPECT_EQ(g_told.trap.instance, kNoMemory);
      EXPECT_EQ(g_told.trap.memory, kNoMemory);
      EXPECT_FALSE(g_told.trap.leased);
      EXPECT_EQ(g_told.trap.offset_bytes, 0);
      EXPECT_EQ(g_told.trap.size_bytes, 0u);
      EXPECT_EQ(g_told.trap.address, reinterpret_cast<uintptr_t>(address));
    }
    // Where the memory behind cannot reach, the touch is of the memory in
    // front.
    if (unowned < 16 * kPageBytes) {
      TouchAndBeTold(above - unowned - 1);
      EXPECT_EQ(g_told.by_memory[front], 1);
      EXPECT_EQ(g_told.by_service, 0);
      EXPECT_EQ(g_told.trap.instance, memories[front].instance());
    }
    // The guard in front of the first memory belongs to it alone, and so does
    // the guard behind the last memory.
    if (guard_before > 0) {
      TouchAndBeTold(below - 8);
      EXPECT_EQ(g_told.by_memory[front], 1);
      EXPECT_EQ(g_told.trap.offset_bytes, -8);
    }
    TouchAndBeTold(above + 32 * kPageBytes - 1);
    EXPECT_EQ(g_told.by_memory[1 - front], 1);
  }
}

TEST(SignalsDeathTest, ATouchBetweenTwoMemoriesThatNobodyTakesNamesBoth) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const auto service = MakeService(SignalOwnership::kInstall, nullptr);
        absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
        const uintptr_t base = service->base();
        static_cast<void>(*reinterpret_cast<const volatile std::byte*>(
            base + 32 * kPageBytes - 8));
      },
      testing::KilledBySignal(SIGBUS),
      "firsttouch: out of bounds read in pool \"signals\", in the guard "
      "between instance 0, memory 0 \\(offset 131064\\) and instance 1, memory "
      "0 \\(offset -8\\), which both can reach \\(address 0x[0-9a-f]+, "
      "instruction 0x[0-9a-f]+\\); no trap callback of the service took it");
}

TEST(SignalsTest, AJumpOutOfBoundsIsAnInstructionFetch) {
  const auto service = MakeService(SignalOwnership::kInstall);
  absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
  ASSERT_TRUE(memory.ok()) << memory.status();
  std::byte* const target = memory->base() + kSize + 16;
  const std::optional<TrapInfo> trap =
      TrapOf([&] { reinterpret_cast<void (*)()>(target)(); });
  ASSERT_TRUE(trap.has_value());
  EXPECT_EQ(trap->access, Access::kExecute);
  EXPECT_EQ(trap->offset_bytes, static_cast<int64_t>(kSize + 16));
  EXPECT_EQ(trap->program_counter, reinterpret_cast<uintptr_t>(target));
  // Other kinds of access are reported as before.
  EXPECT_EQ(TrapOf([&] { Load(*memory, kSize); })->access, Access::kRead);
  EXPECT_EQ(TrapOf([&] { Store(*memory, kSize, 1); })->access, Access::kWrite);
  EXPECT_EQ(memory->MakeReady(0, 1, Access::kExecute),
            absl::InvalidArgumentError(
                "access kExecute: no page of a pool can be executed; use kRead "
                "or kWrite"));
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

// Less than our handler needs, and enough to say so.
size_t TooSmallForUs() { return getauxval(AT_MINSIGSTKSZ) + 4000; }

std::string* g_said_in_handler = nullptr;

TEST(AlternateStackTest, OneThatIsTooSmallIsReplacedOutsideOfHandlers) {
  // What the handler needs beyond its stack hits nothing else.
  constexpr size_t kBelow = 64 * 1024;
  OnFreshThread([] {
    std::vector<char> memory(kBelow + TooSmallForUs());
    stack_t small = {};
    small.ss_sp = memory.data() + kBelow;
    small.ss_size = TooSmallForUs();
    ASSERT_EQ(sigaltstack(&small, nullptr), 0);
    std::string said;
    g_said_in_handler = &said;
    struct sigaction action = {};
    action.sa_handler = [](int) {
      *g_said_in_handler = EnsureAlternateStack().ToString();
    };
    action.sa_flags = SA_ONSTACK;
    struct sigaction before;
    ASSERT_EQ(sigaction(SIGUSR1, &action, &before), 0);
    raise(SIGUSR1);
    sigaction(SIGUSR1, &before, nullptr);
    EXPECT_THAT(said, HasSubstr(std::to_string(TooSmallForUs()) +
                                " bytes; the fault handler needs at least "));
    EXPECT_THAT(said, HasSubstr("call this outside of signal handlers"));
    stack_t now;
    ASSERT_EQ(sigaltstack(nullptr, &now), 0);
    EXPECT_EQ(now.ss_sp, small.ss_sp);
    EXPECT_EQ(EnsureAlternateStack(), absl::OkStatus());
    ASSERT_EQ(sigaltstack(nullptr, &now), 0);
    EXPECT_GE(now.ss_size, kAlternateStackBytes + getauxval(AT_MINSIGSTKSZ));
  });
}

TEST(AlternateStackTest, IsPutBackWhereTheHostTookItOut) {
  const auto service = MakeService(SignalOwnership::kInstall);
  OnFreshThread([&] {
    stack_t disable = {};
    disable.ss_flags = SS_DISABLE;
    stack_t first, second;
    ASSERT_EQ(EnsureAlternateStack(), absl::OkStatus());
    ASSERT_EQ(sigaltstack(&disable, &first), 0);
    EXPECT_EQ(EnsureAlternateStack(), absl::OkStatus());
    ASSERT_EQ(sigaltstack(&disable, &second), 0);
    EXPECT_EQ(second.ss_sp, first.ss_sp);
    EXPECT_EQ(second.ss_size, first.ss_size);
    absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(CheckAlternateStack(), absl::OkStatus());
  });
}

TEST(AlternateStackTest, OneThatTheHostPutInLaterIsLookedAt) {
  const auto service = MakeService(SignalOwnership::kInstall);
  OnFreshThread([&] {
    ASSERT_EQ(EnsureAlternateStack(), absl::OkStatus());
    stack_t ours;
    ASSERT_EQ(sigaltstack(nullptr, &ours), 0);
    std::vector<char> memory(TooSmallForUs());
    stack_t small = {};
    small.ss_sp = memory.data();
    small.ss_size = memory.size();
    ASSERT_EQ(sigaltstack(&small, nullptr), 0);
    absl::StatusOr<Memory> memory_of_guest =
        service->Acquire({.size_bytes = kSize});
    EXPECT_TRUE(memory_of_guest.ok()) << memory_of_guest.status();
    stack_t now;
    ASSERT_EQ(sigaltstack(nullptr, &now), 0);
    EXPECT_EQ(now.ss_sp, ours.ss_sp);
  });
}

TEST(AlternateStackTest, OneThatTheHostPutInLaterStaysAtTheThreadsEnd) {
  // Destructors of keys run after those of thread-local objects.
  static stack_t at_end;
  at_end = {};
  pthread_key_t key;
  ASSERT_EQ(
      pthread_key_create(&key, [](void*) { sigaltstack(nullptr, &at_end); }),
      0);
  std::vector<char> memory(64 * 1024);
  OnFreshThread([&] {
    ASSERT_EQ(EnsureAlternateStack(), absl::OkStatus());
    stack_t hosts = {};
    hosts.ss_sp = memory.data();
    hosts.ss_size = memory.size();
    ASSERT_EQ(sigaltstack(&hosts, nullptr), 0);
    pthread_setspecific(key, &key);
  });
  pthread_key_delete(key);
  EXPECT_EQ(at_end.ss_sp, memory.data());
  EXPECT_EQ(at_end.ss_flags & SS_DISABLE, 0);
}

TEST(AlternateStackTest, OneThatDisarmsItselfIsThereAfterATrap) {
  const auto service = MakeService(SignalOwnership::kInstall);
  OnFreshThread([&] {
    std::vector<char> memory(64 * 1024);
    stack_t hosts = {};
    hosts.ss_sp = memory.data();
    hosts.ss_size = memory.size();
    hosts.ss_flags = static_cast<int>(1u << 31);  // SS_AUTODISARM
    ASSERT_EQ(sigaltstack(&hosts, nullptr), 0);
    absl::StatusOr<Memory> leased = service->Acquire({.size_bytes = kSize});
    ASSERT_TRUE(leased.ok()) << leased.status();
    Store(*leased, 5, 1);
    for (int i = 0; i < 2; ++i) {
      EXPECT_TRUE(TrapOf([&] { Store(*leased, kSize, 1); }).has_value());
      stack_t present;
      ASSERT_EQ(sigaltstack(nullptr, &present), 0);
      EXPECT_EQ(present.ss_flags & SS_DISABLE, 0);
      EXPECT_EQ(present.ss_sp, memory.data());
    }
    EXPECT_EQ(CheckAlternateStack(), absl::OkStatus());
    hosts.ss_flags = SS_DISABLE;
    sigaltstack(&hosts, nullptr);
  });
}

// Acquires on the steady path, which asks the kernel nothing.
TEST(AlternateStackTest, AThreadThatReleasesAnothersMemoryAndAcquiresGetsOne) {
  const auto service = MakeService(SignalOwnership::kInstall);
  absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
  ASSERT_TRUE(memory.ok()) << memory.status();
  OnFreshThread([&] {
    ASSERT_EQ(memory->Release(), absl::OkStatus());
    absl::StatusOr<Memory> again = service->Acquire({.size_bytes = kSize});
    EXPECT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(CheckAlternateStack(), absl::OkStatus());
  });
}

// Uses a quarter of a MiB of stack, more than any alternate stack of ours has,
// and vector registers.
int g_deep_entries = 0;
int g_deep_calls = 0;
uintptr_t g_deep_stack = 0;
__attribute__((noinline)) void UseAQuarterOfAMiB(siginfo_t* info) {
  volatile char room[256 * 1024];
  for (size_t i = 0; i < sizeof(room); i += 512) room[i] = 1;
  volatile double spoiled[4] = {1, 2, 3, 4};
  for (volatile double& one : spoiled) one = one * 1e300;
  ++g_deep_calls;
  g_deep_stack = reinterpret_cast<uintptr_t>(&room[0]);
  mprotect(reinterpret_cast<void*>(
               RoundDownToPage(reinterpret_cast<uintptr_t>(info->si_addr))),
           kPageBytes, PROT_READ | PROT_WRITE);
}
void DeepHostHandler(int, siginfo_t* info, void*) {
  // On a stack that is too small it faults, and would be called forever.
  if (++g_deep_entries > 100) _exit(1);
  UseAQuarterOfAMiB(info);
}

// Stores to ForbiddenPage() between uses of a number in a vector register.
__attribute__((noinline)) double StoreWithALiveDouble(double value) {
  double kept = value;
  asm volatile("movb $1, (%1)"
               : "+x"(kept)
               : "r"(ForbiddenPage() + 9)
               : "memory");
  return kept;
}

TEST(SignalsTest, AHandlerThatDidNotAskForTheAlternateStackDoesNotGetIt) {
  for (const int flags : {SA_SIGINFO, SA_SIGINFO | SA_NODEFER, 0}) {
    SCOPED_TRACE(flags);
    const WithActions host(DeepHostHandler, flags);
    const auto service = MakeService(SignalOwnership::kInstall);
    // Works the second time, too: the handler returned by way of the kernel.
    for (int i = 0; i < 2; ++i) {
      mprotect(const_cast<char*>(ForbiddenPage()), kPageBytes, PROT_NONE);
      g_deep_entries = 0;
      g_deep_calls = 0;
      errno = 4321;
      EXPECT_EQ(StoreWithALiveDouble(2.5), 2.5);
      EXPECT_EQ(errno, 4321);
      EXPECT_EQ(g_deep_calls, 1);
      EXPECT_EQ(ForbiddenPage()[9], 1);
      sigset_t mask;
      pthread_sigmask(SIG_SETMASK, nullptr, &mask);
      EXPECT_EQ(sigismember(&mask, SIGUSR1), 0);
      EXPECT_EQ(sigismember(&mask, SIGSEGV), 0);
    }
    stack_t alternate;
    ASSERT_EQ(sigaltstack(nullptr, &alternate), 0);
    EXPECT_GE(g_deep_stack - reinterpret_cast<uintptr_t>(alternate.ss_sp),
              alternate.ss_size);
  }
  mprotect(const_cast<char*>(ForbiddenPage()), kPageBytes, PROT_NONE);
}

TEST(AlternateStackTest, AThreadThatAcquiresGetsOne) {
  const auto service = MakeService(SignalOwnership::kInstall);
  OnFreshThread([&] {
    absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(CheckAlternateStack(), absl::OkStatus());
  });
}

// Passes signals on to our handler, as any handler in front must.
int g_in_front_calls = 0;
void HostHandlerInFront(int signal, siginfo_t* info, void* context) {
  ++g_in_front_calls;
  g_ours.sa_sigaction(signal, info, context);
}

void TouchPool(Service& service) {
  absl::StatusOr<Memory> memory = service.Acquire({.size_bytes = kSize});
  ASSERT_TRUE(memory.ok()) << memory.status();
  Store(*memory, 5, 1);
  EXPECT_TRUE(TrapOf([&] { Store(*memory, kSize, 1); }).has_value());
}

// Python's faulthandler.disable() does this, for example.
TEST(ReplacedHandlerTest, ASecondServicePutsItBackInFrontOfTheDefault) {
  const WithActions host(HostHandler);
  const auto first = MakeService(SignalOwnership::kInstall);
  {
    const WithActions defaults(SIG_DFL, SA_SIGINFO);
    const auto second = MakeService(SignalOwnership::kInstall);
    ASSERT_NE(second, nullptr);
    TouchPool(*second);
    TouchPool(*first);
  }
  // The guard has put our handler back, and a foreign fault now meets the
  // default that had replaced it.
  TouchPool(*first);
}

TEST(ReplacedHandlerTest, ASecondServicePutsItBackInFrontOfAHandler) {
  const WithActions host(HostHandlerThatAsksUs);
  const auto first = MakeService(SignalOwnership::kInstall);
  const WithActions replaced(HostHandler);
  const auto second = MakeService(SignalOwnership::kInstall);
  TouchPool(*second);
  EXPECT_EQ(g_host.calls, 0);
  // The handler that stands behind ours now gets the fault that is not ours.
  TouchForbiddenPage();
  EXPECT_EQ(g_host.calls, 1);
  EXPECT_EQ(g_host.outcome, FaultOutcome::kResolved);
}

TEST(ReplacedHandlerTest,
     ASecondServiceAndAHandlerThatPassesOnDoNotGoInCircles) {
  const WithActions host(HostHandler);
  const auto first = MakeService(SignalOwnership::kInstall);
  sigaction(SIGSEGV, nullptr, &g_ours);
  const WithActions in_front(HostHandlerInFront);
  g_in_front_calls = 0;
  TouchPool(*first);
  EXPECT_GT(g_in_front_calls, 0);
  const auto second = MakeService(SignalOwnership::kInstall);
  g_in_front_calls = 0;
  TouchPool(*second);
  EXPECT_EQ(g_in_front_calls, 0);
  // The order is ours, the one that stood in front, ours again, the host's.
  TouchForbiddenPage();
  EXPECT_EQ(g_in_front_calls, 1);
  EXPECT_EQ(g_host.calls, 1);
}

TEST(ReplacedHandlerTest, AThreadIsToldWhenItAcquires) {
  const WithActions host(HostHandler);
  const auto service = MakeService(SignalOwnership::kInstall);
  const auto status_on_fresh_thread = [&] {
    absl::Status status;
    OnFreshThread(
        [&] { status = service->Acquire({.size_bytes = kSize}).status(); });
    return status;
  };
  EXPECT_EQ(status_on_fresh_thread(), absl::OkStatus());
  {
    const WithActions defaults(SIG_DFL, 0);
    EXPECT_EQ(status_on_fresh_thread(),
              absl::FailedPreconditionError(
                  "the action for SIGBUS is SIG_DFL, and not firsttouch's "
                  "fault handler any more: somebody has replaced it since, and "
                  "a first touch of pool memory would end the process; "
                  "InstallFaultHandler() puts it back in front"));
    EXPECT_EQ(CheckFaultHandler().code(),
              absl::StatusCode::kFailedPrecondition);
  }
  {
    const WithActions defaults(SIG_DFL, 0);
    ASSERT_EQ(InstallFaultHandler(), absl::OkStatus());
    EXPECT_EQ(status_on_fresh_thread(), absl::OkStatus());
    EXPECT_EQ(UninstallFaultHandler(), absl::OkStatus());
  }
  // An unknown function may pass signals on to ours.
  const WithActions in_front(HostHandlerInFront);
  EXPECT_EQ(status_on_fresh_thread(), absl::OkStatus());
}

// Runs in a process of its own, where nothing has stood in front of our handler
// yet.
TEST(ReplacedHandlerDeathTest, WhatWasThereBeforeIsKnownNotToPassOn) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const WithActions host(HostHandler);
        const auto service = MakeService(SignalOwnership::kInstall);
        const WithActions restored(HostHandler);
        const std::string message(CheckFaultHandler().message());
        fprintf(stderr, "%s\n", message.c_str());
        _exit(0);
      },
      testing::ExitedWithCode(0),
      "the action for SIGBUS is what it was before the fault handler was "
      "installed, and not firsttouch's");
}

TEST(BlockedSignalsTest, AThreadIsToldWhenItAcquiresOrMakesAService) {
  const auto service = MakeService(SignalOwnership::kInstall);
  OnFreshThread([&] {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    const absl::Status blocked = absl::FailedPreconditionError(
        "SIGBUS is blocked in this thread: the kernel would end the process at "
        "a touch of pool memory instead of calling the fault handler; unblock "
        "SIGBUS and SIGSEGV in each thread that runs guest code "
        "(pthread_sigmask(3)), also where all other signals are blocked");
    EXPECT_EQ(service->Acquire({.size_bytes = kSize}).status(), blocked);
    EXPECT_EQ(PrepareGuestThread(), blocked);
    EXPECT_EQ(Service::Create(Options(SignalOwnership::kInstall)).status(),
              blocked);
    EXPECT_EQ(Service::Create(Options(SignalOwnership::kHost)).status(),
              blocked);
    sigset_t faults;
    sigemptyset(&faults);
    sigaddset(&faults, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &faults, nullptr);
    EXPECT_THAT(
        std::string(service->Acquire({.size_bytes = kSize}).status().message()),
        HasSubstr("SIGSEGV is blocked in this thread"));
    sigaddset(&faults, SIGSEGV);
    pthread_sigmask(SIG_UNBLOCK, &faults, nullptr);
    EXPECT_EQ(PrepareGuestThread(), absl::OkStatus());
    absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
    ASSERT_TRUE(memory.ok()) << memory.status();
    Store(*memory, 5, 1);
  });
}

TEST(SignalsDeathTest, TheLastLineSaysWhatKeepsSignalsFromAHandler) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        // Traps are SIGSEGV with mappings.
        ServiceOptions options = Options(SignalOwnership::kInstall, nullptr);
        options.supply = MappingOptions{.scan = false};
        const auto service = MakeService(options);
        absl::StatusOr<Memory> memory = service->Acquire({.size_bytes = kSize});
        sigset_t blocked;
        sigemptyset(&blocked);
        sigaddset(&blocked, SIGBUS);
        pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
        signal(SIGBUS, SIG_DFL);
        Store(*memory, kSize + 123, 1);
      },
      testing::KilledBySignal(SIGSEGV),
      "firsttouch: out of bounds write .*; no trap callback took it; SIGBUS is "
      "blocked in this thread; SIGBUS has no handler any more");
}

}  // namespace
}  // namespace firsttouch
