#include "firsttouch/serve/early_pages.h"

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uintptr_t kLow = 64 * kMiB;
constexpr uintptr_t kHigh = 1024 * kMiB;

AddressMap Map(const std::vector<GuestRegion>& regions) {
  absl::StatusOr<AddressMap> map = AddressMap::Create(regions);
  if (!map.ok()) std::abort();
  return *std::move(map);
}

// The image's first MiB is at kHigh, its second one at kLow.
AddressMap TwoRegions() {
  return Map({{.start = kHigh, .bytes = kMiB, .image_offset_bytes = 0},
              {.start = kLow, .bytes = kMiB, .image_offset_bytes = kMiB}});
}

PageMap Stored(uint64_t pages, const std::vector<PageRun>& runs) {
  absl::StatusOr<PageMap> stored = PageMap::Create(PageCount(pages));
  if (!stored.ok()) std::abort();
  for (const PageRun& run : runs) stored->InsertRun(run);
  return *std::move(stored);
}

PageRun Pages(uint64_t first, uint64_t pages) {
  return {PageIndex(first), PageCount(pages)};
}

std::shared_ptr<const std::vector<PageRun>> Runs(std::vector<PageRun> runs) {
  return std::make_shared<std::vector<PageRun>>(std::move(runs));
}

// From where, and how many pages.
struct Given {
  uintptr_t start = 0;
  uint64_t pages = 0;
  bool of_the_rest = false;
  friend bool operator==(const Given&, const Given&) = default;
};

std::optional<Given> NextOf(EarlyPages& early, const AddressMap& map,
                            const PageMap& stored, bool rest) {
  const std::optional<EarlyPages::Some> some = early.Next(map, stored, rest);
  if (!some.has_value()) return std::nullopt;
  EXPECT_LE(some->piece.start, some->start);
  EXPECT_LE(some->end, some->piece.end);
  return Given{some->start, (some->end - some->start) / kPageBytes,
               some->of_the_rest};
}

std::vector<Given> AllOf(EarlyPages& early, const AddressMap& map,
                         const PageMap& stored, bool rest) {
  std::vector<Given> all;
  while (std::optional<Given> given = NextOf(early, map, stored, rest)) {
    all.push_back(*given);
    if (all.size() > 1000) break;
  }
  return all;
}

TEST(EarlyPages, ComeInTheOrderOfTheRunsWhereverTheyAre) {
  const AddressMap map = TwoRegions();
  EarlyPages early;
  // The second run lies in both regions.
  early.Plan(Runs({Pages(300, 2), Pages(254, 4), Pages(9, 1)}), map);
  EXPECT_FALSE(early.first_ones_are_done());
  EXPECT_THAT(AllOf(early, map, Stored(512, {}), /*rest=*/false),
              ElementsAre(Given{kLow + 44 * kPageBytes, 2}, Given{kLow, 2},
                          Given{kHigh + 254 * kPageBytes, 2},
                          Given{kHigh + 9 * kPageBytes, 1}));
  EXPECT_TRUE(early.first_ones_are_done());
}

TEST(EarlyPages, ShareTheirRunsAndLetGoOfThemInTheEnd) {
  const AddressMap map = TwoRegions();
  const auto runs = Runs({Pages(3, 1), Pages(300, 1)});
  EarlyPages one;
  EarlyPages other;
  one.Plan(runs, map);
  other.Plan(runs, map);
  EXPECT_EQ(runs.use_count(), 3);
  const auto both = ElementsAre(Given{kHigh + 3 * kPageBytes, 1},
                                Given{kLow + 44 * kPageBytes, 1});
  EXPECT_THAT(AllOf(one, map, Stored(512, {}), /*rest=*/false), both);
  EXPECT_EQ(runs.use_count(), 2);
  EXPECT_THAT(AllOf(other, map, Stored(512, {}), /*rest=*/false), both);
  EXPECT_EQ(runs.use_count(), 1);
}

TEST(EarlyPages, OutsideOfEveryRegionAreLeftOut) {
  const AddressMap map = TwoRegions();
  EarlyPages early;
  early.Plan(Runs({Pages(510, 100), Pages(4000, 1)}), map);
  EXPECT_THAT(AllOf(early, map, Stored(512, {}), /*rest=*/false),
              ElementsAre(Given{kLow + 254 * kPageBytes, 2}));
}

