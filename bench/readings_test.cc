// How readings become one number.

#include "firsttouch/bench/readings.h"

#include <cstddef>
#include <cstdint>
#include <optional>

#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

uint64_t TicksOf(double ns) {
  return static_cast<uint64_t>(ns * TicksPerNs() + EmptyLoopTicks());
}

TEST(TimesOfRound, WhatHappensNowAndThenIsInTheMeanOnly) {
  Ticks ticks(90, TicksOf(10'000));
  ticks.insert(ticks.end(), 10, TicksOf(60'000));
  EXPECT_NEAR(TimesOfRound({ticks}).median_ns, 10'000, 100);
  EXPECT_NEAR(TimesOfRound({ticks}).mean_ns, 15'000, 100);
}

TEST(TimesOfRound, TimeSlicesOfOthersAreInNeither) {
  Ticks ticks(99, TicksOf(10'000));
  ticks.push_back(TicksOf(4'000'000));
  EXPECT_NEAR(TimesOfRound({ticks}).median_ns, 10'000, 100);
  EXPECT_NEAR(TimesOfRound({ticks}).mean_ns, 10'000, 100);
}

TEST(TimesOfRound, LongCyclesAreNotTakenForTimeSlices) {
  const Ticks ticks = {TicksOf(900'000), TicksOf(1'000'000),
                       TicksOf(2'000'000)};
  EXPECT_NEAR(TimesOfRound({ticks}).median_ns, 1'000'000, 100);
  EXPECT_NEAR(TimesOfRound({ticks}).mean_ns, 1'300'000, 100);
}

TEST(TimesOfRound, ShortCyclesAreMeasuredFinerThanTheClocksSteps) {
  // A clock that stands still, and then moves by four cycles at once.
  Ticks ticks(400);
  for (size_t i = 0; i < ticks.size(); i += 4) ticks[i] = 4 * TicksOf(50);
  EXPECT_NEAR(TimesOfRound({ticks}).median_ns, 50, 1);
}

TEST(TimesOfRound, OfThreadsTheSlowestMedianAndTheMeanOfAllCount) {
  const RoundTimes times =
      TimesOfRound({Ticks(300, TicksOf(10'000)), Ticks(100, TicksOf(30'000))});
  EXPECT_NEAR(times.median_ns, 30'000, 100);
  EXPECT_NEAR(times.mean_ns, 15'000, 100);
  EXPECT_EQ(times.cycles, 400);
}

TEST(MedianRatio, IsTakenWithinRounds) {
  EXPECT_EQ(MedianRatio({1, 4, 9}, {1, 2, 3}), 2);
  EXPECT_EQ(MedianRatio({1, 4, 9}, {0, 2}), 2);
  EXPECT_EQ(MedianRatio({1}, {0}), std::nullopt);
}

}  // namespace
}  // namespace firsttouch::bench
