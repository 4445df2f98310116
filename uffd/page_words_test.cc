#include "firsttouch/uffd/page_words.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(PageWordsTest, AMaskIsTheBitsInsideTheRangeForAllRangesOfThreeWords) {
  for (uint64_t word = 0; word < 3; ++word) {
    for (uint64_t first = 0; first <= 192; ++first) {
      for (uint64_t end = 0; end <= 192; ++end) {
        uint64_t expected = 0;
        for (uint64_t bit = 0; bit < 64; ++bit) {
          const uint64_t page = word * 64 + bit;
          if (page >= first && page < end) expected |= uint64_t{1} << bit;
        }
        ASSERT_EQ(WordMask(word, first, end), expected)
            << word << " " << first << " " << end;
      }
    }
  }
}

TEST(PageWordsTest, RunsAreWhatASimpleLoopFindsForAllSixteenBitWords) {
  for (uint64_t low = 0; low < (1 << 16); ++low) {
    // At both ends of the word, where shifts go wrong.
    for (uint64_t bits : {low, low << 48, low | low << 48}) {
      std::vector<std::pair<uint64_t, uint64_t>> runs;
      ForEachRun(bits, [&](uint64_t first, uint64_t length) {
        runs.emplace_back(first, length);
      });
      std::vector<std::pair<uint64_t, uint64_t>> expected;
      for (uint64_t bit = 0; bit < 64; ++bit) {
        if ((bits >> bit & 1) == 0) continue;
        if (expected.empty() ||
            expected.back().first + expected.back().second != bit) {
          expected.emplace_back(bit, 0);
        }
        ++expected.back().second;
      }
      ASSERT_EQ(runs, expected) << std::hex << bits;
    }
  }
  int runs = 0;
  ForEachRun(~uint64_t{0}, [&](uint64_t first, uint64_t length) {
    EXPECT_EQ(first, 0u);
    EXPECT_EQ(length, 64u);
    ++runs;
  });
  EXPECT_EQ(runs, 1);
}

TEST(PageWordsTest, AWalkOverARangeHasEachOfItsPagesOnce) {
  for (uint64_t first = 0; first <= 192; ++first) {
    for (uint64_t end = 0; end <= 192; ++end) {
      std::vector<uint64_t> words(3);
      uint64_t next = first / 64;
      ForEachWordOf(first, end, [&](uint64_t index, uint64_t bits) {
        EXPECT_EQ(index, next++);
        words[index] = bits;
      });
      for (uint64_t page = 0; page < 192; ++page) {
        ASSERT_EQ(words[page / 64] >> (page % 64) & 1,
                  static_cast<uint64_t>(page >= first && page < end))
            << page << " " << first << " " << end;
      }
    }
  }
}

TEST(PageWordsTest, WordsForIsRoundedUp) {
  EXPECT_EQ(WordsFor(0), 0u);
  EXPECT_EQ(WordsFor(1), 1u);
  EXPECT_EQ(WordsFor(64), 1u);
  EXPECT_EQ(WordsFor(65), 2u);
}

}  // namespace
}  // namespace firsttouch
