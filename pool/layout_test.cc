#include "firsttouch/pool/layout.h"

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/pool/ids.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {

// Makes layouts that Compute never makes.
class PoolLayoutTestPeer {
 public:
  static void SetOptions(PoolLayout& layout, const LayoutOptions& options) {
    layout.options_ = options;
  }
  static void SetReservation(PoolLayout& layout, uint64_t bytes) {
    layout.reservation_bytes_ = bytes;
  }
  static void SetStride(PoolLayout& layout, uint64_t bytes) {
    layout.slot_stride_bytes_ = bytes;
  }
  static void SetSlots(PoolLayout& layout, uint32_t slots) {
    layout.slots_ = slots;
  }
};

namespace {

constexpr uint64_t kKib = 1024;
constexpr uint64_t kGib = uint64_t{1} << 30;
constexpr uint32_t kMax32 = std::numeric_limits<uint32_t>::max();
constexpr uint64_t kMax64 = std::numeric_limits<uint64_t>::max();

std::string Text(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

std::string Describe(const LayoutOptions& options) {
  return absl::StrCat("instances ", options.instances,
                      " memories_per_instance ", options.memories_per_instance,
                      " max_memory_bytes ", options.max_memory_bytes,
                      " guard_before_bytes ", options.guard_before_bytes,
                      " guard_after_bytes ", options.guard_after_bytes,
                      " page_bytes ", options.page_bytes,
                      " fault_around_bytes ", options.fault_around_bytes);
}

void ExpectInvariants(const LayoutOptions& options) {
  const absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(options);
  ASSERT_TRUE(layout.ok()) << layout.status() << "\nfor " << Describe(options);
  const absl::Status status = CheckLayoutInvariants(options, *layout);
  ASSERT_TRUE(status.ok()) << status << "\nfor " << Describe(options)
                           << "\nreservation_bytes "
                           << layout->reservation_bytes()
                           << " slot_stride_bytes "
                           << layout->slot_stride_bytes() << " slots "
                           << layout->slots();
}

TEST(LayoutTest, ExampleWithEveryNumber) {
  const LayoutOptions options = {.instances = 3,
                                 .memories_per_instance = 2,
                                 .max_memory_bytes = 640 * kKib,
                                 .guard_before_bytes = 32 * kKib,
                                 .guard_after_bytes = 64 * kKib};
  const absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(options);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->slots(), 6u);
  EXPECT_EQ(layout->slot_stride_bytes(), 704 * kKib);
  EXPECT_EQ(layout->first_memory_offset_bytes(), 32 * kKib);
  EXPECT_EQ(layout->reservation_bytes(), (32 + 6 * 704) * kKib);
  EXPECT_EQ(layout->memory_offset_bytes(SlotIndex(0)), 32 * kKib);
  EXPECT_EQ(layout->memory_offset_bytes(SlotIndex(5)), (32 + 5 * 704) * kKib);
  EXPECT_EQ(layout->guard_after_offset_bytes(SlotIndex(0)), 672 * kKib);
  EXPECT_EQ(layout->guard_in_front_bytes(SlotIndex(0)), 32 * kKib);
  EXPECT_EQ(layout->guard_in_front_bytes(SlotIndex(1)), 64 * kKib);
  EXPECT_EQ(layout->SlotOf(InstanceIndex(2), MemoryIndex(1)), SlotIndex(5));
  EXPECT_EQ(layout->InstanceOf(SlotIndex(5)), InstanceIndex(2));
  EXPECT_EQ(layout->MemoryOf(SlotIndex(5)), MemoryIndex(1));
}

TEST(LayoutTest, RangesExplainEveryByte) {
  const LayoutOptions options = {.instances = 2,
                                 .max_memory_bytes = 64 * kKib,
                                 .guard_before_bytes = 8 * kKib,
                                 .guard_after_bytes = 16 * kKib};
  const absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(options);
  ASSERT_TRUE(layout.ok()) << layout.status();
  std::vector<LayoutRange> ranges;
  for (const LayoutRange& range : layout->Ranges()) ranges.push_back(range);
  const std::vector<LayoutRange> expected = {
      {0, 8 * kKib, LayoutRangeKind::kGuardBefore, SlotIndex(0),
       "guard_before_bytes"},
      {8 * kKib, 64 * kKib, LayoutRangeKind::kMemory, SlotIndex(0),
       "max_memory_bytes"},
      {72 * kKib, 16 * kKib, LayoutRangeKind::kGuardAfter, SlotIndex(0),
       "guard_after_bytes"},
      {88 * kKib, 64 * kKib, LayoutRangeKind::kMemory, SlotIndex(1),
       "max_memory_bytes"},
      {152 * kKib, 16 * kKib, LayoutRangeKind::kGuardAfter, SlotIndex(1),
       "guard_after_bytes"}};
  EXPECT_EQ(ranges, expected);
  EXPECT_EQ(LayoutRangeKindName(ranges[0].kind), "guard before");
  EXPECT_EQ(LayoutRangeKindName(ranges[1].kind), "memory");
  EXPECT_EQ(LayoutRangeKindName(ranges[2].kind), "guard after");
  EXPECT_EQ(*layout->Ranges().From(SlotIndex(1)), expected[3]);
}

TEST(LayoutTest, EmptyRangesAreLeftOut) {
  const absl::StatusOr<PoolLayout> layout =
      PoolLayout::Compute({.instances = 3, .max_memory_bytes = 4096});
  ASSERT_TRUE(layout.ok()) << layout.status();
  uint32_t count = 0;
  for (const LayoutRange& range : layout->Ranges()) {
    EXPECT_EQ(range.kind, LayoutRangeKind::kMemory);
    EXPECT_EQ(range.slot, SlotIndex(count));
    EXPECT_EQ(range.offset_bytes, count * 4096u);
    ++count;
  }
  EXPECT_EQ(count, 3u);
}

TEST(LayoutTest, MillionSlotsOneRangeAtATime) {
  const absl::StatusOr<PoolLayout> layout =
      PoolLayout::Compute({.instances = 1'000'000,
                           .max_memory_bytes = 64 * kKib,
                           .guard_before_bytes = 4096,
                           .guard_after_bytes = 4096});
  ASSERT_TRUE(layout.ok()) << layout.status();
  uint64_t bytes = 0;
  uint64_t count = 0;
  for (const LayoutRange& range : layout->Ranges()) {
    ASSERT_EQ(range.offset_bytes, bytes);
    bytes += range.bytes;
    ++count;
  }
  EXPECT_EQ(count, 2'000'001u);
  EXPECT_EQ(bytes, layout->reservation_bytes());
  EXPECT_TRUE(CheckLayoutInvariants(layout->options(), *layout).ok());
}

TEST(LayoutTest, HoldsForAllSmallNumbers) {
  int checked = 0;
  for (uint32_t instances = 1; instances <= 4; ++instances) {
    for (uint32_t memories = 1; memories <= 3; ++memories) {
      for (uint64_t memory = 1; memory <= 4; ++memory) {
        for (uint64_t after = 0; after <= 3; ++after) {
          for (uint64_t before = 0; before <= after; ++before) {
            for (uint64_t page : {4096, 16384}) {
              for (uint64_t around : {1, 2, 16}) {
                ExpectInvariants({.instances = instances,
                                  .memories_per_instance = memories,
                                  .max_memory_bytes = memory * page,
                                  .guard_before_bytes = before * page,
                                  .guard_after_bytes = after * page,
                                  .page_bytes = page,
                                  .fault_around_bytes = around * page});
                if (HasFatalFailure()) return;
                ++checked;
              }
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(checked, 4 * 3 * 4 * 10 * 2 * 3);
}

TEST(LayoutTest, HoldsAtTheCorners) {
  const LayoutOptions corners[] = {
      // The largest number of slots, in either factor.
      {.instances = kMax32, .max_memory_bytes = 4096},
      {.instances = 1,
       .memories_per_instance = kMax32,
       .max_memory_bytes = 4096},
      {.instances = 65535,
       .memories_per_instance = 65537,
       .max_memory_bytes = 4096},
      // The largest memory, the largest guard, and both at their limit.
      {.instances = 1, .max_memory_bytes = kMax64 - 4095},
      {.instances = 1,
       .max_memory_bytes = 4096,
       .guard_after_bytes = kMax64 - 2 * 4096 + 1},
      {.instances = 1,
       .max_memory_bytes = 4096,
       .guard_before_bytes = uint64_t{1} << 62,
       .guard_after_bytes = uint64_t{1} << 63},
      // The reservation one page below 2^64.
      {.instances = kMax32,
       .max_memory_bytes = uint64_t{4096} << 20,
       .guard_after_bytes = 0},
      // Around the number of slots from which the middle is stepped over.
      {.instances = 4095, .max_memory_bytes = 4096, .guard_after_bytes = 4096},
      {.instances = 4096, .max_memory_bytes = 4096, .guard_after_bytes = 4096},
      {.instances = 4097, .max_memory_bytes = 4096, .guard_after_bytes = 4096},
      {.instances = 8192,
       .max_memory_bytes = 4096,
       .guard_before_bytes = 4096,
       .guard_after_bytes = 4096},
      // A fault-around size larger than the memory; the largest one.
      {.instances = 2,
       .max_memory_bytes = 4096,
       .fault_around_bytes = 2048 * kKib},
      {.instances = 2,
       .max_memory_bytes = 4096,
       .fault_around_bytes = uint64_t{1} << 63},
      // A large host page.
      {.instances = 2,
       .max_memory_bytes = uint64_t{1} << 63,
       .page_bytes = uint64_t{1} << 62,
       .fault_around_bytes = uint64_t{1} << 62},
      // A memory that is no multiple of a Wasm page or of the fault-around
      // size.
      {.instances = 7,
       .max_memory_bytes = 65536 + 4096,
       .guard_after_bytes = 4096},
      // What a 32-bit Wasm host asks for.
      {.instances = 20'000,
       .max_memory_bytes = 4 * kGib,
       .guard_before_bytes = 2 * kGib,
       .guard_after_bytes = 2 * kGib},
  };
  for (const LayoutOptions& options : corners) {
    if (options.page_bytes == uint64_t{1} << 62) {
      // 2 * 2^63 does not fit: one instance does.
      LayoutOptions one = options;
      one.instances = 1;
      ExpectInvariants(one);
      EXPECT_FALSE(PoolLayout::Compute(options).ok());
      continue;
    }
    ExpectInvariants(options);
  }
}

// Every random input either gives a layout that holds, or an error that names
// the option; exact arithmetic decides which of the two is right.
TEST(LayoutTest, HoldsAtRandomOrSaysWhy) {
  std::mt19937_64 random(20220623);
  auto magnitude = [&](int max_bits) {
    const int bits = std::uniform_int_distribution<int>(0, max_bits)(random);
    return bits == 0 ? 0 : random() >> (64 - bits);
  };
  int computed = 0;
  int refused = 0;
  for (int i = 0; i < 4000; ++i) {
    LayoutOptions options;
    options.page_bytes = uint64_t{4096} << magnitude(3);
    options.fault_around_bytes = options.page_bytes << magnitude(4);
    options.instances = static_cast<uint32_t>(magnitude(20));
    options.memories_per_instance = static_cast<uint32_t>(magnitude(4));
    options.max_memory_bytes = magnitude(50);
    options.guard_after_bytes = magnitude(50);
    options.guard_before_bytes = magnitude(50);
    if (random() % 8 != 0) {
      options.max_memory_bytes -= options.max_memory_bytes % options.page_bytes;
      options.guard_after_bytes -=
          options.guard_after_bytes % options.page_bytes;
      options.guard_before_bytes -=
          options.guard_before_bytes % options.page_bytes;
    }
    if (random() % 4 != 0 &&
        options.guard_before_bytes > options.guard_after_bytes) {
      options.guard_before_bytes = options.guard_after_bytes;
    }
    const absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(options);
    const long double total =
        static_cast<long double>(options.instances) *
            options.memories_per_instance *
            (static_cast<long double>(options.max_memory_bytes) +
             options.guard_after_bytes) +
        options.guard_before_bytes;
    const bool valid =
        options.instances != 0 && options.memories_per_instance != 0 &&
        options.max_memory_bytes != 0 &&
        (options.max_memory_bytes | options.guard_after_bytes |
         options.guard_before_bytes) %
                options.page_bytes ==
            0 &&
        options.guard_before_bytes <= options.guard_after_bytes &&
        total < 18446744073709551616.0L;
    ASSERT_EQ(layout.ok(), valid) << layout.status() << Describe(options);
    if (layout.ok()) {
      ++computed;
      const absl::Status status = CheckLayoutInvariants(options, *layout);
      ASSERT_TRUE(status.ok()) << status << "\nfor " << Describe(options);
    } else {
      ++refused;
      ASSERT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
      ASSERT_THAT(Text(layout.status()),
                  testing::ContainsRegex("instances|memories_per_instance|max_"
                                         "memory_bytes|guard_before_bytes|"
                                         "guard_after_bytes"));
    }
  }
  EXPECT_GT(computed, 500);
  EXPECT_GT(refused, 500);
}

struct BadOptions {
  LayoutOptions options;
  std::string error;
};

TEST(LayoutTest, ErrorsNameOptionValueRuleAndWayOut) {
  const BadOptions table[] = {
      {{.instances = 0, .max_memory_bytes = 4096},
       "instances is 0; a pool holds at least 1 instance"},
      {{.instances = 1, .memories_per_instance = 0, .max_memory_bytes = 4096},
       "memories_per_instance is 0; an instance has at least 1 memory"},
      {{.instances = 1, .max_memory_bytes = 0},
       "max_memory_bytes is 0; a memory has room for at least one page (4096 "
       "bytes)"},
      {{.instances = 1, .max_memory_bytes = 4194305},
       "max_memory_bytes 4194305 is not a multiple of the page size 4096; "
       "round it down to 4194304 (4 MiB) or up to 4198400"},
      {{.instances = 1, .max_memory_bytes = 1},
       "max_memory_bytes 1 is not a multiple of the page size 4096; round it "
       "up to 4096"},
      {{.instances = 1, .max_memory_bytes = kMax64},
       "max_memory_bytes 18446744073709551615 is not a multiple of the page "
       "size 4096; round it down to 18446744073709547520"},
      {{.instances = 1,
        .max_memory_bytes = 65536,
        .guard_before_bytes = 100,
        .guard_after_bytes = 4096},
       "guard_before_bytes 100 is not a multiple of the page size 4096; round "
       "it up to 4096"},
      {{.instances = 1, .max_memory_bytes = 65536, .guard_after_bytes = 65535},
       "guard_after_bytes 65535 is not a multiple of the page size 4096; round "
       "it down to 61440 or up to 65536"},
      {{.instances = 1,
        .max_memory_bytes = 65536,
        .guard_before_bytes = 8192,
        .guard_after_bytes = 4096},
       "guard_after_bytes 4096 is smaller than guard_before_bytes 8192, but "
       "the guard behind a memory is the guard in front of the next; raise "
       "guard_after_bytes to 8192 or lower guard_before_bytes"},
      {{.instances = 1, .max_memory_bytes = 65536, .page_bytes = 0},
       "page_bytes 0 is not a power of two from 4096 on; take "
       "sysconf(_SC_PAGESIZE)"},
      {{.instances = 1, .max_memory_bytes = 65536, .page_bytes = 2048},
       "page_bytes 2048 is not a power of two from 4096 on; take "
       "sysconf(_SC_PAGESIZE)"},
      {{.instances = 1, .max_memory_bytes = 65536, .page_bytes = 12288},
       "page_bytes 12288 is not a power of two from 4096 on; take "
       "sysconf(_SC_PAGESIZE)"},
      {{.instances = 1, .max_memory_bytes = 65536, .fault_around_bytes = 0},
       "fault_around_bytes 0 is not a power of two"},
      {{.instances = 1, .max_memory_bytes = 65536, .fault_around_bytes = 12288},
       "fault_around_bytes 12288 is not a power of two"},
      {{.instances = 1, .max_memory_bytes = 65536, .fault_around_bytes = 2048},
       "fault_around_bytes 2048 is not a multiple of the page size 4096; a "
       "fault fills at least one page"},
      {{.instances = kMax32,
        .memories_per_instance = 2,
        .max_memory_bytes = 4096},
       "instances 4294967295 * memories_per_instance 2 = 8589934590 memories, "
       "but a pool numbers at most 4294967295; lower one of them"},
      {{.instances = 1,
        .max_memory_bytes = uint64_t{1} << 63,
        .guard_after_bytes = uint64_t{1} << 63},
       "max_memory_bytes 9223372036854775808 (8 EiB) + guard_after_bytes "
       "9223372036854775808 (8 EiB) does not fit 64 bits; lower one of them"},
      {{.instances = 4'000'000'000,
        .max_memory_bytes = 4 * kGib,
        .guard_before_bytes = 0,
        .guard_after_bytes = 4 * kGib},
       "guard_before_bytes 0 + 4000000000 memories (instances 4000000000 * "
       "memories_per_instance 1) * (max_memory_bytes 4294967296 (4 GiB) + "
       "guard_after_bytes 4294967296 (4 GiB)) does not fit 64 bits; at most "
       "2147483647 memories of this size do"},
      {{.instances = 1,
        .max_memory_bytes = 4096,
        .guard_before_bytes = uint64_t{1} << 63,
        .guard_after_bytes = uint64_t{1} << 63},
       "guard_before_bytes 9223372036854775808 (8 EiB) + 1 memories (instances "
       "1 * memories_per_instance 1) * (max_memory_bytes 4096 + "
       "guard_after_bytes 9223372036854775808 (8 EiB)) does not fit 64 bits; "
       "at "
       "most 0 memories of this size do"},
  };
  for (const BadOptions& bad : table) {
    const absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(bad.options);
    ASSERT_FALSE(layout.ok()) << bad.error;
    EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(Text(layout.status()), bad.error);
  }
}

// A checker that accepts everything would pass all tests above.
TEST(LayoutTest, CheckerSeesWrongLayouts) {
  const LayoutOptions options = {.instances = 2,
                                 .memories_per_instance = 2,
                                 .max_memory_bytes = 8192,
                                 .guard_before_bytes = 4096,
                                 .guard_after_bytes = 4096};
  const absl::StatusOr<PoolLayout> good = PoolLayout::Compute(options);
  ASSERT_TRUE(good.ok()) << good.status();

  LayoutOptions other = options;
  other.fault_around_bytes = 4096;
  EXPECT_EQ(Text(CheckLayoutInvariants(other, *good)),
            "the layout was made for other options");

  PoolLayout wrong = *good;
  PoolLayoutTestPeer::SetReservation(wrong, good->reservation_bytes() - 4096);
  EXPECT_EQ(Text(CheckLayoutInvariants(options, wrong)),
            "reservation_bytes is 49152, expected 53248");

  wrong = *good;
  PoolLayoutTestPeer::SetStride(wrong, 8192);
  EXPECT_EQ(Text(CheckLayoutInvariants(options, wrong)),
            "slot_stride_bytes is 8192, expected 12288");

  wrong = *good;
  PoolLayoutTestPeer::SetSlots(wrong, 3);
  EXPECT_EQ(Text(CheckLayoutInvariants(options, wrong)),
            "slots is 3, expected 4");

  // Contradictory options that were not checked on the way in.
  LayoutOptions bad = options;
  bad.guard_after_bytes = 0;
  wrong = *good;
  PoolLayoutTestPeer::SetOptions(wrong, bad);
  PoolLayoutTestPeer::SetStride(wrong, 8192);
  PoolLayoutTestPeer::SetReservation(wrong, 4096 + 4 * 8192);
  EXPECT_THAT(Text(CheckLayoutInvariants(bad, wrong)),
              testing::StartsWith("the options are invalid: guard_after_bytes "
                                  "0 is smaller than guard_before_bytes 4096"));

  // A product that wrapped around 2^64.
  const LayoutOptions huge = {.instances = 1 << 20,
                              .max_memory_bytes = uint64_t{1} << 44,
                              .guard_after_bytes = 4096};
  EXPECT_FALSE(PoolLayout::Compute(huge).ok());
  wrong = *good;
  PoolLayoutTestPeer::SetOptions(wrong, huge);
  PoolLayoutTestPeer::SetSlots(wrong, 1 << 20);
  PoolLayoutTestPeer::SetStride(wrong, (uint64_t{1} << 44) + 4096);
  PoolLayoutTestPeer::SetReservation(wrong, uint64_t{4096} << 20);
  EXPECT_EQ(Text(CheckLayoutInvariants(huge, wrong)),
            "reservation_bytes is 4294967296, expected 4294967296 "
            "(overflowed)");
}

// The reach of code without checks: a 32-bit address plus a 32-bit offset, and
// the widest access there.
TEST(LayoutOptionsTest, TheGuardForWasm32EndsEveryAccessAsTheMemorysOwn) {
  constexpr uint64_t kLastByte = 2 * uint64_t{kMax32} + 15;
  for (const uint32_t instances : {1u, 2u, 16'000u}) {
    const absl::StatusOr<PoolLayout> layout =
        PoolLayout::Compute(LayoutOptions::ForWasm32(instances));
    ASSERT_TRUE(layout.ok()) << layout.status();
    EXPECT_EQ(layout->slots(), instances);
    EXPECT_EQ(layout->memory_bytes(), 4 * kGib);
    EXPECT_LT(kLastByte,
              layout->slot_stride_bytes() - layout->unowned_guard_bytes());
    EXPECT_LT(layout->reservation_bytes(), uint64_t{1} << 47);
  }
}

}  // namespace
}  // namespace firsttouch
