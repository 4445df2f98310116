// Where each memory of a pool lies. Pure, checked arithmetic: no system call,
// no allocation except for an error's text. The request (LayoutOptions) and the
// decision (PoolLayout) are two types; one function goes from one to the other,
// and another function, CheckLayoutInvariants, states what must hold of the
// pair.
//
// The reservation, for instances = 1 and memories_per_instance = 2. Every box
// names the field that gives its size, every arrow the accessor that gives its
// offset or length:
//
// clang-format off
//   |<---------------------- reservation_bytes() --------------------->|
//                  |<- slot_stride_bytes() ->|<- slot_stride_bytes() ->|
//   +--------------+---------------+---------+---------------+---------+
//   | guard_before | max_memory    | guard_  | max_memory    | guard_  |
//   | _bytes       | _bytes        | after_  | _bytes        | after_  |
//   |              | (slot 0)      | bytes   | (slot 1)      | bytes   |
//   +--------------+---------------+---------+---------------+---------+
//   0              |               |         |               |
//                  |               |         |  guard_after_offset_bytes(1)
//                  |               |   memory_offset_bytes(1)
//                  |       guard_after_offset_bytes(0)
//           memory_offset_bytes(0) = first_memory_offset_bytes()
// clang-format on
//
// guard_before_bytes exists once, in front of the first memory. In front of
// every other memory lies the guard_after_bytes of the memory before it; that
// is why guard_after_bytes must not be smaller than guard_before_bytes. The
// last unowned_guard_bytes() of it can be reached from both memories, so an
// access there belongs to neither.
//
// Nothing here depends on what backs the memories. Guards are addresses at
// which no page is ever resident; they need no mapping of their own.
//
//   absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(
//       {.instances = 64, .max_memory_bytes = uint64_t{4} << 30,
//        .guard_before_bytes = uint64_t{2} << 30,
//        .guard_after_bytes = uint64_t{2} << 30});
//   for (const LayoutRange& range : layout->Ranges()) { ... }
#ifndef FIRSTTOUCH_POOL_LAYOUT_H_
#define FIRSTTOUCH_POOL_LAYOUT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/pool/ids.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// The requested layout. All sizes are bytes.
struct LayoutOptions {
  // Instances the pool can hold at once. At least 1.
  uint32_t instances = 0;
  // Memories of each instance, laid out next to each other. At least 1.
  // instances * memories_per_instance must fit 32 bits.
  uint32_t memories_per_instance = 1;
  // The most a memory can grow to. A multiple of page_bytes (not necessarily of
  // a Wasm page or of fault_around_bytes), at least one page. A memory's size
  // at run time is any number of bytes up to this.
  uint64_t max_memory_bytes = 0;
  // Guard in front of the first memory. A multiple of page_bytes; 0 for none.
  uint64_t guard_before_bytes = 0;
  // Guard behind each memory. A multiple of page_bytes, at least
  // guard_before_bytes; 0 for none (then neighbours touch: only for guests
  // whose every access is checked). To have every access that goes past a
  // memory's end reported to that memory's own trap callback, make it larger
  // than what code can reach by unowned_guard_bytes(): guard_before_bytes, or a
  // page.
  uint64_t guard_after_bytes = 0;
  // The host's page size. A power of two, at least kPageBytes.
  uint64_t page_bytes = kPageBytes;
  // The most that one fault fills, except for reads of shared image pages: a
  // guest that reads them upwards gets up to 1 MiB at a time. A power of two, a
  // multiple of page_bytes. A fault-around range that reaches past a memory's
  // size is cut there, so it may be larger than the memory.
  uint64_t fault_around_bytes = 65536;

  // For WebAssembly guests with 32-bit addresses whose generated code checks no
  // bounds: one memory per instance, up to 4 GiB, and behind it a guard that
  // covers every access at an address plus an offset, which together reach up
  // to 8 GiB. An address space of 47 bits holds 16,000 of them. For guests
  // whose code checks more, or that have several memories, change the fields
  // concerned.
  static LayoutOptions ForWasm32(uint32_t instances);

  friend bool operator==(const LayoutOptions&, const LayoutOptions&) = default;
};

// The purpose of a range of the reservation.
enum class LayoutRangeKind { kGuardBefore, kMemory, kGuardAfter };

// "guard before", "memory" or "guard after". Static storage.
std::string_view LayoutRangeKindName(LayoutRangeKind kind);

// One range of the reservation with a single purpose. Never empty.
struct LayoutRange {
  uint64_t offset_bytes = 0;  // from the base of the reservation
  uint64_t bytes = 0;
  LayoutRangeKind kind = LayoutRangeKind::kMemory;
  // The memory itself; for kGuardAfter the memory in front of the guard; for
  // kGuardBefore slot 0, the memory behind it.
  SlotIndex slot;
  // The LayoutOptions field that these bytes come from, e.g.
  // "guard_after_bytes". Static storage.
  std::string_view cause;

  friend bool operator==(const LayoutRange&, const LayoutRange&) = default;
};

class PoolLayout;

// The ranges of a layout in ascending order, made one at a time: in constant
// memory, even for a million slots. Their bytes sum to reservation_bytes(), and
// each range begins where the one before ended. Refers to the layout, which
// must outlive it.
class LayoutRanges {
 public:
  class Iterator {
   public:
    using value_type = LayoutRange;
    using difference_type = std::ptrdiff_t;
    using pointer = const LayoutRange*;
    using reference = const LayoutRange&;
    using iterator_category = std::input_iterator_tag;

