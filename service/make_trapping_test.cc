// Pages that handler threads make trap one by one, call by call;
// trapping_pages_test.cc has what a guest sees of it.

#include <errno.h>

#include <cstdint>
#include <string>
#include <vector>

#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/scripted_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/trapping_pages.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Kind = FaultResult::Kind;
using testing::ElementsAre;
using testing::IsEmpty;

class MakeTrappingTest : public ScriptedSlotTest {
 protected:
  static constexpr uint32_t kCapacity = PoisonedPages::kCapacity;

  MakeTrappingTest() {
    fault_pool_.resolve = Resolve::kHandlerThread;
    slot_.size_bytes = 20 * kPageBytes;
  }

  uintptr_t AddressOfPage(uint64_t page) const {
    return slot_.base + page * kPageBytes;
  }
  FaultResult MakeTrap(uint64_t page) {
    return MakeTrapping(fault_pool_, 0, AddressOfPage(page), &placed_);
  }

  bool placed_ = false;
};

TEST_F(MakeTrappingTest, WithPoisonThePageIsPoisonedAndNoted) {
  fault_pool_.poison = true;
  EXPECT_EQ(MakeTrap(30).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("POISON 30+1"));
  EXPECT_TRUE(placed_);
  EXPECT_TRUE(slot_.has_poisoned_pages);
  EXPECT_EQ(slot_.poisoned_pages.count, 1u);
  EXPECT_EQ(slot_.poisoned_pages.page[0], AddressOfPage(30));
  EXPECT_EQ(slot_.counters.kernel_calls, 1u);
}

TEST_F(MakeTrappingTest, APageThatIsThereIsNotPoisonedAndItsWaiterIsWoken) {
  fault_pool_.poison = true;
  kernel_.Fail(Op::kPoison, 1, RangeResult{0, EEXIST});
  EXPECT_EQ(MakeTrap(30).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("POISON 30+1", "WAKE 30+1"));
  EXPECT_FALSE(placed_);
  EXPECT_EQ(slot_.poisoned_pages.count, 0u);
}

TEST_F(MakeTrappingTest, APoisonThatFailsIsNamed) {
  fault_pool_.poison = true;
  kernel_.Fail(Op::kPoison, 1, RangeResult{0, ENOMEM});
  const FaultResult result = MakeTrap(30);
  EXPECT_EQ(result.kind, Kind::kFailed);
  EXPECT_EQ(result.error, ENOMEM);
  EXPECT_STREQ(result.call, "UFFDIO_POISON");
  EXPECT_FALSE(placed_);
  kernel_.Fail(Op::kPoison, 1, RangeResult{0, ESRCH});
  EXPECT_EQ(MakeTrap(30).kind, Kind::kGone);
}

TEST_F(MakeTrappingTest, MorePoisonedPagesThanThereIsRoomForAreCounted) {
  fault_pool_.poison = true;
  for (uint64_t i = 0; i <= kCapacity; ++i) MakeTrap(30 + i);
  EXPECT_EQ(slot_.poisoned_pages.count, kCapacity + 1);
  EXPECT_EQ(slot_.poisoned_pages.page[0], AddressOfPage(30));
}

TEST_F(MakeTrappingTest, WithoutPoisonThePageIsMadeInaccessibleThenWoken) {
  EXPECT_EQ(MakeTrap(30).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("mprotect 30+1 NONE", "WAKE 30+1"));
  EXPECT_TRUE(placed_);
  EXPECT_TRUE(slot_.has_poisoned_pages);
  EXPECT_EQ(slot_.poisoned_pages.page[0], AddressOfPage(30));
}

TEST_F(MakeTrappingTest, APageIsNotedBeforeItsWaiterGoesOn) {
  uintptr_t noted = 0;
  on_call_ = [&](const FakeKernel::Call& call) {
    if (call.op == Op::kWake) noted = slot_.poisoned_pages.page[0];
  };
  MakeTrap(30);
  EXPECT_EQ(noted, AddressOfPage(30));
}

