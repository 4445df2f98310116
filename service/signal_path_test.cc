// What a signal comes to, with a siginfo and registers that are made up, and a
// kernel that does nothing.

#include <errno.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "firsttouch/locator/locator.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/handle_fault.h"
#include "firsttouch/service/scripted_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/this_thread.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/service/trap_guard.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/process_mark.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Kind = FaultResult::Kind;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

// Bits of the page-fault error code (Intel SDM volume 3, 4.7).
constexpr greg_t kProtection = 1;
constexpr greg_t kWrite = 2;
constexpr greg_t kInstruction = 16;

constexpr greg_t kSomeInstruction = 0x4711;

// What resolve_signal is to answer, and what it was asked.
struct Resolver {
  FaultResult answer;
  std::vector<SignalFault> asked;
  uint64_t mask = 0;
};
Resolver& TheResolver() {
  static Resolver& resolver = *new Resolver;
  return resolver;
}
FaultResult ResolveAsTold(FaultPool&, const SignalFault& fault) noexcept {
  TheResolver().asked.push_back(fault);
  return TheResolver().answer;
}

// The traps that callbacks were told of, each with its `user`.
std::vector<TrapInfo>& Traps() {
  static std::vector<TrapInfo>& traps = *new std::vector<TrapInfo>;
  return traps;
}
TrapAction Resume(const TrapInfo& trap) {
  Traps().push_back(trap);
  return TrapAction::kResume;
}
TrapAction DoNotHandle(const TrapInfo& trap) {
  Traps().push_back(trap);
  return TrapAction::kUnhandled;
}

class SignalPathTest : public ScriptedSlotTest {
 protected:
  SignalPathTest() {
    TheResolver() = {};
    Traps().clear();
    fault_pool_.resolve_signal = &ResolveAsTold;
    slot_.size_bytes = 20 * kPageBytes;
    slot_.lifecycle.Move(SlotLifecycle::kReturning);
    slot_.lifecycle.Move(SlotLifecycle::kLeased);
    context_.uc_mcontext.gregs[REG_RIP] = kSomeInstruction;
    sigprocmask(SIG_SETMASK, nullptr, &context_.uc_sigmask);
    EXPECT_EQ(RegisterPool(&fault_pool_.entry).ToString(), "OK");
  }
  ~SignalPathTest() override { UnregisterPool(&fault_pool_.entry); }

  // A signal of the kernel's for a touch; what was written to stderr is in
  // said_ afterwards.
  FaultOutcome Signal(int signal, int code, uintptr_t address,
                      greg_t error = 0) {
    siginfo_t info = {};
    info.si_signo = signal;
    info.si_code = code;
    info.si_addr = reinterpret_cast<void*>(address);
    context_.uc_mcontext.gregs[REG_ERR] = error;
    testing::internal::CaptureStderr();
    const FaultOutcome outcome = HandleFault(signal, &info, &context_);
    said_ = testing::internal::GetCapturedStderr();
    return outcome;
  }
  FaultOutcome Missing(uint64_t page, greg_t error = 0) {
    return Signal(SIGBUS, BUS_ADRERR, AddressOfPage(page), error);
  }
  FaultOutcome Refused(uint64_t page, greg_t error = kProtection | kWrite) {
    return Signal(SIGSEGV, SEGV_ACCERR, AddressOfPage(page), error);
  }
  uintptr_t AddressOfPage(uint64_t page) const {
    return slot_.base + page * kPageBytes;
  }
  uint64_t LatenciesCounted() const {
    uint64_t count = 0;
    for (const auto& bucket : fault_pool_.shards[0].latency.bucket) {
      count += bucket;
    }
    return count;
  }

  ucontext_t context_ = {};
  std::string said_;
};

// ---- Whose signal it is --------------------------------------------------

TEST_F(SignalPathTest, ASignalThatSomebodySentIsNoFault) {
  for (const int code :
       {int{SI_USER}, int{SI_QUEUE}, int{SI_TKILL}, int{BUS_ADRALN}}) {
    EXPECT_EQ(Signal(SIGBUS, code, AddressOfPage(3)), FaultOutcome::kNotMine);
  }
  EXPECT_EQ(Signal(SIGSEGV, SI_USER, AddressOfPage(3)), FaultOutcome::kNotMine);
  EXPECT_EQ(Signal(SIGTRAP, 1, AddressOfPage(3)), FaultOutcome::kNotMine);
  EXPECT_THAT(TheResolver().asked, IsEmpty());
}

TEST_F(SignalPathTest, AnAddressOfNoPoolIsNotOurs) {
  EXPECT_EQ(Signal(SIGBUS, BUS_ADRERR, kPoolBase - kPageBytes),
            FaultOutcome::kNotMine);
  EXPECT_EQ(Signal(SIGSEGV, SEGV_MAPERR, 8), FaultOutcome::kNotMine);
}

