#include "firsttouch/locator/locator.h"

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/locator/table.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kWasmPage = 65536;
constexpr uint64_t kGib4 = kLocatorChunkBytes;

// Nothing is mapped at these addresses; the locator only computes.
constexpr uintptr_t kBase = 0x1234 * kGib4;

std::string Text(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

// A pool entry with its own sizes.
class TestPool {
 public:
  TestPool(uintptr_t base, uint32_t instances, uint32_t memories,
           uint64_t max_memory, uint64_t guard_before, uint64_t guard_after,
           uint32_t id = 7)
      : sizes_(new Size[instances * memories]) {
    entry.base = base;
    entry.first_memory_offset_bytes = guard_before;
    entry.slot_stride_bytes = max_memory + guard_after;
    entry.max_memory_bytes = max_memory;
    entry.unowned_guard_bytes = guard_before;
    entry.slots = instances * memories;
    entry.memories_per_instance = memories;
    entry.bytes = guard_before + entry.slots * entry.slot_stride_bytes;
    entry.first_size_bytes = &sizes_[0].bytes;
    entry.size_stride_bytes = sizeof(Size);
    entry.pool_id = id;
  }
  ~TestPool() { UnregisterPool(&entry); }

  void SetSize(uint32_t slot, uint64_t bytes) { sizes_[slot].bytes = bytes; }

  PoolEntry entry;

 private:
  // The size shares its cache line with other fields, as in a real slot's
  // record.
  struct Size {
    uint64_t before = 0xdead;
    std::atomic<uint64_t> bytes{0};
    uint64_t behind = 0xdead;
  };
  std::unique_ptr<Size[]> sizes_;
};

// Three instances of two memories, without guards; two of at most ten Wasm
// pages are accessible. Checks each number of each location.
TEST(LocatorTest, ThreeInstancesOfTwoMemories) {
  TestPool pool(kBase, 3, 2, 10 * kWasmPage, 0, 0);
  for (uint32_t slot = 0; slot < 6; ++slot) pool.SetSize(slot, 2 * kWasmPage);
  ASSERT_TRUE(RegisterPool(&pool.entry).ok());

  EXPECT_EQ(pool.entry.bytes, 60 * kWasmPage);
  EXPECT_EQ(pool.entry.slot_stride_bytes, 10 * kWasmPage);
  EXPECT_EQ(pool.entry.slots, 6u);

  // Just outside, on both sides, and far away.
  for (uintptr_t outside :
       {uintptr_t{0}, uintptr_t{1}, kBase - 1, kBase + 60 * kWasmPage,
        kBase + 60 * kWasmPage + 1, kBase + kGib4 - 1, kBase + kGib4,
        uintptr_t{1} << 47, ~uintptr_t{0}}) {
    EXPECT_EQ(FindPool(outside), nullptr) << outside;
    const Location at = Locate(outside);
    EXPECT_EQ(at.pool, nullptr) << outside;
    EXPECT_EQ(at.place, Place::kNoPool);
    EXPECT_EQ(at.slot, 0u);
    EXPECT_EQ(at.instance, 0u);
    EXPECT_EQ(at.memory, 0u);
    EXPECT_EQ(at.offset_bytes, 0);
    EXPECT_EQ(at.page, 0u);
    EXPECT_EQ(at.size_bytes, 0u);
    EXPECT_FALSE(at.in_bounds);
    EXPECT_FALSE(at.page_in_bounds);
  }

  struct Probe {
    uint64_t offset;
    uint64_t page;
    bool in_bounds;
  };
  const Probe probes[] = {
      {0, 0, true},                      // the first byte
      {10000, 2, true},                  // in the first Wasm page
      {1024 + kWasmPage, 16, true},      // in the second
      {2 * kWasmPage - 1, 31, true},     // the last accessible byte
      {2 * kWasmPage, 32, false},        // the first that is not
      {10 + 9 * kWasmPage, 144, false},  // in the tenth Wasm page
      {10 * kWasmPage - 1, 159, false},  // the last of the bound
  };
  for (uint32_t instance = 0; instance < 3; ++instance) {
    for (uint32_t memory = 0; memory < 2; ++memory) {
      const uintptr_t start =
          kBase + instance * (20 * kWasmPage) + memory * (10 * kWasmPage);
      for (const Probe& probe : probes) {
        SCOPED_TRACE(absl::StrCat("instance ", instance, " memory ", memory,
                                  " offset ", probe.offset));
        const uintptr_t address = start + probe.offset;
        EXPECT_EQ(FindPool(address), &pool.entry);
        const Location at = Locate(address);
        EXPECT_EQ(at.pool, &pool.entry);
        EXPECT_EQ(at.place, Place::kMemory);
        EXPECT_EQ(at.slot, instance * 2 + memory);
        EXPECT_EQ(at.instance, instance);
        EXPECT_EQ(at.memory, memory);
        EXPECT_EQ(at.offset_bytes, static_cast<int64_t>(probe.offset));
        EXPECT_EQ(at.page, probe.page);
        EXPECT_EQ(at.size_bytes, 2 * kWasmPage);
        EXPECT_EQ(at.in_bounds, probe.in_bounds);
        EXPECT_EQ(at.page_in_bounds, probe.in_bounds);
      }
    }
  }
}

TEST(LocatorTest, GuardsBelongToTheOnlyMemoryThatReachesThemOrToNobody) {
  TestPool pool(kBase, 2, 1, 8 * kPage, 3 * kPage, 5 * kPage);
  pool.SetSize(0, 8 * kPage);
  pool.SetSize(1, kPage);
  ASSERT_TRUE(RegisterPool(&pool.entry).ok());

  Location at = Locate(kBase);
  EXPECT_EQ(at.pool, &pool.entry);
  EXPECT_EQ(at.place, Place::kGuardBefore);
  EXPECT_EQ(at.slot, 0u);
  EXPECT_EQ(at.instance, 0u);
  EXPECT_EQ(at.memory, 0u);
  EXPECT_EQ(at.offset_bytes, -static_cast<int64_t>(3 * kPage));
  EXPECT_EQ(at.page, 0u);
  EXPECT_EQ(at.size_bytes, 8 * kPage);
  EXPECT_FALSE(at.in_bounds);
  EXPECT_FALSE(at.page_in_bounds);

  at = Locate(kBase + 3 * kPage - 1);
  EXPECT_EQ(at.place, Place::kGuardBefore);
  EXPECT_EQ(at.offset_bytes, -1);
  EXPECT_FALSE(at.in_bounds);

  at = Locate(kBase + 3 * kPage);
  EXPECT_EQ(at.place, Place::kMemory);
  EXPECT_EQ(at.offset_bytes, 0);
  EXPECT_TRUE(at.in_bounds);

  // A memory at its maximum ends at the guard.
  at = Locate(kBase + 11 * kPage - 1);
  EXPECT_EQ(at.place, Place::kMemory);
  EXPECT_EQ(at.offset_bytes, static_cast<int64_t>(8 * kPage - 1));
  EXPECT_TRUE(at.in_bounds);
  at = Locate(kBase + 11 * kPage);
  EXPECT_EQ(at.place, Place::kGuardAfter);
  EXPECT_EQ(at.slot, 0u);
  EXPECT_EQ(at.offset_bytes, static_cast<int64_t>(8 * kPage));
  EXPECT_EQ(at.page, 8u);
  EXPECT_EQ(at.size_bytes, 8 * kPage);
  EXPECT_FALSE(at.in_bounds);
  EXPECT_FALSE(at.page_in_bounds);

  // As far above the first memory as the second memory cannot reach downwards.
  at = Locate(kBase + 13 * kPage - 1);
  EXPECT_EQ(at.place, Place::kGuardAfter);
  EXPECT_EQ(at.slot, 0u);
  // From there on to just below the second memory: either may have been meant.
  at = Locate(kBase + 13 * kPage);
  EXPECT_EQ(at.place, Place::kGuardUnowned);
  EXPECT_EQ(at.slot, 0u);
  at = Locate(kBase + 16 * kPage - 1);
  EXPECT_EQ(at.place, Place::kGuardUnowned);
  EXPECT_EQ(at.slot, 0u);
  EXPECT_EQ(at.offset_bytes, static_cast<int64_t>(13 * kPage - 1));
  EXPECT_FALSE(at.in_bounds);
  EXPECT_FALSE(at.page_in_bounds);
  at = Locate(kBase + 16 * kPage);
  EXPECT_EQ(at.place, Place::kMemory);
  EXPECT_EQ(at.slot, 1u);
  EXPECT_EQ(at.offset_bytes, 0);
  EXPECT_EQ(at.size_bytes, kPage);

  // The last byte of the pool, and the first byte behind it.
  at = Locate(kBase + 29 * kPage - 1);
  EXPECT_EQ(at.place, Place::kGuardAfter);
  EXPECT_EQ(at.slot, 1u);
  EXPECT_EQ(Locate(kBase + 29 * kPage).place, Place::kNoPool);
}

TEST(LocatorTest, SizesChangeAtAnyTimeAndMayEndInsideAPage) {
  TestPool pool(kBase, 1, 1, 16 * kPage, 0, kPage);
  ASSERT_TRUE(RegisterPool(&pool.entry).ok());

  // A size of zero: every touch is out of bounds.
  Location at = Locate(kBase);
  EXPECT_EQ(at.place, Place::kMemory);
  EXPECT_FALSE(at.in_bounds);
  EXPECT_FALSE(at.page_in_bounds);

  pool.SetSize(0, 5003);
  at = Locate(kBase + 5002);
  EXPECT_TRUE(at.in_bounds);
  EXPECT_TRUE(at.page_in_bounds);
  EXPECT_EQ(at.page, 1u);
  EXPECT_EQ(at.size_bytes, 5003u);
  // The rest of the last page is out of bounds, but the page itself is not.
  for (uint64_t offset : {uint64_t{5003}, 2 * kPage - 1}) {
    at = Locate(kBase + offset);
    EXPECT_FALSE(at.in_bounds) << offset;
    EXPECT_TRUE(at.page_in_bounds) << offset;
    EXPECT_EQ(at.page, 1u);
  }
  at = Locate(kBase + 2 * kPage);
  EXPECT_FALSE(at.in_bounds);
  EXPECT_FALSE(at.page_in_bounds);

  pool.SetSize(0, 2 * kPage);
  EXPECT_TRUE(Locate(kBase + 2 * kPage - 1).in_bounds);
  EXPECT_FALSE(Locate(kBase + 2 * kPage).page_in_bounds);
}

// The location that Locate() must return, found by walking through the layout.
Location Walk(const PoolEntry& entry, const std::vector<uint64_t>& sizes,
              uintptr_t address) {
  Location at;
  if (address < entry.base || address >= entry.base + entry.bytes) return at;
  at.pool = &entry;
  uintptr_t memory_start = entry.base + entry.first_memory_offset_bytes;
  if (address < memory_start) {
    at.place = Place::kGuardBefore;
    at.offset_bytes = -static_cast<int64_t>(memory_start - address);
    at.size_bytes = sizes[0];
    return at;
  }
  for (uint32_t instance = 0;; ++instance) {
    for (uint32_t memory = 0; memory < entry.memories_per_instance; ++memory) {
      const uintptr_t next = memory_start + entry.slot_stride_bytes;
      if (address < next) {
        const uint64_t offset = address - memory_start;
        const uint64_t size = sizes[at.slot];
        at.place = offset < entry.max_memory_bytes ? Place::kMemory
                                                   : Place::kGuardAfter;
        // Below the next memory by no more than what lies below the first
        // memory.
        if (at.place == Place::kGuardAfter && at.slot + 1 < entry.slots &&
            next - address <= entry.first_memory_offset_bytes) {
          at.place = Place::kGuardUnowned;
        }
        at.instance = instance;
        at.memory = memory;
        at.offset_bytes = static_cast<int64_t>(offset);
        for (uint64_t left = offset; left >= kPage; left -= kPage) ++at.page;
        at.size_bytes = size;
        at.in_bounds = offset < size;
        for (uint64_t byte = at.page * kPage; byte < (at.page + 1) * kPage;
             ++byte) {
          if (byte < size) at.page_in_bounds = true;
        }
        return at;
      }
      memory_start = next;
      ++at.slot;
    }
  }
}

void ExpectSame(const Location& got, const Location& expected) {
  EXPECT_EQ(got.pool, expected.pool);
  EXPECT_EQ(got.place, expected.place);
  EXPECT_EQ(got.slot, expected.slot);
  EXPECT_EQ(got.instance, expected.instance);
  EXPECT_EQ(got.memory, expected.memory);
  EXPECT_EQ(got.offset_bytes, expected.offset_bytes);
  EXPECT_EQ(got.page, expected.page);
  EXPECT_EQ(got.size_bytes, expected.size_bytes);
  EXPECT_EQ(got.in_bounds, expected.in_bounds);
  EXPECT_EQ(got.page_in_bounds, expected.page_in_bounds);
}

TEST(LocatorTest, AgreesWithAWalkThroughAllSmallLayouts) {
  std::mt19937_64 random(47);
  uint64_t checked = 0;
  for (uint32_t instances = 1; instances <= 3; ++instances) {
    for (uint32_t memories = 1; memories <= 3; ++memories) {
      for (uint64_t max_pages = 1; max_pages <= 3; ++max_pages) {
        for (uint64_t after = 0; after <= 2; ++after) {
          for (uint64_t before = 0; before <= after; ++before) {
            TestPool pool(kBase, instances, memories, max_pages * kPage,
                          before * kPage, after * kPage);
            std::vector<uint64_t> sizes(instances * memories);
            for (uint32_t slot = 0; slot < sizes.size(); ++slot) {
              sizes[slot] = random() % (max_pages * kPage + 1);
              if (random() % 4 == 0) sizes[slot] = max_pages * kPage;
              if (random() % 4 == 0) sizes[slot] -= sizes[slot] % kPage;
              pool.SetSize(slot, sizes[slot]);
            }
            ASSERT_TRUE(RegisterPool(&pool.entry).ok());
            // Both sides of every page boundary, and one byte inside.
            for (uintptr_t page = kBase - kPage;
                 page <= kBase + pool.entry.bytes + kPage; page += kPage) {
              for (uintptr_t address :
                   {page - 1, page, page + 1, page + random() % kPage}) {
                SCOPED_TRACE(absl::StrCat(instances, " instances of ", memories,
                                          ", ", max_pages, " pages, guards ",
                                          before, " and ", after, ", at ",
                                          address - kBase));
                const Location expected = Walk(pool.entry, sizes, address);
                ExpectSame(Locate(address), expected);
                ExpectSame(LocateIn(pool.entry, address), expected);
                EXPECT_EQ(FindPool(address), expected.pool);
                if (HasFailure()) return;
                ++checked;
              }
            }
          }
        }
      }
    }
  }
  EXPECT_GT(checked, 5'000u);
}

// Compares division by reciprocals with real division.
TEST(LocatorTest, DividesExactlyForAnyStride) {
  std::mt19937_64 random(2026);
  TestPool pool(kBase, 1, 1, kPage, 0, 0);
  pool.entry.size_stride_bytes = 0;  // one size for all
  int checked = 0;
  while (checked < 20'000) {
    PoolEntry entry = pool.entry;
    const uint64_t stride_pages =
        1 + (random() >> (29 + random() % 34));  // 1 to 2^35
    const uint64_t most = ((uint64_t{1} << 47) - kBase) / kPage / stride_pages;
    if (most == 0) continue;
    entry.slot_stride_bytes = stride_pages * kPage;
    entry.max_memory_bytes = kPage * (1 + random() % stride_pages);
    entry.memories_per_instance = 1 + random() % 7;
    uint64_t slots =
        std::min<uint64_t>(most, std::numeric_limits<uint32_t>::max());
    if (random() % 2 == 0) slots = 1 + random() % slots;
    slots -= slots % entry.memories_per_instance;
    if (slots == 0) continue;
    entry.slots = static_cast<uint32_t>(slots);
    entry.bytes = slots * entry.slot_stride_bytes;
    ASSERT_TRUE(PreparePoolEntry(&entry).ok()) << PreparePoolEntry(&entry);
    for (int i = 0; i < 8; ++i) {
      const uint64_t slot = i == 0 ? slots - 1 : random() % slots;
      const uint64_t offset = i < 3 ? (i == 1 ? 0 : entry.slot_stride_bytes - 1)
                                    : random() % entry.slot_stride_bytes;
      const Location at =
          LocateIn(entry, entry.base + slot * entry.slot_stride_bytes + offset);
      ASSERT_EQ(at.slot, slot);
      ASSERT_EQ(at.offset_bytes, static_cast<int64_t>(offset));
      ASSERT_EQ(at.instance, slot / entry.memories_per_instance);
      ASSERT_EQ(at.memory, slot % entry.memories_per_instance);
      ASSERT_EQ(at.place, offset < entry.max_memory_bytes ? Place::kMemory
                                                          : Place::kGuardAfter);
    }
    ++checked;
  }
}

TEST(LocatorTest, PoolsOfManyChunks) {
  // 9 GiB: the third chunk is the pool's for 1 GiB.
  TestPool wide(kBase, 9, 1, uint64_t{1} << 30, 0, 0, 1);
  TestPool next(kBase + 3 * kGib4, 1, 1, kPage, 0, 0, 2);
  ASSERT_TRUE(RegisterPool(&wide.entry).ok());
  ASSERT_TRUE(RegisterPool(&next.entry).ok());
  EXPECT_EQ(RegisteredPools(), 2u);
  EXPECT_EQ(FindPool(kBase + kGib4), &wide.entry);
  EXPECT_EQ(Locate(kBase + kGib4).slot, 4u);
  EXPECT_EQ(FindPool(kBase + (uint64_t{9} << 30) - 1), &wide.entry);
  EXPECT_EQ(FindPool(kBase + (uint64_t{9} << 30)), nullptr);
  EXPECT_EQ(FindPool(kBase + 3 * kGib4), &next.entry);
  EXPECT_EQ(Locate(kBase + 3 * kGib4).pool->pool_id, 2u);

  UnregisterPool(&wide.entry);
  EXPECT_EQ(FindPool(kBase), nullptr);
  EXPECT_EQ(FindPool(kBase + kGib4), nullptr);
  EXPECT_EQ(FindPool(kBase + 2 * kGib4), nullptr);
  EXPECT_EQ(FindPool(kBase + 3 * kGib4), &next.entry);
  UnregisterPool(&wide.entry);  // nothing happens
  EXPECT_EQ(RegisteredPools(), 1u);
  UnregisterPool(&next.entry);
  EXPECT_EQ(RegisteredPools(), 0u);
}

TEST(LocatorTest, TheWholeAddressSpace) {
  const uintptr_t last = (uintptr_t{1} << 47) - kGib4;
  TestPool low(kGib4, 1, 1, kGib4, 0, 0, 1);
  TestPool high(last, 1, 1, kGib4, 0, 0, 2);
  ASSERT_TRUE(RegisterPool(&low.entry).ok());
  ASSERT_TRUE(RegisterPool(&high.entry).ok());
  EXPECT_EQ(FindPool(kGib4 - 1), nullptr);
  EXPECT_EQ(FindPool(kGib4), &low.entry);
  EXPECT_EQ(FindPool((uintptr_t{1} << 47) - 1), &high.entry);
  EXPECT_EQ(FindPool(uintptr_t{1} << 47), nullptr);
}

TEST(LocatorTest, TwoThousandPools) {
  std::vector<std::unique_ptr<TestPool>> pools;
  for (uint32_t i = 0; i < 2000; ++i) {
    pools.push_back(std::make_unique<TestPool>((i + 1) * 2 * kGib4, 2, 1,
                                               kWasmPage, 0, kWasmPage, i));
    ASSERT_TRUE(RegisterPool(&pools.back()->entry).ok());
  }
  EXPECT_EQ(RegisteredPools(), 2000u);
  for (uint32_t i = 0; i < 2000; ++i) {
    const Location at = Locate((i + 1) * 2 * kGib4 + 2 * kWasmPage + 5);
    ASSERT_EQ(at.pool, &pools[i]->entry);
    EXPECT_EQ(at.pool->pool_id, i);
    EXPECT_EQ(at.slot, 1u);
    EXPECT_EQ(at.offset_bytes, 5);
    EXPECT_EQ(FindPool((i + 1) * 2 * kGib4 + kGib4), nullptr);
  }
  pools.clear();
  EXPECT_EQ(RegisteredPools(), 0u);
}

TEST(LocatorTest, OverlapNamesBothPools) {
  TestPool first(kBase, 9, 1, uint64_t{1} << 30, 0, 0, 1);
  TestPool second(kBase - kGib4, 5, 1, uint64_t{1} << 30, 0, 0, 2);
  TestPool third(kBase + 2 * kGib4, 1, 1, kPage, 0, 0, 3);
  ASSERT_TRUE(RegisterPool(&first.entry).ok());
  absl::Status status = RegisterPool(&second.entry);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Text(status),
            "pool 2 [0x123300000000, 0x123440000000) has addresses in the same "
            "4 GiB as pool 1 [0x123400000000, 0x123640000000); unregister that "
            "one before its memory is unmapped, and begin each pool at a "
            "multiple of 4 GiB behind the other's last");
  // Nothing of the pool was registered.
  EXPECT_EQ(FindPool(kBase - kGib4), nullptr);
  EXPECT_EQ(RegisteredPools(), 1u);
  // The addresses differ, the chunk is the same.
  status = RegisterPool(&third.entry);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Text(RegisterPool(&first.entry)),
            "pool 1 [0x123400000000, 0x123640000000) is registered already");
}