TEST_F(MakeTrappingTest, APageThatIsMadeInaccessibleTwiceIsNotedOnce) {
  MakeTrap(30);
  MakeTrap(30);
  EXPECT_EQ(slot_.poisoned_pages.count, 1u);
}

TEST_F(MakeTrappingTest, OneMoreThanThereIsRoomForOpensTheFirst) {
  for (uint64_t i = 0; i < kCapacity; ++i) MakeTrap(30 + i);
  TakeCalls();
  MakeTrap(50);
  EXPECT_THAT(TakeCalls(), ElementsAre("mprotect 50+1 NONE", "mprotect 30+1 RW",
                                       "WAKE 50+1"));
  EXPECT_EQ(slot_.poisoned_pages.page[0], AddressOfPage(50));
}

TEST_F(MakeTrappingTest, WhereNoMappingIsLeftTheOthersOfTheMemoryGiveTheirs) {
  MakeTrap(30);
  MakeTrap(31);
  TakeCalls();
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  EXPECT_EQ(MakeTrap(50).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("mprotect 50+1 NONE", "mprotect 30+1 RW",
                                       "mprotect 31+1 RW", "mprotect 50+1 NONE",
                                       "WAKE 50+1"));
  EXPECT_TRUE(placed_);
}

TEST_F(MakeTrappingTest, WhereThatDoesNotHelpTheFailureIsNamed) {
  kernel_.Fail(Op::kMprotect, FakeKernel::kEvery, CallResult{0, ENOMEM});
  const FaultResult result = MakeTrap(50);
  EXPECT_EQ(result.kind, Kind::kFailed);
  EXPECT_EQ(result.error, ENOMEM);
  EXPECT_STREQ(result.call, "mprotect");
  EXPECT_FALSE(placed_);
  EXPECT_EQ(slot_.poisoned_pages.count, 0u);
}

TEST_F(MakeTrappingTest, WhatHasComeIntoTheBoundsTrapsNoMore) {
  for (const uint64_t page : {30, 35, 40}) MakeTrap(page);
  slot_.size_bytes = 40 * kPageBytes;
  TakeCalls();
  SupplyPoisonedPages(fault_pool_, 0, 31, 40);
  EXPECT_THAT(TakeCalls(), ElementsAre("mprotect 35+1 RW"));
}

TEST_F(MakeTrappingTest, WhatIsSuppliedTakesThePlaceOfThePoison) {
  fault_pool_.poison = true;
  for (const uint64_t page : {30, 35}) MakeTrap(page);
  slot_.size_bytes = 40 * kPageBytes;
  TakeCalls();
  SupplyPoisonedPages(fault_pool_, 0, 30, 35);
  EXPECT_THAT(TakeCalls(), ElementsAre("COPY 30+1 from zeroes"));
  EXPECT_EQ(States(30, 1), "d");
}

TEST_F(MakeTrappingTest, ASnapshotsReadOnlyPagesAreNotMadeWritable) {
  MakeTrap(30);
  slot_.size_bytes = 40 * kPageBytes;
  slot_.frozen = 1;
  TakeCalls();
  SupplyPoisonedPages(fault_pool_, 0, 20, 40);
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(MakeTrappingTest, TheGuardBeforeTheMemoryHasNoPagesToSupply) {
  MakeTrapping(fault_pool_, 0, slot_.base - kPageBytes, &placed_);
  TakeCalls();
  SupplyPoisonedPages(fault_pool_, 0, 0, ~uint64_t{0} / kPageBytes);
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(MakeTrappingTest, OpeningAPageSaysWhetherItWorked) {
  EXPECT_TRUE(MakeAccessible(fault_pool_, AddressOfPage(30)));
  EXPECT_THAT(TakeCalls(), ElementsAre("mprotect 30+1 RW"));
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  EXPECT_FALSE(MakeAccessible(fault_pool_, AddressOfPage(30)));
}

}  // namespace
}  // namespace firsttouch
