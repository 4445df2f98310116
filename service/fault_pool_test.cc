#include "firsttouch/service/fault_pool.h"

#include <cstdint>

#include "firsttouch/uffd/process_mark.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(LatencyHistogramTest, EachLatencyIsInTheBucketOfItsHighestBit) {
  LatencyHistogram histogram{};
  for (const uint64_t ns : {0, 1, 2, 3, 4}) histogram.Add(ns);
  EXPECT_EQ(histogram.bucket[0], 2u);
  EXPECT_EQ(histogram.bucket[1], 2u);
  EXPECT_EQ(histogram.bucket[2], 1u);
  EXPECT_EQ(histogram.bucket[3], 0u);
}

TEST(LatencyHistogramTest, TheLastBucketTakesAllThatAreLonger) {
  LatencyHistogram histogram{};
  histogram.Add(uint64_t{1} << 31);
  histogram.Add(uint64_t{1} << 32);
  histogram.Add(~uint64_t{0});
  EXPECT_EQ(histogram.bucket[LatencyHistogram::kBuckets - 1], 3u);
}

TEST(FaultPoolTest, APoolBelongsToTheProcessThatMadeIt) {
  FaultPool fault_pool;
  EXPECT_TRUE(fault_pool.InOwnerProcess());
  fault_pool.made_by = ProcessMark();
  EXPECT_FALSE(fault_pool.InOwnerProcess());
}

TEST(MonotonicNanosTest, TheClockDoesNotGoBack) {
  const uint64_t before = MonotonicNanos();
  EXPECT_NE(before, 0u);
  EXPECT_LE(before, MonotonicNanos());
}

}  // namespace
}  // namespace firsttouch
