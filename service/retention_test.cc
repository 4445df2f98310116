#include "firsttouch/service/retention.h"

#include <cstdint>
#include <vector>

#include "firsttouch/service/page_costs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// A page costs 100 ns to restore and 6,400 ns to write again.
constexpr PageCosts kCosts = {
    .signal_ns = 6400, .restore_ns = 100, .drop_ns = 4000, .drop_page_ns = 200};

TEST(RetentionTest, APagesMemoryIsWorthMoreTheMoreSlotsKeepPages) {
  // 1 MiB a microsecond are 256 pages.
  EXPECT_DOUBLE_EQ(PageMemoryNs(1 << 20, 1), 1000.0 / 256);
  EXPECT_DOUBLE_EQ(PageMemoryNs(1 << 20, 64), 250);
  EXPECT_DOUBLE_EQ(PageMemoryNs(1 << 20, 10'000), 10'000.0 * 1000 / 256);
  EXPECT_DOUBLE_EQ(PageMemoryNs(1 << 20, 0), 0);
  EXPECT_DOUBLE_EQ(PageMemoryNs(0, 64), 0);
}

TEST(RetentionTest, APageHasToBeWrittenOftenEnoughToPayForItsPlace) {
  // 100 + 900 of 6,400 ns: in 10 of 64 leases.
  EXPECT_EQ(LeastChanges(kCosts, 900), 10u);
  EXPECT_EQ(LeastChanges(kCosts, 901), 11u);
}

TEST(RetentionTest, FewLeasesDoNotTellWhatIsSeldomFromWhatIsMoreSeldom) {
  EXPECT_EQ(LeastChanges(kCosts, 0), 0u);
  EXPECT_EQ(LeastChanges(kCosts, 100), 0u);
  EXPECT_EQ(LeastChanges(kCosts, 101), 3u);
}

TEST(RetentionTest, WhereMemoryIsNextToFreeNoMachineIsTooSlowToKeepPages) {
  EXPECT_EQ(LeastChanges({.signal_ns = 6400, .restore_ns = 1000}, 0), 0u);
  EXPECT_EQ(LeastChanges({.signal_ns = 6400, .restore_ns = 1000}, 1000), 0u);
  EXPECT_EQ(LeastChanges({.signal_ns = 6400, .restore_ns = 1000}, 1001), 21u);
}

TEST(RetentionTest, WhatNearlyEveryLeaseChangesIsKeptAtAnyPrice) {
  EXPECT_EQ(LeastChanges(kCosts, 1e12), kLeasesCounted - 4);
}

TEST(RetentionTest, PagesAreGivenBackOnceKeepingThemHasCostAsMuch) {
  EXPECT_FALSE(ShouldGiveBack(kCosts, 1e12, 0));
  EXPECT_FALSE(ShouldGiveBack(kCosts, 6000, 10));
  EXPECT_TRUE(ShouldGiveBack(kCosts, 6001, 10));
}

class ChangeRatesTest : public testing::Test {
 protected:
  void Add(uint64_t leases, const std::vector<uint64_t>& changed,
           uint32_t least_changes = 32) {
    for (uint64_t i = 0; i < leases; ++i) rates_.Add(changed, least_changes);
  }
  ChangeRates rates_;
};

TEST_F(ChangeRatesTest, NothingIsKnownBeforeEnoughLeasesAreCounted) {
  Add(kLeasesCounted - 1, {1});
  EXPECT_EQ(rates_.version(), 0u);
  EXPECT_THAT(rates_.Regular(), IsEmpty());
  Add(1, {1});
  EXPECT_EQ(rates_.version(), 1u);
  EXPECT_THAT(rates_.Regular(), ElementsAre(1));
}

TEST_F(ChangeRatesTest, PagesAreRegularThatEnoughOfTheLeasesChange) {
  Add(31, {0b001, uint64_t{1} << 63});
  Add(1, {0b011, uint64_t{1} << 63});
  Add(31, {0b010});
  Add(1, {0b100});
  EXPECT_THAT(rates_.Regular(), ElementsAre(0b011, uint64_t{1} << 63));
}

TEST_F(ChangeRatesTest, OlderLeasesCountLess) {
  Add(kLeasesCounted, {0b01});
  ASSERT_THAT(rates_.Regular(), ElementsAre(0b01));
  // The one page has 32 of 64, then 16 and 8; the other 32, 48 and 56.
  Add(kLeasesCounted / 2, {0b10});
  EXPECT_THAT(rates_.Regular(), ElementsAre(0b11));
  Add(kLeasesCounted / 2, {0b10});
  EXPECT_THAT(rates_.Regular(), ElementsAre(0b10));
  EXPECT_EQ(rates_.version(), 3u);
}

TEST_F(ChangeRatesTest, ThePriceOfTheTimeOfTheDecisionCounts) {
  Add(10, {0b11});
  Add(kLeasesCounted - 11, {0b10});
  Add(1, {0b10}, /*least_changes=*/10);
  EXPECT_THAT(rates_.Regular(), ElementsAre(0b11));
}

}  // namespace
}  // namespace firsttouch
