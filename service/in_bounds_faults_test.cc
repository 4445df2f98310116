#include "firsttouch/service/in_bounds_faults.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#include "firsttouch/service/accessible.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/scripted_slot.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Kind = FaultResult::Kind;
using testing::ElementsAre;
using testing::IsEmpty;

// ---- Pools whose pages this library places --------------------------------

class ResolveSignalByFillingTest : public ScriptedSlotTest {
 protected:
  FaultResult Resolve(int signal, Access access) {
    return ResolveSignalByFilling(
        fault_pool_, {.signal = signal,
                      .address = slot_.base + 20 * kPageBytes + 7,
                      .touch = {.slot = 0,
                                .offset_bytes = 20 * kPageBytes + 7,
                                .access = access}});
  }
};

TEST_F(ResolveSignalByFillingTest, ATouchOfAMissingPageIsResolved) {
  EXPECT_EQ(Resolve(SIGBUS, Access::kWrite).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("COPY 20+1 from zeroes"));
}

TEST_F(ResolveSignalByFillingTest, AnInstructionFetchIsResolvedAsARead) {
  EXPECT_EQ(Resolve(SIGBUS, Access::kExecute).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("ZEROPAGE 16+16"));
}

TEST_F(ResolveSignalByFillingTest, AnInaccessiblePageIsSomebodyElses) {
  EXPECT_EQ(Resolve(SIGSEGV, Access::kWrite).kind, Kind::kNotOurs);
  fault_pool_.resolve = Resolve::kHandlerThread;
  fault_pool_.poison = true;
  EXPECT_EQ(Resolve(SIGSEGV, Access::kWrite).kind, Kind::kNotOurs);
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(ResolveSignalByFillingTest, APageThatHandlerThreadsMadeTrapIsOpened) {
  fault_pool_.resolve = Resolve::kHandlerThread;
  EXPECT_EQ(Resolve(SIGSEGV, Access::kWrite).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(),
              ElementsAre("mprotect 20+1 RW", "COPY 20+1 from zeroes"));
}

TEST_F(ResolveSignalByFillingTest, APageThatCannotBeOpenedIsLeftAlone) {
  fault_pool_.resolve = Resolve::kHandlerThread;
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  EXPECT_EQ(Resolve(SIGSEGV, Access::kWrite).kind, Kind::kNotOurs);
  EXPECT_THAT(TakeCalls(), ElementsAre("mprotect 20+1 RW"));
}

// ---- Pools whose pages the kernel places -----------------------------------

class ResolveSignalOfKernelsPageTest : public testing::Test {
 protected:
  ResolveSignalOfKernelsPageTest() {
    mprotect(memory_.data() + kPageBytes, kPageBytes, PROT_READ);
    mprotect(memory_.data() + 2 * kPageBytes, kPageBytes, PROT_NONE);
  }

  FaultResult Resolve(int signal, uint64_t page, Access access) {
    return ResolveSignalOfKernelsPage(fault_pool_,
                                      {.signal = signal,
                                       .address = Address(page),
                                       .touch = {.access = access}});
  }
  uintptr_t Address(uint64_t page) const {
    return memory_.address() + page * kPageBytes + 5;
  }

  // Writable, readable, inaccessible.
  const ScratchMemory memory_{3 * kPageBytes};
  FaultPool fault_pool_;
};

TEST_F(ResolveSignalOfKernelsPageTest, APageThatTheKernelCannotGiveHasNoBytes) {
  const FaultResult result = Resolve(SIGBUS, 0, Access::kRead);
  EXPECT_EQ(result.kind, Kind::kNoContents);
  EXPECT_EQ(result.error, EFAULT);
  EXPECT_STREQ(result.call, "the kernel's own page fault");
}

TEST_F(ResolveSignalOfKernelsPageTest, ATouchThatWouldSucceedByNowIsOver) {
  EXPECT_EQ(Resolve(SIGSEGV, 0, Access::kRead).kind, Kind::kGone);
  EXPECT_EQ(Resolve(SIGSEGV, 0, Access::kWrite).kind, Kind::kGone);
  EXPECT_EQ(Resolve(SIGSEGV, 1, Access::kRead).kind, Kind::kGone);
}

TEST_F(ResolveSignalOfKernelsPageTest, ATouchThatStillFailsIsSomebodyElses) {
  EXPECT_EQ(Resolve(SIGSEGV, 1, Access::kWrite).kind, Kind::kNotOurs);
  EXPECT_EQ(Resolve(SIGSEGV, 2, Access::kRead).kind, Kind::kNotOurs);
  EXPECT_EQ(Resolve(SIGSEGV, 0, Access::kExecute).kind, Kind::kNotOurs);
}

// ---- accessible.h -----------------------------------------------------------

TEST_F(ResolveSignalOfKernelsPageTest, TheKernelSaysWhatCanBeTouched) {
  EXPECT_TRUE(IsAccessible(Address(0), Access::kRead));
  EXPECT_TRUE(IsAccessible(Address(0), Access::kWrite));
  EXPECT_TRUE(IsAccessible(Address(1), Access::kRead));
  EXPECT_FALSE(IsAccessible(Address(1), Access::kWrite));
  EXPECT_FALSE(IsAccessible(Address(2), Access::kRead));
  EXPECT_FALSE(IsAccessible(Address(2), Access::kWrite));
}

TEST_F(ResolveSignalOfKernelsPageTest, AskingChangesNeitherBytesNorErrno) {
  memset(memory_.data(), 0x5a, kPageBytes);
  sigset_t before;
  sigprocmask(SIG_SETMASK, nullptr, &before);
  errno = 77;
  for (const uint64_t page : {0, 2}) {
    IsAccessible(Address(page), Access::kRead);
    IsAccessible(Address(page), Access::kWrite);
  }
  IsAccessible(memory_.address() + kPageBytes - 1, Access::kWrite);
  EXPECT_EQ(errno, 77);
  for (uint64_t i = 0; i < kPageBytes; ++i) {
    ASSERT_EQ(memory_.data()[i], 0x5a) << i;
  }
  sigset_t after;
  sigprocmask(SIG_SETMASK, nullptr, &after);
  for (int signal = 1; signal < 32; ++signal) {
    EXPECT_EQ(sigismember(&before, signal), sigismember(&after, signal));
  }
}

}  // namespace
}  // namespace firsttouch