TEST_F(SignalPathTest, APoolOfTheParentIsNotOursInAChild) {
  fault_pool_.made_by = ProcessMark();
  EXPECT_EQ(Missing(3), FaultOutcome::kNotMine);
  EXPECT_THAT(TheResolver().asked, IsEmpty());
}

TEST_F(SignalPathTest, AMemoryErrorIsNotOursWhereNothingCanBePoisoned) {
  const auto error = [this] {
    return Signal(SIGBUS, BUS_MCEERR_AR, AddressOfPage(3));
  };
  EXPECT_EQ(error(), FaultOutcome::kNotMine);
  fault_pool_.poison = true;
  EXPECT_EQ(error(), FaultOutcome::kNotMine);
  fault_pool_.resolve = Resolve::kHandlerThread;
  EXPECT_EQ(error(), FaultOutcome::kResolved);
}

// ---- In bounds -------------------------------------------------------------

TEST_F(SignalPathTest, TheRegistersSayWhatWasTouched) {
  sigaddset(&context_.uc_sigmask, SIGUSR1);
  Missing(3, kWrite | kProtection);
  Signal(SIGBUS, BUS_ADRERR, AddressOfPage(4) + 5);
  Missing(5, kInstruction);
  ASSERT_EQ(TheResolver().asked.size(), 3u);
  const SignalFault& first = TheResolver().asked[0];
  EXPECT_EQ(first.signal, SIGBUS);
  EXPECT_EQ(first.address, AddressOfPage(3));
  EXPECT_EQ(first.touch.slot, 0u);
  EXPECT_EQ(first.touch.offset_bytes, 3 * kPageBytes);
  EXPECT_EQ(first.touch.access, Access::kWrite);
  EXPECT_TRUE(first.touch.protection);
  EXPECT_NE(first.touch.interrupted_mask, nullptr);
  const SignalFault& second = TheResolver().asked[1];
  EXPECT_EQ(second.touch.offset_bytes, 4 * kPageBytes + 5);
  EXPECT_EQ(second.touch.access, Access::kRead);
  EXPECT_FALSE(second.touch.protection);
  EXPECT_EQ(TheResolver().asked[2].touch.access, Access::kExecute);
}

TEST_F(SignalPathTest, AResolvedFaultIsTimedAndLeavesErrno) {
  errno = 77;
  EXPECT_EQ(Missing(3), FaultOutcome::kResolved);
  EXPECT_EQ(errno, 77);
  EXPECT_EQ(LatenciesCounted(), 1u);
  EXPECT_THAT(Traps(), IsEmpty());
}

TEST_F(SignalPathTest, AFaultThatIsOverIsNotTimed) {
  TheResolver().answer.kind = Kind::kGone;
  EXPECT_EQ(Missing(3), FaultOutcome::kResolved);
  EXPECT_EQ(LatenciesCounted(), 0u);
}

TEST_F(SignalPathTest, WhatSomebodyElseMadeInaccessibleIsNotOurs) {
  TheResolver().answer.kind = Kind::kNotOurs;
  EXPECT_EQ(Refused(3), FaultOutcome::kNotMine);
  EXPECT_THAT(Traps(), IsEmpty());
}

TEST_F(SignalPathTest, WhereTheKernelRefusesALineSaysSoAndNobodyGoesOn) {
  fault_pool_.trap_callback = &Resume;
  TheResolver().answer = {Kind::kFailed, ENOMEM, "UFFDIO_COPY"};
  EXPECT_EQ(Missing(3), FaultOutcome::kUnhandledTrap);
  EXPECT_EQ(said_,
            "firsttouch: cannot supply the page at offset 12288 of pool "
            "\"scripted\", instance 0, memory 0: UFFDIO_COPY failed with errno "
            "12; going on would show wrong bytes\n");
  EXPECT_THAT(Traps(), IsEmpty());
}

TEST_F(SignalPathTest, APageWithoutContentsIsATrapThatSaysWhy) {
  fault_pool_.trap_callback = &Resume;
  TheResolver().answer = {Kind::kNoContents, EIO, "fetching the image's page"};
  EXPECT_EQ(Missing(3), FaultOutcome::kResolved);
  ASSERT_EQ(Traps().size(), 1u);
  EXPECT_EQ(Traps()[0].error, EIO);
  EXPECT_EQ(Traps()[0].offset_bytes, static_cast<int64_t>(3 * kPageBytes));
  fault_pool_.trap_callback = &DoNotHandle;
  EXPECT_EQ(Missing(3), FaultOutcome::kUnhandledTrap);
  EXPECT_THAT(said_, HasSubstr("fetching the image's page failed with errno"));
}

// ---- Out of bounds --------------------------------------------------------