// Parts that several threads place, and that do not keep each other waiting.
TEST(EarlyPages, AreAtMost64KiBAtATime) {
  const AddressMap map = TwoRegions();
  EarlyPages early;
  early.Plan(Runs({Pages(0, 34)}), map);
  EXPECT_THAT(AllOf(early, map, Stored(512, {}), /*rest=*/false),
              ElementsAre(Given{kHigh, 16}, Given{kHigh + 16 * kPageBytes, 16},
                          Given{kHigh + 32 * kPageBytes, 2}));
}

TEST(EarlyPages, ThatAreGivenBackOrGoneMeanwhileAreSkipped) {
  AddressMap map = TwoRegions();
  EarlyPages early;
  early.Plan(Runs({Pages(0, 8), Pages(256, 4)}), map);
  map.Free(kHigh + 2 * kPageBytes, kHigh + 4 * kPageBytes);
  map.Unmap(kHigh + 6 * kPageBytes, kHigh + 8 * kPageBytes);
  map.Unmap(kLow, kLow + kMiB);
  EXPECT_THAT(AllOf(early, map, Stored(512, {}), /*rest=*/false),
              ElementsAre(Given{kHigh, 2}, Given{kHigh + 4 * kPageBytes, 2}));
}

TEST(EarlyPages, OfHugePagesAreWholeOnes) {
  const AddressMap map = Map({{.start = kHigh,
                               .bytes = 3 * kHugePageBytes,
                               .page_bytes = kHugePageBytes}});
  EarlyPages early;
  early.Plan(Runs({Pages(600, 1)}), map);
  EXPECT_THAT(AllOf(early, map, Stored(1536, {Pages(1030, 1)}), /*rest=*/true),
              ElementsAre(Given{kHigh + kHugePageBytes, 512},
                          Given{kHigh + 2 * kHugePageBytes, 512, true}));
}

TEST(EarlyPages, TheRestIsWhatTheImageStoresAndNothingElse) {
  AddressMap map = TwoRegions();
  map.Free(kHigh + 20 * kPageBytes, kHigh + 22 * kPageBytes);
  const PageMap stored =
      Stored(512, {Pages(19, 5), Pages(256, 18), Pages(511, 1)});
  EarlyPages early;
  EXPECT_THAT(AllOf(early, map, stored, /*rest=*/false), IsEmpty());
  EXPECT_FALSE(early.rest_is_done());
  const auto all =
      ElementsAre(Given{kLow, 16, true}, Given{kLow + 16 * kPageBytes, 2, true},
                  Given{kLow + 255 * kPageBytes, 1, true},
                  Given{kHigh + 19 * kPageBytes, 1, true},
                  Given{kHigh + 22 * kPageBytes, 2, true});
  EXPECT_THAT(AllOf(early, map, stored, /*rest=*/true), all);
  EXPECT_TRUE(early.rest_is_done());
  EXPECT_THAT(AllOf(early, map, stored, /*rest=*/true), IsEmpty());
  early.RestartRest();
  EXPECT_THAT(AllOf(early, map, stored, /*rest=*/true), all);
  early.RestartRest();
  early.EndRest();
  EXPECT_THAT(AllOf(early, map, stored, /*rest=*/true), IsEmpty());
}

TEST(EarlyPages, ThatCouldNotBePlacedComeNextAgain) {
  const AddressMap map = TwoRegions();
  const PageMap stored = Stored(512, {Pages(0, 1), Pages(3, 1)});
  EarlyPages early;
  early.Plan(Runs({Pages(0, 20), Pages(100, 1)}), map);
  std::optional<EarlyPages::Some> some = early.Next(map, stored, true);
  ASSERT_TRUE(some.has_value());
  early.PutBack(*some);
  EXPECT_EQ(NextOf(early, map, stored, true), (Given{kHigh, 16}));
  EXPECT_EQ(NextOf(early, map, stored, true),
            (Given{kHigh + 16 * kPageBytes, 4}));
  EXPECT_EQ(NextOf(early, map, stored, true),
            (Given{kHigh + 100 * kPageBytes, 1}));
  const std::optional<EarlyPages::Some> rest = early.Next(map, stored, true);
  ASSERT_TRUE(rest.has_value() && rest->of_the_rest);
  // One that was not given last, and when all others have been.
  EXPECT_TRUE(early.first_ones_are_done());
  early.PutBack(*some);
  EXPECT_FALSE(early.first_ones_are_done());
  EXPECT_EQ(NextOf(early, map, stored, true), (Given{kHigh, 16}));
  early.PutBack(*rest);
  EXPECT_THAT(AllOf(early, map, stored, true),
              ElementsAre(Given{kHigh, 1, true},
                          Given{kHigh + 3 * kPageBytes, 1, true}));
}

}  // namespace
}  // namespace firsttouch
