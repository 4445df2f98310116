#include "firsttouch/tools/pooldump/snapshot/locate.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

constexpr uint64_t kBase = uint64_t{0x700000000000};
constexpr uint64_t kPage = 4096;

// Two instances of two memories of 10 pages; 1 page of guard in front, 3 behind
// each.
PoolLayout Layout() {
  return *PoolLayout::Compute({.instances = 2,
                               .memories_per_instance = 2,
                               .max_memory_bytes = 10 * kPage,
                               .guard_before_bytes = kPage,
                               .guard_after_bytes = 3 * kPage});
}

TEST(LocateInLayoutTest, EveryPageIsWhatTheLayoutSaysItIs) {
  const PoolLayout layout = Layout();
  for (const LayoutRange& range : layout.Ranges()) {
    for (uint64_t at = 0; at < range.bytes; at += kPage / 2) {
      const Location where =
          LocateInLayout(layout, kBase, kBase + range.offset_bytes + at);
      EXPECT_EQ(where.slot(), range.slot.value());
      EXPECT_EQ(where.instance(), range.slot.value() / 2);
      EXPECT_EQ(where.memory(), range.slot.value() % 2);
      switch (range.kind) {
        case LayoutRangeKind::kGuardBefore:
          EXPECT_EQ(where.place(), Location::GUARD_BEFORE);
          EXPECT_EQ(where.offset_bytes(),
                    static_cast<int64_t>(at) - static_cast<int64_t>(kPage));
          break;
        case LayoutRangeKind::kMemory:
          EXPECT_EQ(where.place(), Location::MEMORY);
          EXPECT_EQ(where.offset_bytes(), static_cast<int64_t>(at));
          EXPECT_EQ(where.page(), at / kPage);
          break;
        case LayoutRangeKind::kGuardAfter:
          // The last page in front of the next memory can be meant as below it.
          EXPECT_EQ(where.place(), at >= 2 * kPage && range.slot.value() < 3
                                       ? Location::GUARD_UNOWNED
                                       : Location::GUARD_AFTER);
          EXPECT_EQ(where.offset_bytes(),
                    static_cast<int64_t>(10 * kPage + at));
          break;
      }
      EXPECT_FALSE(where.has_slot());
    }
  }
}

TEST(LocateInLayoutTest, WhatLiesOutsideIsInNoPool) {
  const PoolLayout layout = Layout();
  for (uint64_t address : {uint64_t{0}, kBase - 1,
                           kBase + layout.reservation_bytes(), ~uint64_t{0}}) {
    const Location where = LocateInLayout(layout, kBase, address);
    EXPECT_EQ(where.place(), Location::NO_POOL);
    EXPECT_EQ(where.address(), address);
  }
  // As offsets.
  EXPECT_EQ(LocateInLayout(layout, 0, kPage).place(), Location::MEMORY);
}

}  // namespace
}  // namespace firsttouch::pooldump