TEST(LocatorTest, WrongEntriesNameTheField) {
  const TestPool good(kBase, 2, 2, 4 * kPage, kPage, kPage);
  auto error = [&](auto change) {
    PoolEntry entry = good.entry;
    change(entry);
    const absl::Status status = RegisterPool(&entry);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return Text(status);
  };
  EXPECT_EQ(error([](PoolEntry& e) { e.base = 0; }),
            "pool 7: base 0 is not a multiple of 4 GiB above 0; map the pool "
            "with Reservation");
  EXPECT_EQ(error([](PoolEntry& e) { e.base += kPage; }),
            "pool 7: base 0x123400001000 is not a multiple of 4 GiB above 0; "
            "map the pool with Reservation");
  EXPECT_EQ(error([](PoolEntry& e) { e.base = uintptr_t{1} << 47; }),
            "pool 7: base 0x800000000000 + 86016 bytes is empty or ends above "
            "the 47-bit address space");
  EXPECT_EQ(error([](PoolEntry& e) { e.bytes = ~uint64_t{0}; }),
            "pool 7: base 0x123400000000 + 18446744073709551615 bytes is empty "
            "or ends above the 47-bit address space");
  EXPECT_EQ(error([](PoolEntry& e) { e.bytes = 0; }),
            "pool 7: base 0x123400000000 + 0 bytes is empty or ends above the "
            "47-bit address space");
  EXPECT_EQ(error([](PoolEntry& e) { e.bytes -= kPage; }),
            "pool 7: bytes 81920 is not first_memory_offset_bytes 4096 + slots "
            "4 * slot_stride_bytes 20480");
  EXPECT_EQ(error([](PoolEntry& e) { e.slots = 0; }),
            "pool 7: slots 0 and memories_per_instance 2 must not be 0");
  EXPECT_EQ(error([](PoolEntry& e) { e.memories_per_instance = 3; }),
            "pool 7: slots 4 is not a multiple of memories_per_instance 3");
  EXPECT_EQ(error([](PoolEntry& e) { e.slot_stride_bytes = 100; }),
            "pool 7: slot_stride_bytes 100 is not a multiple of the page size "
            "4096 above 0");
  EXPECT_EQ(error([](PoolEntry& e) { e.first_memory_offset_bytes = 1; }),
            "pool 7: first_memory_offset_bytes 1 is not a multiple of the page "
            "size 4096");
  EXPECT_EQ(error([](PoolEntry& e) { e.max_memory_bytes = 20481; }),
            "pool 7: max_memory_bytes 20481 is not in [1, slot_stride_bytes "
            "20480]");
  EXPECT_EQ(error([](PoolEntry& e) { e.unowned_guard_bytes = kPage + 1; }),
            "pool 7: unowned_guard_bytes 4097 is more than the guard between "
            "two memories, slot_stride_bytes 20480 - max_memory_bytes 16384");
  EXPECT_EQ(error([](PoolEntry& e) { e.first_size_bytes = nullptr; }),
            "pool 7: first_size_bytes is null");
  EXPECT_EQ(error([](PoolEntry& e) { e.size_stride_bytes = 12; }),
            "pool 7: size_stride_bytes 12 is not a multiple of 8");
  EXPECT_EQ(RegisteredPools(), 0u);
}

