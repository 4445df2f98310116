#include "firsttouch/bench/timing.h"

#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

uint64_t Ticks(double ns) {
  return static_cast<uint64_t>(ns * TicksPerNs() + EmptyLoopTicks());
}

TEST(CycleTimes, WhatHappensNowAndThenIsInTheMeanOnly) {
  std::vector<uint64_t> ticks(90, Ticks(10'000));
  ticks.insert(ticks.end(), 10, Ticks(60'000));
  EXPECT_NEAR(MedianCycleNs(ticks), 10'000, 100);
  EXPECT_NEAR(MeanCycleNs(ticks), 15'000, 100);
}

TEST(CycleTimes, TimeSlicesOfOthersAreInNeither) {
  std::vector<uint64_t> ticks(99, Ticks(10'000));
  ticks.push_back(Ticks(4'000'000));
  EXPECT_NEAR(MedianCycleNs(ticks), 10'000, 100);
  EXPECT_NEAR(MeanCycleNs(ticks), 10'000, 100);
}

TEST(CycleTimes, LongCyclesAreNotTakenForTimeSlices) {
  const std::vector<uint64_t> ticks = {Ticks(900'000), Ticks(1'000'000),
                                       Ticks(2'000'000)};
  EXPECT_NEAR(MedianCycleNs(ticks), 1'000'000, 100);
  EXPECT_NEAR(MeanCycleNs(ticks), 1'300'000, 100);
}

TEST(CycleTimes, ShortCyclesAreMeasuredFinerThanTheClocksSteps) {
  // A clock that stands still, and then moves by four cycles at once.
  std::vector<uint64_t> ticks;
  for (int i = 0; i < 400; ++i) {
    ticks.push_back(i % 4 == 0 ? 4 * Ticks(50) : 0);
  }
  EXPECT_NEAR(MedianCycleNs(ticks), 50, 1);
}

TEST(TimesOfRound, OfThreadsTheSlowestMedianAndTheMeanOfAllCount) {
  const RoundTimes times =
      TimesOfRound({std::vector<uint64_t>(300, Ticks(10'000)),
                    std::vector<uint64_t>(100, Ticks(30'000))});
  EXPECT_NEAR(times.median_ns, 30'000, 100);
  EXPECT_NEAR(times.mean_ns, 15'000, 100);
  EXPECT_NEAR(times.p99_ns, 30'000, 100);
}

TEST(MedianRatio, IsTakenWithinRounds) {
  EXPECT_EQ(MedianRatio({1, 4, 9}, {1, 2, 3}), 2);
  EXPECT_EQ(MedianRatio({1, 4, 9}, {0, 2}), 2);
  EXPECT_EQ(MedianRatio({1}, {0}), std::nullopt);
}

}  // namespace
}  // namespace firsttouch::bench
