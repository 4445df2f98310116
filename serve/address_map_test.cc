#include "firsttouch/serve/address_map.h"

#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;

constexpr uintptr_t kBase = 0x10000000;

AddressMap MapOf(std::vector<GuestRegion> regions) {
  absl::StatusOr<AddressMap> map = AddressMap::Create(regions);
  EXPECT_TRUE(map.ok()) << map.status();
  return *std::move(map);
}

std::string Refusal(std::vector<GuestRegion> regions) {
  absl::StatusOr<AddressMap> map = AddressMap::Create(regions);
  EXPECT_FALSE(map.ok());
  EXPECT_EQ(map.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(map.status().message());
}

TEST(AddressMapTest, RegionsThatCannotBeAreRefusedByName) {
  EXPECT_THAT(Refusal({}), HasSubstr("0 regions; a guest has 1 to 256"));
  EXPECT_THAT(Refusal({{.start = kBase}}),
              HasSubstr("region 0: it has no byte"));
  EXPECT_THAT(
      Refusal({{.start = kBase + 1, .bytes = 4096}}),
      HasSubstr("its start 0x10000001 is no multiple of its pages' 4096"));
  EXPECT_THAT(Refusal({{.start = kBase, .bytes = 4097}}),
              HasSubstr("its size 0x1001"));
  EXPECT_THAT(
      Refusal({{.start = kBase, .bytes = 4096, .image_offset_bytes = 1}}),
      HasSubstr("its offset 0x1"));
  EXPECT_THAT(Refusal({{.start = kBase, .bytes = 4096, .page_bytes = 8192}}),
              HasSubstr("pages of 8192 bytes"));
  EXPECT_THAT(
      Refusal({{.start = kBase, .bytes = 4096, .page_bytes = 2 << 20}}),
      HasSubstr("its size 0x1000 is no multiple of its pages' 2097152"));
  EXPECT_THAT(Refusal({{.start = kBase, .bytes = ~uint64_t{4095}}}),
              HasSubstr("does not lie in a process' memory"));
  EXPECT_THAT(Refusal({{.start = ~uintptr_t{4095}, .bytes = 4096}}),
              HasSubstr("does not lie in a process' memory"));
  EXPECT_THAT(Refusal({{.start = kBase,
                        .bytes = 8192,
                        .image_offset_bytes = ~uint64_t{4095}}}),
              HasSubstr("exceeds 64 bits"));
  EXPECT_THAT(Refusal({{.start = kBase, .bytes = 8192},
                       {.start = kBase + 4096, .bytes = 4096}}),
              HasSubstr("regions 0 and 1 overlap"));
  EXPECT_THAT(Refusal(std::vector<GuestRegion>(257)), HasSubstr("257 regions"));
}

TEST(AddressMapTest, PagesThatWereGivenBackAreZeroAndNoOthers) {
  AddressMap map = MapOf({{.start = kBase, .bytes = 8 * 4096}});
  map.Free(kBase + 2 * 4096, kBase + 4 * 4096);
  EXPECT_FALSE(map.Find(kBase + 4096)->freed);
  EXPECT_TRUE(map.Find(kBase + 2 * 4096)->freed);
  EXPECT_TRUE(map.Find(kBase + 4 * 4096 - 1)->freed);
  EXPECT_FALSE(map.Find(kBase + 4 * 4096)->freed);
  EXPECT_EQ(map.Find(kBase + 5 * 4096)->OffsetOf(kBase + 5 * 4096), 5u * 4096);
  EXPECT_EQ(map.pieces(), 3u);
  map.Free(kBase, kBase + 8 * 4096);
  EXPECT_EQ(map.pieces(), 1u) << "neighbours that continue are one piece";
}

TEST(AddressMapTest, AHugePageIsGivenBackInWholeOrNotAtAll) {
  AddressMap map = MapOf({{.start = 16 * kHugePageBytes,
                           .bytes = 4 * kHugePageBytes,
                           .page_bytes = kHugePageBytes}});
  map.Free(16 * kHugePageBytes + 4096, 18 * kHugePageBytes + 4096);
  EXPECT_FALSE(map.Find(16 * kHugePageBytes)->freed);
  EXPECT_TRUE(map.Find(17 * kHugePageBytes)->freed);
  EXPECT_FALSE(map.Find(18 * kHugePageBytes)->freed);
}

TEST(AddressMapTest, NextCutsThePieceThatHasTheAddress) {
  AddressMap map = MapOf({{.start = kBase, .bytes = 4 * 4096}});
  const std::optional<AddressMap::Piece> piece = map.Next(kBase + 4096);
  ASSERT_TRUE(piece.has_value());
  EXPECT_EQ(piece->start, kBase + 4096);
  EXPECT_EQ(piece->image_offset_bytes, 4096u);
  EXPECT_EQ(map.Next(0)->start, kBase);
  EXPECT_FALSE(map.Next(kBase + 4 * 4096).has_value());
}

// Against a plain model: for each page of a small address space, where it came
// from in the image, and whether it was given back.
TEST(AddressMapTest, AnySeriesOfEventsGivesWhatAPlainModelHas) {
  constexpr uint64_t kPages = 48;
  const auto at = [](uint64_t page) { return kBase + page * kPageBytes; };
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    AddressMap map = MapOf({{.start = at(4), .bytes = 12 * kPageBytes},
                            {.start = at(20),
                             .bytes = 8 * kPageBytes,
                             .image_offset_bytes = 12 * kPageBytes}});
    std::map<uint64_t, std::pair<uint64_t, bool>> model;
    for (uint64_t i = 0; i < 12; ++i) model[4 + i] = {i, false};
    for (uint64_t i = 0; i < 8; ++i) model[20 + i] = {12 + i, false};
    for (int step = 0; step < 12; ++step) {
      const uint64_t first = random() % 40;
      const uint64_t pages = 1 + random() % 8;
      switch (random() % 3) {
        case 0:
          map.Free(at(first), at(first + pages));
          for (uint64_t p = first; p < first + pages; ++p) {
            if (model.contains(p)) model[p].second = true;
          }
          break;
        case 1:
          map.Unmap(at(first), at(first + pages));
          for (uint64_t p = first; p < first + pages; ++p) model.erase(p);
          break;
        default: {
          // mremap(2) refuses ranges that overlap.
          const uint64_t to = random() % 40;
          if (to < first + pages && first < to + pages) break;
          map.Move(at(first), at(to), pages * kPageBytes);
          for (uint64_t p = 0; p < pages; ++p) {
            model.erase(to + p);
            if (auto node = model.extract(first + p)) {
              node.key() = to + p;
              model.insert(std::move(node));
            }
          }
        }
      }
      for (uint64_t p = 0; p < kPages; ++p) {
        const std::optional<AddressMap::Piece> piece = map.Find(at(p));
        ASSERT_EQ(piece.has_value(), model.contains(p)) << "page " << p;
        if (!piece.has_value()) continue;
        ASSERT_EQ(piece->OffsetOf(at(p)), model[p].first * kPageBytes);
        ASSERT_EQ(piece->freed, model[p].second);
      }
      ASSERT_EQ(map.bytes(), model.size() * kPageBytes);
    }
  }
}

