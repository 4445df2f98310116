// How readings become one number.

#include "firsttouch/bench/readings.h"

#include <optional>

#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

TEST(MedianRatio, IsTakenWithinRounds) {
  EXPECT_EQ(MedianRatio({1, 4, 9}, {1, 2, 3}), 2);
  EXPECT_EQ(MedianRatio({1, 4, 9}, {0, 2}), 2);
  EXPECT_EQ(MedianRatio({1}, {0}), std::nullopt);
}

}  // namespace
}  // namespace firsttouch::bench
