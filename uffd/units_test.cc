#include "firsttouch/uffd/units.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(Units, RoundsAsTheNameSays) {
  struct Case {
    uint64_t bytes;
    uint64_t up;
    uint64_t down;
    uint64_t containing;
  };
  constexpr Case kCases[] = {
      {0, 0, 0, 0},
      {1, 1, 0, 0},
      {4095, 1, 0, 0},
      {4096, 1, 1, 1},
      {4097, 2, 1, 1},
      {UINT64_MAX - 4095, (UINT64_MAX >> 12), UINT64_MAX >> 12,
       UINT64_MAX >> 12},
      {UINT64_MAX, (UINT64_MAX >> 12) + 1, UINT64_MAX >> 12, UINT64_MAX >> 12},
  };
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.bytes);
    EXPECT_EQ(PagesRoundedUp(c.bytes).value(), c.up);
    EXPECT_EQ(PagesRoundedDown(c.bytes).value(), c.down);
    EXPECT_EQ(PageContaining(c.bytes).value(), c.containing);
  }
}

TEST(Units, RoundsBytes) {
  EXPECT_EQ(RoundUpToPage(0), 0u);
  EXPECT_EQ(RoundUpToPage(1), 4096u);
  EXPECT_EQ(RoundUpToPage(4096), 4096u);
  EXPECT_EQ(RoundDownToPage(4095), 0u);
  EXPECT_EQ(RoundDownToPage(8191), 4096u);
  EXPECT_TRUE(IsPageAligned(0));
  EXPECT_TRUE(IsPageAligned(8192));
  EXPECT_FALSE(IsPageAligned(8193));
}

TEST(Units, CountsAndPositionsMixOnlyWhereThatMeansSomething) {
  constexpr PageIndex kThird(2);
  constexpr PageCount kFour(4);
  EXPECT_EQ((kThird + kFour).value(), 6u);
  EXPECT_EQ((kThird + kFour - kThird).value(), 4u);
  EXPECT_EQ((kThird - PageCount(1)).offset_bytes(), 4096u);
  EXPECT_EQ((kFour - PageCount(3)).bytes(), 4096u);
  EXPECT_LT(kThird, PageIndex(3));
  EXPECT_EQ(kFour, PagesRoundedUp(16384));
  static_assert(!std::is_convertible_v<uint64_t, PageCount>);
  static_assert(!std::is_convertible_v<PageCount, PageIndex>);
  PageIndex walk(0);
  ++walk;
  walk += PageCount(2);
  EXPECT_EQ(walk.value(), 3u);
  PageCount total;
  total += PageCount(5);
  total -= PageCount(2);
  EXPECT_EQ(total.value(), 3u);
}

#ifndef NDEBUG
TEST(UnitsDeathTest, SubtractionBelowZeroIsCaught) {
  EXPECT_DEATH((void)(PageCount(1) - PageCount(2)), "value_");
  EXPECT_DEATH((void)(PageIndex(1) - PageIndex(2)), "value_");
}
#endif

}  // namespace
}  // namespace firsttouch