// The last 4 GiB of a pool are shared with libraries and stacks. A thread that
// faults there may still be reading the pool's record when the Service is
// destroyed.
TEST(LocatorTest, AnAddressBesideAPoolNeverReadsThePoolsOwnEntry) {
  TestPool pool(kBase, 2, 1, kWasmPage, 0, kWasmPage);
  void* const page = mmap(nullptr, kPage, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  auto* const entry = new (page) PoolEntry(pool.entry);
  ASSERT_TRUE(RegisterPool(entry).ok());
  EXPECT_EQ(FindPool(kBase + 5), entry);
  // Inaccessible, as if it were freed: reading it would end this process.
  ASSERT_EQ(mprotect(page, kPage, PROT_NONE), 0);
  EXPECT_EQ(FindPool(kBase + kGib4 - 1), nullptr);
  EXPECT_EQ(Locate(kBase + kGib4 / 2).place, Place::kNoPool);
  ASSERT_EQ(mprotect(page, kPage, PROT_READ | PROT_WRITE), 0);
  UnregisterPool(entry);
  munmap(page, kPage);
}

// As above: a lookup of an address beside a pool may read the pool's record
// when the pool is gone, and while another pool gets the record.
TEST(LocatorTest, ARecordOutlivesItsPoolAndIsUsedAgain) {
  using locator_internal::PoolRecord;
  const auto record_of = [](uintptr_t base) {
    return locator_internal::g_chunks[base / kLocatorChunkBytes].load();
  };
  TestPool first(kBase, 1, 1, kWasmPage, 0, 0, 1);
  ASSERT_TRUE(RegisterPool(&first.entry).ok());
  PoolRecord* const record = record_of(kBase);
  ASSERT_NE(record, nullptr);
  const uint64_t version = record->version.load();
  UnregisterPool(&first.entry);
  // If the record were freed, one of these would take its place.
  std::array<std::unique_ptr<PoolRecord>, 16> others;
  for (std::unique_ptr<PoolRecord>& other : others) {
    other = std::make_unique<PoolRecord>();
    other->version = 77;
  }
  EXPECT_EQ(record->version.load(), version);
  EXPECT_EQ(record->base.load(), kBase);

  TestPool second(kBase + 3 * kGib4, 1, 1, kWasmPage, 0, 0, 2);
  ASSERT_TRUE(RegisterPool(&second.entry).ok());
  EXPECT_EQ(record_of(second.entry.base), record);
  EXPECT_EQ(record->version.load(), version + 2);
  EXPECT_EQ(FindPool(second.entry.base), &second.entry);
  // While a record is written it belongs to no pool.
  record->version.fetch_add(1);
  EXPECT_EQ(FindPool(second.entry.base), nullptr);
  record->version.fetch_sub(1);
  UnregisterPool(&second.entry);
}

// Two pools take turns with one record; a mixture of their numbers would
// contain an address that neither pool contains.
TEST(LocatorTest, ARecordThatIsUsedAgainIsNeverAMixOfTwoPools) {
  // Six GiB, so that the pool ends in the middle of its second chunk.
  TestPool low(kBase, 3, 1, uint64_t{2} << 30, 0, 0, 1);
  TestPool high(kBase + kGib4, 1, 1, kWasmPage, 0, 0, 2);
  // Past both; in [high.base, high.base + low.bytes).
  const uintptr_t beside = kBase + kGib4 + (uint64_t{3} << 30);
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (int i = 0; i < 20'000; ++i) {
      PoolEntry& entry = i % 2 == 0 ? low.entry : high.entry;
      EXPECT_TRUE(RegisterPool(&entry).ok());
      UnregisterPool(&entry);
    }
    done = true;
  });
  uint64_t looks = 0;
  for (; !done.load(); ++looks) {
    EXPECT_EQ(FindPool(beside), nullptr);
    const PoolEntry* const pool = FindPool(kBase + kGib4 + 1);
    EXPECT_TRUE(pool == nullptr || pool == &low.entry || pool == &high.entry);
    if (HasFailure()) break;
  }
  writer.join();
  EXPECT_GT(looks, 0u);
}

