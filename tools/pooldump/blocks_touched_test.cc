#include "firsttouch/tools/pooldump/blocks_touched.h"

#include <cstdint>
#include <random>
#include <set>

#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

// By looking at each piece.
uint64_t CountBlocks(uint64_t first, uint64_t stride, uint64_t count,
                     uint64_t bytes, uint64_t span) {
  std::set<uint64_t> blocks;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = first + i * stride;
    for (uint64_t b = start / span; b <= (start + bytes - 1) / span; ++b) {
      blocks.insert(b);
    }
  }
  return blocks.size();
}

TEST(BlocksTouched, AreThoseOfAWalk) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t span = uint64_t{1} << (random() % 6);
    const uint64_t bytes = 1 + random() % 40;
    const uint64_t stride = bytes + random() % 40;
    const uint64_t count = random() % 30;
    const uint64_t first = random() % 100;
    ASSERT_EQ(BlocksTouched(first, stride, count, bytes, span),
              CountBlocks(first, stride, count, bytes, span))
        << first << " " << stride << " " << count << " " << bytes << " "
        << span;
  }
  EXPECT_EQ(BlocksTouched(0, uint64_t{6} << 30, 1000, 4096, 1 << 21), 1000u);
  EXPECT_EQ(
      BlocksTouched(0, uint64_t{6} << 30, 1000, uint64_t{4} << 30, 1 << 21),
      2048u * 1000);
}

}  // namespace
}  // namespace firsttouch::pooldump