TEST_F(SignalPathTest, ATouchBehindTheSizeIsATrap) {
  int user = 0;
  fault_pool_.trap_callback = &Resume;
  fault_pool_.trap_user = &user;
  fault_pool_.entry.pool_id = 9;
  errno = 77;
  EXPECT_EQ(Missing(20, kWrite), FaultOutcome::kResolved);
  EXPECT_EQ(errno, 77);
  ASSERT_EQ(Traps().size(), 1u);
  const TrapInfo& trap = Traps()[0];
  EXPECT_EQ(trap.pool_id, 9u);
  EXPECT_STREQ(trap.pool_name, "scripted");
  EXPECT_EQ(trap.instance, 0u);
  EXPECT_EQ(trap.memory, 0u);
  EXPECT_TRUE(trap.leased);
  EXPECT_EQ(trap.access, Access::kWrite);
  EXPECT_EQ(trap.error, 0);
  EXPECT_EQ(trap.offset_bytes, static_cast<int64_t>(20 * kPageBytes));
  EXPECT_EQ(trap.size_bytes, 20 * kPageBytes);
  EXPECT_EQ(trap.address, AddressOfPage(20));
  EXPECT_EQ(trap.program_counter, static_cast<uintptr_t>(kSomeInstruction));
  EXPECT_EQ(trap.ucontext, &context_);
  EXPECT_EQ(trap.user, &user);
  EXPECT_EQ(slot_.counters.traps, 1u);
  EXPECT_THAT(TheResolver().asked, IsEmpty());
}

TEST_F(SignalPathTest, TheMemorysCallbackIsAskedFirst) {
  int memory = 0;
  int service = 0;
  slot_.trap_callback = &DoNotHandle;
  slot_.trap_user = &memory;
  fault_pool_.trap_callback = &Resume;
  fault_pool_.trap_user = &service;
  EXPECT_EQ(Missing(20), FaultOutcome::kResolved);
  ASSERT_EQ(Traps().size(), 2u);
  EXPECT_EQ(Traps()[0].user, &memory);
  EXPECT_EQ(Traps()[1].user, &service);
  Traps().clear();
  slot_.trap_callback = &Resume;
  EXPECT_EQ(Missing(20), FaultOutcome::kResolved);
  EXPECT_EQ(Traps().size(), 1u);
}

TEST_F(SignalPathTest, ATrapThatNobodyTakesIsNamed) {
  EXPECT_EQ(Missing(20), FaultOutcome::kUnhandledTrap);
  EXPECT_THAT(
      said_,
      AllOf(HasSubstr("firsttouch: out of bounds read in pool \"scripted\", "
                      "instance 0, memory 0 (slot 0): offset 81920 is not "
                      "below the size of 81920 bytes (address 0x"),
            HasSubstr(", instruction 0x4711); no trap callback took it")));
}

TEST_F(SignalPathTest, AMemoryThatNobodyHoldsHasNoCallback) {
  slot_.trap_callback = &Resume;
  slot_.lifecycle.Move(SlotLifecycle::kReturning);
  EXPECT_EQ(Missing(20), FaultOutcome::kUnhandledTrap);
  EXPECT_THAT(Traps(), IsEmpty());
  EXPECT_THAT(said_, HasSubstr("(slot 0, not held by anybody): offset"));
}

TEST_F(SignalPathTest, AGuardThatTwoMemoriesCanReachBelongsToNeither) {
  slot_.trap_callback = &Resume;
  fault_pool_.trap_callback = &DoNotHandle;
  const uint64_t last = kStridePages - 1;
  EXPECT_EQ(Missing(last), FaultOutcome::kUnhandledTrap);
  ASSERT_EQ(Traps().size(), 1u);
  EXPECT_EQ(Traps()[0].instance, kNoMemory);
  EXPECT_EQ(Traps()[0].memory, kNoMemory);
  EXPECT_FALSE(Traps()[0].leased);
  EXPECT_EQ(Traps()[0].offset_bytes, 0);
  EXPECT_EQ(Traps()[0].size_bytes, 0u);
  EXPECT_THAT(said_,
              HasSubstr("in the guard between instance 0, memory 0 (offset "
                        "4452352) and instance 1, memory 0 (offset -4096), "
                        "which both can reach"));
}

TEST_F(SignalPathTest, TheGuardBeforeTheFirstMemoryIsTheFirstMemorys) {
  fault_pool_.trap_callback = &Resume;
  Signal(SIGBUS, BUS_ADRERR, slot_.base - 1);
  ASSERT_EQ(Traps().size(), 1u);
  EXPECT_EQ(Traps()[0].memory, 0u);
  EXPECT_EQ(Traps()[0].offset_bytes, -1);
}

