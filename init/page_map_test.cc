#include "firsttouch/init/page_map.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cstdint>
#include <fstream>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {

void PrintTo(const PageRun& run, std::ostream* os) {
  *os << "[" << run.first.value() << ", +" << run.length.value() << ")";
}

namespace {

using ::testing::EndsWith;
using ::testing::StartsWith;

// The same set, the plain way.
using Model = std::vector<bool>;

std::optional<PageRun> ModelNext(const Model& model, uint64_t from, bool wanted,
                                 uint64_t before = UINT64_MAX) {
  before = std::min<uint64_t>(before, model.size());
  uint64_t first = from;
  while (first < before && model[first] != wanted) ++first;
  if (first >= before) return std::nullopt;
  uint64_t end = first;
  while (end < before && model[end] == wanted) ++end;
  return PageRun{PageIndex(first), PageCount(end - first)};
}

uint64_t ModelCountIn(const Model& model, uint64_t from, uint64_t length) {
  uint64_t count = 0;
  for (uint64_t page = from; page < model.size() && page - from < length;
       ++page) {
    count += model[page];
  }
  return count;
}

PageMap MakeMap(const Model& model) {
  absl::StatusOr<PageMap> map = PageMap::Create(PageCount(model.size()));
  EXPECT_TRUE(map.ok()) << map.status();
  for (uint64_t page = 0; page < model.size(); ++page) {
    if (!model[page]) continue;
    EXPECT_TRUE(map->Insert(PageIndex(page)));
  }
  return *std::move(map);
}

// Everything that can be asked of a map around [low, low + window), the part of
// it that differs from test to test, compared with the model's answers.
void CheckSame(const PageMap& map, const Model& model, uint64_t low,
               uint64_t window) {
  ASSERT_EQ(map.pages().value(), model.size());
  ASSERT_EQ(map.count(), ModelCountIn(model, 0, model.size()));
  ASSERT_EQ(map.word_count(), (model.size() + 63) / 64);
  std::vector<uint64_t> words(map.word_count());
  for (uint64_t page = 0; page < model.size(); ++page) {
    if (model[page]) words[page / 64] |= uint64_t{1} << (page % 64);
  }
  for (size_t i = 0; i < words.size(); ++i) {
    ASSERT_EQ(map.words()[i], words[i]) << "word " << i;
    ASSERT_EQ(map.Word(i), words[i]) << "word " << i;
  }
  ASSERT_EQ(map.Word(words.size()), 0u);
  const uint64_t end = low + window + 2;  // Past the map's end too.
  for (uint64_t from = low; from <= end; ++from) {
    const PageIndex page(from);
    ASSERT_EQ(map.Contains(page), from < model.size() && model[from]) << from;
    ASSERT_EQ(map.NextRun(page), ModelNext(model, from, true)) << from;
    ASSERT_EQ(map.NextGap(page), ModelNext(model, from, false)) << from;
    for (uint64_t length = 0; from + length <= end; ++length) {
      ASSERT_EQ(map.NextRun(page, page + PageCount(length)),
                ModelNext(model, from, true, from + length))
          << from << " + " << length;
      ASSERT_EQ(map.CountIn(page, PageCount(length)),
                ModelCountIn(model, from, length))
          << from << " + " << length;
    }
  }
}

// Every set over `window` pages that begin at page `low` of a map that ends
// with them; the pages below are all in or all out.
void CheckAllSets(uint64_t low, uint64_t window, bool below) {
  for (uint64_t bits = 0; bits < uint64_t{1} << window; ++bits) {
    Model model(low + window, below);
    for (uint64_t i = 0; i < window; ++i) model[low + i] = (bits >> i) & 1;
    const PageMap map = MakeMap(model);
    CheckSame(map, model, low > 2 ? low - 2 : 0, window + 2);
    ASSERT_FALSE(testing::Test::HasFatalFailure())
        << "window of " << window << " at " << low << ", bits " << bits;
  }
}

TEST(PageMapTest, AllSetsOfUpToTenPages) {
  for (uint64_t pages = 0; pages <= 10; ++pages) CheckAllSets(0, pages, false);
}

TEST(PageMapTest, AllSetsAcrossAWordBoundary) {
  for (bool below : {false, true}) {
    CheckAllSets(60, 8, below);
    CheckAllSets(57, 7, below);   // Ends with the word.
    CheckAllSets(64, 6, below);   // Begins with one.
    CheckAllSets(188, 8, below);  // Whole words below.
  }
}

TEST(PageMapTest, EveryInsertAndEraseOfEverySmallSet) {
  constexpr uint64_t kLow = 61;
  constexpr uint64_t kWindow = 6;
  for (uint64_t bits = 0; bits < uint64_t{1} << kWindow; ++bits) {
    for (uint64_t i = 0; i < kWindow; ++i) {
      Model model(kLow + kWindow, false);
      for (uint64_t j = 0; j < kWindow; ++j) model[kLow + j] = (bits >> j) & 1;
      const bool was = model[kLow + i];
      PageMap map = MakeMap(model);

      EXPECT_EQ(map.Insert(PageIndex(kLow + i)), !was);
      EXPECT_FALSE(map.Insert(PageIndex(kLow + i)));
      model[kLow + i] = true;
      CheckSame(map, model, kLow, kWindow);

      EXPECT_TRUE(map.Erase(PageIndex(kLow + i)));
      EXPECT_FALSE(map.Erase(PageIndex(kLow + i)));
      model[kLow + i] = false;
      CheckSame(map, model, kLow, kWindow);
      ASSERT_FALSE(HasFatalFailure()) << "bits " << bits << ", page " << i;
    }
  }
}

TEST(PageMapTest, EveryRangeOfALongMap) {
  Model model(200, false);
  for (uint64_t page = 0; page < model.size(); ++page) {
    model[page] = page * page % 5 != 1 || (page >= 60 && page < 140);
  }
  CheckSame(MakeMap(model), model, 0, model.size());
}

TEST(PageMapTest, RunsAndGapsTileTheMap) {
  Model model(300, false);
  for (uint64_t page = 0; page < model.size(); ++page) {
    model[page] = (page / 7) % 3 == 0 || (page >= 128 && page < 192);
  }
  const PageMap map = MakeMap(model);
  uint64_t at = 0;
  while (at < model.size()) {
    const std::optional<PageRun> run = map.NextRun(PageIndex(at));
    const std::optional<PageRun> gap = map.NextGap(PageIndex(at));
    const bool in = model[at];
    ASSERT_TRUE(in ? run.has_value() : gap.has_value());
    const PageRun& here = in ? *run : *gap;
    ASSERT_EQ(here.first.value(), at);
    ASSERT_GT(here.length.value(), 0u);
    at = here.end().value();
  }
  EXPECT_EQ(at, model.size());
}

TEST(PageMapTest, TheLargestMapCostsOnlyWhatIsSet) {
  absl::StatusOr<PageMap> map = PageMap::Create(PageCount(PageMap::kMaxPages));
  ASSERT_TRUE(map.ok()) << map.status();
  const PageIndex last(PageMap::kMaxPages - 1);
  ASSERT_TRUE(map->Insert(PageIndex(0)));
  ASSERT_TRUE(map->Insert(last));
  EXPECT_EQ(map->count(), 2u);

  const size_t bytes = map->word_count() * sizeof(uint64_t);
  std::vector<unsigned char> resident(bytes / kPageBytes);
  ASSERT_EQ(
      mincore(const_cast<uint64_t*>(map->words()), bytes, resident.data()), 0);
  uint64_t pages = 0;
  for (unsigned char byte : resident) pages += byte & 1;
  // One page at each end; 512 each if the kernel puts huge pages there.
  EXPECT_LE(pages, 1024u);

  EXPECT_EQ(map->NextRun(PageIndex(1)), (PageRun{last, PageCount(1)}));
  EXPECT_EQ(map->CountIn(PageIndex(0), PageCount(PageMap::kMaxPages)), 2u);
}

TEST(PageMapTest, RangesThatWrapAroundAreCut) {
  const PageMap map = MakeMap(Model(70, true));
  EXPECT_EQ(map.CountIn(PageIndex(60), PageCount(UINT64_MAX)), 10u);
  EXPECT_EQ(map.CountIn(PageIndex(UINT64_MAX), PageCount(UINT64_MAX)), 0u);
  EXPECT_EQ(map.NextRun(PageIndex(UINT64_MAX)), std::nullopt);
  EXPECT_EQ(map.NextGap(PageIndex(UINT64_MAX)), std::nullopt);
  EXPECT_FALSE(map.Contains(PageIndex(UINT64_MAX)));
}

TEST(PageMapTest, TooLargeIsRefusedWithTheLimit) {
  const absl::StatusOr<PageMap> map =
      PageMap::Create(PageCount(PageMap::kMaxPages + 1));
  EXPECT_EQ(map.status(),
            absl::InvalidArgumentError(
                "a page map of 268435457 pages exceeds the limit of 268435456 "
                "pages (1 TiB of memory)"));
}

TEST(PageMapTest, AShortageNamesTheLimitThatIsInTheWay) {
  const ChildResult child = RunInChild([]() -> std::string {
    // Room for the text of the error, and not for the map's 32 MiB.
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlim_t limit = pages * kPageBytes + (rlim_t{8} << 20);
    const rlimit address_space = {limit, limit};
    if (setrlimit(RLIMIT_AS, &address_space) != 0) return "setrlimit";
    return std::string(
        PageMap::Create(PageCount(PageMap::kMaxPages)).status().message());
  });
  EXPECT_THAT(
      child.output,
      StartsWith("mmap of 33554432 bytes for a page map of 268435456 "
                 "pages failed with errno 12; RLIMIT_AS (ulimit -v) is "));
  EXPECT_THAT(child.output,
              EndsWith(" are used: raise it: Cannot allocate memory"));
}

TEST(PageMapTest, MovingKeepsTheWordsWhereTheyAre) {
  PageMap first = MakeMap({false, true, true});
  const uint64_t* const words = first.words();
  PageMap second = std::move(first);
  EXPECT_EQ(second.words(), words);
  EXPECT_EQ(second.count(), 2u);
  // What has been moved from is an empty map.
  // NOLINTNEXTLINE(bugprone-use-after-move)
  EXPECT_EQ(first.pages(), PageCount(0));
  EXPECT_EQ(first.count(), 0u);
  EXPECT_EQ(first.words(), nullptr);
  EXPECT_FALSE(first.Contains(PageIndex(1)));

  PageMap third = MakeMap({true});
  third = std::move(second);
  EXPECT_EQ(third.words(), words);
  EXPECT_TRUE(third.Contains(PageIndex(2)));
  // NOLINTNEXTLINE(bugprone-use-after-move)
  EXPECT_EQ(second.words(), nullptr);
}

TEST(PageMapDeathTest, ChangingAPagePastTheEndEndsTheProcess) {
  PageMap map = MakeMap(Model(3, false));
  EXPECT_DEATH(map.Insert(PageIndex(3)),
               "firsttouch: PageMap::Insert of page 3 in a map of 3 pages");
  EXPECT_DEATH(map.Erase(PageIndex(64)),
               "firsttouch: PageMap::Erase of page 64 in a map of 3 pages");
  EXPECT_DEATH(PageMap().Insert(PageIndex(0)),
               "PageMap::Insert of page 0 in a map of 0 pages");
}

TEST(PageMapTest, ARunGoesInAsItsPagesDo) {
  constexpr uint64_t kPages = 200;
  for (uint64_t first = 0; first < kPages; first += 7) {
    for (uint64_t length = 0; length <= kPages - first; length += 9) {
      PageMap by_run = PageMap::Create(PageCount(kPages)).value();
      PageMap by_page = PageMap::Create(PageCount(kPages)).value();
      // Some are there already, and count once.
      for (const uint64_t page : {0, 63, 64, 130}) {
        by_run.Insert(PageIndex(page));
        by_page.Insert(PageIndex(page));
      }
      by_run.InsertRun({PageIndex(first), PageCount(length)});
      for (uint64_t page = first; page < first + length; ++page) {
        by_page.Insert(PageIndex(page));
      }
      ASSERT_EQ(by_run.count(), by_page.count()) << first << " + " << length;
      for (size_t word = 0; word < by_run.word_count(); ++word) {
        ASSERT_EQ(by_run.Word(word), by_page.Word(word));
      }
    }
  }
}

TEST(PageMapDeathTest, ARunThatDoesNotFitEndsTheProcess) {
  PageMap map = PageMap::Create(PageCount(100)).value();
  EXPECT_DEATH(map.InsertRun({PageIndex(100), PageCount(1)}),
               "PageMap::InsertRun of page 100 in a map of 100 pages");
  EXPECT_DEATH(map.InsertRun({PageIndex(99), PageCount(2)}), "InsertRun");
  EXPECT_DEATH(map.InsertRun({PageIndex(1), PageCount(~uint64_t{0})}),
               "InsertRun");
}

}  // namespace
}  // namespace firsttouch