// Pools come and go while other threads look up addresses.
TEST(LocatorTest, LooksUpWhilePoolsComeAndGo) {
  TestPool fixed(kBase, 4, 1, kWasmPage, 0, kWasmPage, 1);
  ASSERT_TRUE(RegisterPool(&fixed.entry).ok());
  std::array<std::unique_ptr<TestPool>, 4> passing;
  for (uint32_t i = 0; i < passing.size(); ++i) {
    passing[i] = std::make_unique<TestPool>(kBase + (i + 1) * kGib4, 1, 1,
                                            kPage, 0, 0, i + 2);
  }
  std::atomic<bool> done{false};
  std::vector<std::thread> writers;
  for (int w = 0; w < 2; ++w) {
    writers.emplace_back([&, w] {
      for (int i = 0; i < 2000; ++i) {
        TestPool& pool = *passing[w * 2 + i % 2];
        EXPECT_TRUE(RegisterPool(&pool.entry).ok());
        EXPECT_EQ(FindPool(pool.entry.base), &pool.entry);
        UnregisterPool(&pool.entry);
        EXPECT_EQ(FindPool(pool.entry.base), nullptr);
      }
    });
  }
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&] {
      while (!done.load()) {
        for (uint32_t slot = 0; slot < 4; ++slot) {
          const Location at = Locate(kBase + slot * 2 * kWasmPage + 1);
          EXPECT_EQ(at.pool, &fixed.entry);
          EXPECT_EQ(at.slot, slot);
        }
        for (uint32_t i = 0; i < passing.size(); ++i) {
          const PoolEntry* pool = FindPool(kBase + (i + 1) * kGib4);
          EXPECT_TRUE(pool == nullptr || pool == &passing[i]->entry);
        }
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  done = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(RegisteredPools(), 1u);
}

}  // namespace
}  // namespace firsttouch
