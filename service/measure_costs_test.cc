#include "firsttouch/service/measure_costs.h"

#include "firsttouch/service/page_costs.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr PageCosts kDefaults;

TEST(CostsOfTest, WhereNothingWasMeasuredTheDefaultsHold) {
  const PageCosts costs = CostsOf({});
  EXPECT_DOUBLE_EQ(costs.signal_ns, kDefaults.signal_ns);
  EXPECT_DOUBLE_EQ(costs.restore_ns, kDefaults.restore_ns);
}

TEST(CostsOfTest, SmallDifferencesDecideNothing) {
  EXPECT_DOUBLE_EQ(CostsOf({.fill_ns = 1300, .restore_ns = 85}).signal_ns,
                   kDefaults.signal_ns);
  EXPECT_DOUBLE_EQ(CostsOf({.fill_ns = 1700, .restore_ns = 115}).signal_ns,
                   kDefaults.signal_ns);
}

TEST(CostsOfTest, AKernelThatIsSlowerMakesItsCallsDearer) {
  const PageCosts costs = CostsOf({.fill_ns = 3400, .restore_ns = 100});
  EXPECT_DOUBLE_EQ(costs.signal_ns, 2.25 * kDefaults.signal_ns);
  EXPECT_DOUBLE_EQ(costs.drop_ns, 2.25 * kDefaults.drop_ns);
  EXPECT_DOUBLE_EQ(costs.restore_ns, kDefaults.restore_ns);
}

TEST(CostsOfTest, MemoryThatIsFasterMakesRestoringCheaper) {
  const PageCosts costs = CostsOf({.fill_ns = 1500, .restore_ns = 44});
  EXPECT_DOUBLE_EQ(costs.restore_ns, kDefaults.restore_ns / 2.25);
  EXPECT_DOUBLE_EQ(costs.restore_zero_ns, kDefaults.restore_zero_ns / 2.25);
  EXPECT_DOUBLE_EQ(costs.scan_ns, kDefaults.scan_ns);
}

TEST(CostsOfTest, AMeasurementThatWasDisturbedHasBounds) {
  EXPECT_LT(CostsOf({.fill_ns = 1e9, .restore_ns = 1e9}).signal_ns,
            12 * kDefaults.signal_ns);
  EXPECT_GT(CostsOf({.fill_ns = 0.1, .restore_ns = 0.1}).restore_ns,
            kDefaults.restore_ns / 12);
}

}  // namespace
}  // namespace firsttouch