TEST_F(SignalPathTest, ACallbackRunsWithTheInterruptedCodesMask) {
  fault_pool_.trap_callback = [](const TrapInfo& trap) {
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, nullptr, &now);
    EXPECT_EQ(sigismember(&now, SIGUSR1), 1);
    return Resume(trap);
  };
  sigset_t before;
  pthread_sigmask(SIG_SETMASK, nullptr, &before);
  sigaddset(&context_.uc_sigmask, SIGUSR1);
  Missing(20);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_EQ(Traps().size(), 1u);
}

TEST_F(SignalPathTest, ALineTellsOfSignalsThatReachNoHandler) {
  sigset_t before;
  pthread_sigmask(SIG_SETMASK, nullptr, &before);
  sigaddset(&context_.uc_sigmask, SIGSEGV);
  Missing(20);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_THAT(said_, HasSubstr("; SIGSEGV is blocked in this thread"));
  EXPECT_THAT(said_, Not(HasSubstr("SIGBUS is blocked")));
}

TEST_F(SignalPathTest, TheGuardSeesATrapBeforeAnyCallback) {
  SetTrapGuard([](const TrapInfo& trap) {
    EXPECT_THAT(Traps(), IsEmpty());
    Traps().push_back(trap);
  });
  fault_pool_.trap_callback = &Resume;
  Missing(20);
  SetTrapGuard(nullptr);
  EXPECT_EQ(Traps().size(), 2u);
}

// ---- Snapshots
// ---------------------------------------------------------------

TEST_F(SignalPathTest, AWriteThatASnapshotHeldUpIsLookedAtOnceMore) {
  slot_.late_writes = 2;
  EXPECT_EQ(Refused(3), FaultOutcome::kResolved);
  EXPECT_EQ(slot_.late_writes, 1u);
  EXPECT_THAT(TheResolver().asked, IsEmpty());
  // Not a read, and not a page that is missing.
  Refused(3, kProtection);
  Missing(3, kWrite);
  EXPECT_EQ(slot_.late_writes, 1u);
  Refused(3);
  EXPECT_EQ(slot_.late_writes, 0u);
  TheResolver().answer.kind = Kind::kNotOurs;
  EXPECT_EQ(Refused(3), FaultOutcome::kNotMine);
}

// ---- Pages that were taken away ------------------------------------------

class LostPageTest : public SignalPathTest {
 protected:
  LostPageTest() {
    slot_.lifecycle.Move(SlotLifecycle::kReturning);
    slot_.restorer = ThisThread();
    TheResolver().answer.kind = Kind::kNotOurs;
  }
};

TEST_F(LostPageTest, ARestoreGoesOnWithAPageInTheHole) {
  kernel_.Fail(Op::kMmap, 1, CallResult{1, 0});
  EXPECT_EQ(Refused(3), FaultOutcome::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("mmap 3+1 anonymous"));
  EXPECT_EQ(slot_.exceptions, kSlotLost);
  EXPECT_EQ(slot_.lost_page, AddressOfPage(3));
}

TEST_F(LostPageTest, ARestoreOpensAPageThatIsThereAndThenReplacesIt) {
  kernel_.Fail(Op::kMmap, 1, CallResult{0, EEXIST});
  EXPECT_EQ(Refused(3), FaultOutcome::kResolved);
  EXPECT_THAT(TakeCalls(),
              ElementsAre("mmap 3+1 anonymous", "mprotect 3+1 RW"));
  kernel_.Fail(Op::kMmap, 1, CallResult{0, EEXIST});
  kernel_.Fail(Op::kMmap, 2, CallResult{1, 0});
  EXPECT_EQ(Refused(3), FaultOutcome::kResolved);
  EXPECT_THAT(TakeCalls(),
              ElementsAre("mmap 3+1 anonymous", "mmap 3+1 anonymous"));
}

TEST_F(LostPageTest, WhatCannotBeMadeAccessibleEndsTheProcess) {
  kernel_.Fail(Op::kMmap, 1, CallResult{0, EEXIST});
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  EXPECT_EQ(Refused(3), FaultOutcome::kNotMine);
  EXPECT_EQ(slot_.exceptions, 0u);
}

TEST_F(LostPageTest, APageThatIsThereByNowIsNotLost) {
  TheResolver().answer.kind = Kind::kGone;
  EXPECT_EQ(Refused(3), FaultOutcome::kResolved);
  EXPECT_THAT(TakeCalls(), IsEmpty());
  EXPECT_EQ(slot_.exceptions, 0u);
}

TEST_F(LostPageTest, AnotherThreadsTouchIsNoRestore) {
  slot_.restorer = ThisThread() + 64;
  EXPECT_EQ(Refused(3), FaultOutcome::kNotMine);
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(LostPageTest, AGuestsTouchIsNoRestore) {
  slot_.lifecycle.Move(SlotLifecycle::kLeased);
  EXPECT_EQ(Refused(3), FaultOutcome::kNotMine);
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

}  // namespace
}  // namespace firsttouch
