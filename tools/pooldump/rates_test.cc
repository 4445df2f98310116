#include "firsttouch/tools/pooldump/rates.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

// A pool of two slots with these counters each.
ProcessSnapshot Process(int64_t second, uint64_t traps, uint64_t faults,
                        uint32_t pool_id = 1) {
  ProcessSnapshot process;
  process.set_monotonic_ns(second * 1'000'000'000);
  PoolSnapshot& pool = *process.add_pools();
  pool.set_pool_id(pool_id);
  for (int i = 0; i < 2; ++i) {
    Counters& counters = *pool.add_slots()->mutable_counters();
    counters.set_traps(traps);
    counters.set_minor_faults(faults);
  }
  return process;
}

TEST(RateMeter, DividesTheDifferenceByTheClock) {
  RateMeter meter;
  ProcessSnapshot first = Process(10, 5, 100);
  meter.Measure(&first);
  EXPECT_FALSE(first.pools(0).slots(0).has_rates());
  EXPECT_FALSE(first.pools(0).totals().has_rates());
  ProcessSnapshot second = Process(14, 7, 180);
  meter.Measure(&second);
  EXPECT_DOUBLE_EQ(second.pools(0).slots(1).rates().traps(), 0.5);
  EXPECT_DOUBLE_EQ(second.pools(0).slots(1).rates().faults(), 20);
  EXPECT_DOUBLE_EQ(second.pools(0).slots(1).rates().seconds(), 4);
  EXPECT_DOUBLE_EQ(second.pools(0).totals().rates().traps(), 1);
  EXPECT_DOUBLE_EQ(second.pools(0).totals().rates().faults(), 40);
}

TEST(RateMeter, ACounterThatFellIsOfAnotherPool) {
  RateMeter meter;
  ProcessSnapshot first = Process(10, 5, 100);
  meter.Measure(&first);
  ProcessSnapshot second = Process(11, 1, 1);
  meter.Measure(&second);
  EXPECT_EQ(second.pools(0).slots(0).rates().traps(), 0);
  ProcessSnapshot other = Process(12, 9, 9, /*pool_id=*/2);
  meter.Measure(&other);
  EXPECT_FALSE(other.pools(0).slots(0).has_rates());
  EXPECT_FALSE(other.pools(0).totals().has_rates());
}

TEST(RateMeter, UnknownFaultsHaveNoRate) {
  RateMeter meter;
  for (int64_t second : {1, 2}) {
    ProcessSnapshot process = Process(second, 1, 0);
    for (Slot& slot : *process.mutable_pools(0)->mutable_slots()) {
      slot.mutable_counters()->set_faults_unknown(true);
    }
    meter.Measure(&process);
    if (second == 1) continue;
    EXPECT_TRUE(process.pools(0).slots(0).has_rates());
    EXPECT_FALSE(process.pools(0).slots(0).rates().has_faults());
    EXPECT_FALSE(process.pools(0).totals().rates().has_faults());
  }
}

}  // namespace
}  // namespace firsttouch::pooldump