    Iterator() = default;
    reference operator*() const { return range_; }
    pointer operator->() const { return &range_; }
    Iterator& operator++();
    Iterator operator++(int);
    friend bool operator==(const Iterator& a, const Iterator& b) {
      return a.step_ == b.step_;
    }

   private:
    friend class LayoutRanges;
    Iterator(const PoolLayout* layout, uint64_t step);
    // Moves to the next step that has bytes, and describes it.
    void Settle();

    const PoolLayout* layout_ = nullptr;
    uint64_t step_ = 0;  // 0 guard before, then 1 + 2 * slot: memory, guard
    LayoutRange range_;
  };
  using iterator = Iterator;
  using const_iterator = Iterator;

  explicit LayoutRanges(const PoolLayout* layout) : layout_(layout) {}
  Iterator begin() const;
  Iterator end() const;
  // Begins at the memory of `slot`, in constant time. `slot` < slots().
  Iterator From(SlotIndex slot) const;

 private:
  const PoolLayout* layout_;
};

// A computed layout. A small value: copy it freely. All accessors are pure,
// async-signal-safe and constant time.
class PoolLayout {
 public:
  // Computes the layout. InvalidArgument names the option, its value, the rule
  // and a way out, for options that are zero, unaligned or contradictory and
  // for sums or products that do not fit 64 bits. Whether this machine has room
  // for the layout is a different question: pool/limits.h.
  static absl::StatusOr<PoolLayout> Compute(const LayoutOptions& options);

  const LayoutOptions& options() const { return options_; }

  // The address space of the whole pool, guards included. A multiple of
  // page_bytes.
  uint64_t reservation_bytes() const { return reservation_bytes_; }
  // Bytes from the start of a memory to the start of the next.
  uint64_t slot_stride_bytes() const { return slot_stride_bytes_; }
  // Bytes from the base of the reservation to the start of slot 0.
  uint64_t first_memory_offset_bytes() const {
    return options_.guard_before_bytes;
  }
  // The size of each memory: options().max_memory_bytes.
  uint64_t memory_bytes() const { return options_.max_memory_bytes; }
  // Number of memories: instances * memories_per_instance.
  uint32_t slots() const { return slots_; }

  // Offset of a memory from the base. `slot` < slots().
  uint64_t memory_offset_bytes(SlotIndex slot) const {
    return first_memory_offset_bytes() + slot.value() * slot_stride_bytes_;
  }
  // Offset of the guard behind a memory (of the next memory where
  // guard_after_bytes is 0). `slot` < slots().
  uint64_t guard_after_offset_bytes(SlotIndex slot) const {
    return memory_offset_bytes(slot) + memory_bytes();
  }
  // The bytes of guard below `slot`: guard_before_bytes for slot 0,
  // guard_after_bytes (of the memory before) for the others.
  uint64_t guard_in_front_bytes(SlotIndex slot) const {
    return slot.value() == 0 ? options_.guard_before_bytes
                             : options_.guard_after_bytes;
  }

  // Bytes at the upper end of the guard between two memories that belong to
  // neither: an access there may have gone past the end of the memory in front,
  // or below the start of the memory behind. This is guard_before_bytes; where
  // that is 0 it is a page, since code that is not meant to reach below its
  // memory does so by mistake (and half of the guard where the guard is one
  // page). The guards in front of the first memory and behind the last have one
  // neighbour, and belong to it.
  uint64_t unowned_guard_bytes() const {
    return std::max(
        options_.guard_before_bytes,
        std::min(options_.page_bytes, options_.guard_after_bytes / 2));
  }

  // `instance` < options().instances, `memory` < memories_per_instance.
  SlotIndex SlotOf(InstanceIndex instance, MemoryIndex memory) const {
    return SlotIndex(instance.value() * options_.memories_per_instance +
                     memory.value());
  }
  // `slot` < slots().
  InstanceIndex InstanceOf(SlotIndex slot) const {
    return InstanceIndex(slot.value() / options_.memories_per_instance);
  }
  MemoryIndex MemoryOf(SlotIndex slot) const {
    return MemoryIndex(slot.value() % options_.memories_per_instance);
  }

  // Every byte of the reservation, with its purpose and the option that it
  // comes from.
  LayoutRanges Ranges() const { return LayoutRanges(this); }

 private:
  friend class PoolLayoutTestPeer;  // makes wrong layouts, for the checker
  PoolLayout() = default;

  LayoutOptions options_;
  uint64_t reservation_bytes_ = 0;
  uint64_t slot_stride_bytes_ = 0;
  uint32_t slots_ = 0;
};

// States the security claims and checks them for one pair of options and
// layout; Internal names the first claim that fails, with the numbers. It
// computes the offsets again, in 128 bits, and does not trust Compute:
//   1. the layout was made for these options;
//   2. every size and offset is a multiple of the page, and the fault-around
//      size is a power of two and a multiple of the page;
//   3. no sum or product overflowed;
//   4. memories do not overlap and lie inside the reservation;
//   5. from any memory, at least guard_before_bytes downwards and at least
//      guard_after_bytes upwards belong to no other memory and lie inside the
//      reservation;
//   6. the ranges sum to the reservation with no gap, no overlap, no byte
//      unexplained;
//   7. SlotOf, InstanceOf and MemoryOf are inverse to each other.
// Looks at every slot up to 4096 of them, and at the first and last 2048 of a
// larger pool; the offsets are linear in the slot, so the others cannot differ.
absl::Status CheckLayoutInvariants(const LayoutOptions& options,
                                   const PoolLayout& layout);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_LAYOUT_H_