TEST(AddressMap, IsMadeOfThePiecesOfAnother) {
  constexpr uintptr_t kAt = uintptr_t{1} << 40;
  absl::StatusOr<AddressMap> map =
      AddressMap::Create({{{.start = kAt, .bytes = 4096 * kPageBytes}}});
  ASSERT_TRUE(map.ok());
  for (uint64_t page = 0; page < 4096; page += 2) {
    map->Free(kAt + page * kPageBytes, kAt + (page + 1) * kPageBytes);
  }
  std::vector<AddressMap::Piece> pieces;
  for (std::optional<AddressMap::Piece> piece = map->Next(0); piece.has_value();
       piece = map->Next(piece->end)) {
    pieces.insert(pieces.begin(), *piece);
  }
  EXPECT_EQ(pieces.size(), 4096u) << "more than a guest may have regions";
  absl::StatusOr<AddressMap> again = AddressMap::FromPieces(pieces);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->bytes(), map->bytes());
  EXPECT_TRUE(again->Find(kAt)->freed);
  EXPECT_FALSE(again->Find(kAt + kPageBytes)->freed);
  EXPECT_EQ(again->Find(kAt + kPageBytes)->image_offset_bytes, kPageBytes);

  pieces.push_back(pieces.front());
  EXPECT_NE(AddressMap::FromPieces(pieces).status().ToString().find(
                "region 4096 overlaps another"),
            std::string::npos);
  pieces = {{.start = kAt + 1, .end = kAt + kPageBytes}};
  EXPECT_FALSE(AddressMap::FromPieces(pieces).ok());
}

}  // namespace
}  // namespace firsttouch
