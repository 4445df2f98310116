#include "firsttouch/pool/layout.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/pool/ids.h"
#include "firsttouch/pool/size_text.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Wide enough for any product of three option values that is formed here.
__extension__ typedef unsigned __int128 Uint128;

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

std::optional<uint64_t> Add(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

std::optional<uint64_t> Multiply(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

absl::Status CheckMultiple(std::string_view name, uint64_t value,
                           uint64_t page_bytes) {
  if (value % page_bytes == 0) return absl::OkStatus();
  const uint64_t below = value - value % page_bytes;
  std::string remedy = absl::StrCat("round it down to ", SizeText(below));
  if (below == 0) remedy.clear();
  if (below <= kMax - page_bytes) {
    remedy = absl::StrCat(remedy, remedy.empty() ? "round it" : " or",
                          " up to ", SizeText(below + page_bytes));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(name), " ", SizeText(value),
      " is not a multiple of the page size ", page_bytes, "; ", remedy));
}

absl::Status CheckOptions(const LayoutOptions& options) {
  if (options.page_bytes < kPageBytes ||
      !std::has_single_bit(options.page_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "page_bytes ", options.page_bytes, " is not a power of two from ",
        kPageBytes, " on; take sysconf(_SC_PAGESIZE)"));
  }
  if (options.instances == 0) {
    return absl::InvalidArgumentError(
        "instances is 0; a pool holds at least 1 instance");
  }
  if (options.memories_per_instance == 0) {
    return absl::InvalidArgumentError(
        "memories_per_instance is 0; an instance has at least 1 memory");
  }
  if (options.max_memory_bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_memory_bytes is 0; a memory has room for at least one page (",
        options.page_bytes, " bytes)"));
  }
  absl::Status status = CheckMultiple(
      "max_memory_bytes", options.max_memory_bytes, options.page_bytes);
  if (status.ok()) {
    status = CheckMultiple("guard_before_bytes", options.guard_before_bytes,
                           options.page_bytes);
  }
  if (status.ok()) {
    status = CheckMultiple("guard_after_bytes", options.guard_after_bytes,
                           options.page_bytes);
  }
  if (!status.ok()) return status;
  if (options.guard_after_bytes < options.guard_before_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "guard_after_bytes ", SizeText(options.guard_after_bytes),
        " is smaller than guard_before_bytes ",
        SizeText(options.guard_before_bytes),
        ", but the guard behind a memory is the guard in front of the next; "
        "raise guard_after_bytes to ",
        SizeText(options.guard_before_bytes), " or lower guard_before_bytes"));
  }
  if (!std::has_single_bit(options.fault_around_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "fault_around_bytes ", SizeText(options.fault_around_bytes),
        " is not a power of two"));
  }
  if (options.fault_around_bytes < options.page_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "fault_around_bytes ", SizeText(options.fault_around_bytes),
        " is not a multiple of the page size ", options.page_bytes,
        "; a fault fills at least one page"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view LayoutRangeKindName(LayoutRangeKind kind) {
  switch (kind) {
    case LayoutRangeKind::kGuardBefore:
      return "guard before";
    case LayoutRangeKind::kMemory:
      return "memory";
    case LayoutRangeKind::kGuardAfter:
      return "guard after";
  }
  return "unknown";
}

LayoutOptions LayoutOptions::ForWasm32(uint32_t instances) {
  constexpr uint64_t kReach32 = uint64_t{1} << 32;
  // The widest access that begins at the last byte, and the bytes that belong
  // to neither neighbour: a Wasm page holds both.
  constexpr uint64_t kBeyond = 65536;
  return {.instances = instances,
          .max_memory_bytes = kReach32,
          .guard_after_bytes = kReach32 + kBeyond};
}

absl::StatusOr<PoolLayout> PoolLayout::Compute(const LayoutOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;

  const uint64_t slots =
      uint64_t{options.instances} * options.memories_per_instance;
  if (slots > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "instances ", options.instances, " * memories_per_instance ",
        options.memories_per_instance, " = ", slots,
        " memories, but a pool numbers at most ",
        std::numeric_limits<uint32_t>::max(), "; lower one of them"));
  }
  const std::optional<uint64_t> stride =
      Add(options.max_memory_bytes, options.guard_after_bytes);
  if (!stride.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_memory_bytes ", SizeText(options.max_memory_bytes),
        " + guard_after_bytes ", SizeText(options.guard_after_bytes),
        " does not fit 64 bits; lower one of them"));
  }
  const std::optional<uint64_t> all_slots = Multiply(*stride, slots);
  const std::optional<uint64_t> reservation =
      all_slots.has_value() ? Add(*all_slots, options.guard_before_bytes)
                            : std::nullopt;
  if (!reservation.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "guard_before_bytes ", SizeText(options.guard_before_bytes), " + ",
        slots, " memories (instances ", options.instances,
        " * memories_per_instance ", options.memories_per_instance,
        ") * (max_memory_bytes ", SizeText(options.max_memory_bytes),
        " + guard_after_bytes ", SizeText(options.guard_after_bytes),
        ") does not fit 64 bits; at most ",
        (kMax - options.guard_before_bytes) / *stride,
        " memories of this size do"));
  }

  PoolLayout layout;
  layout.options_ = options;
  layout.reservation_bytes_ = *reservation;
  layout.slot_stride_bytes_ = *stride;
  layout.slots_ = static_cast<uint32_t>(slots);
  return layout;
}

LayoutRanges::Iterator::Iterator(const PoolLayout* layout, uint64_t step)
    : layout_(layout), step_(step) {
  Settle();
}

void LayoutRanges::Iterator::Settle() {
  const LayoutOptions& options = layout_->options();
  const uint64_t end = 1 + uint64_t{layout_->slots()} * 2;
  for (; step_ < end; ++step_) {
    if (step_ == 0) {
      range_ = {.offset_bytes = 0,
                .bytes = options.guard_before_bytes,
                .kind = LayoutRangeKind::kGuardBefore,
                .slot = SlotIndex(0),
                .cause = "guard_before_bytes"};
    } else {
      const SlotIndex slot(static_cast<uint32_t>((step_ - 1) / 2));
      if (step_ % 2 == 1) {
        range_ = {.offset_bytes = layout_->memory_offset_bytes(slot),
                  .bytes = layout_->memory_bytes(),
                  .kind = LayoutRangeKind::kMemory,
                  .slot = slot,
                  .cause = "max_memory_bytes"};
      } else {
        range_ = {.offset_bytes = layout_->guard_after_offset_bytes(slot),
                  .bytes = options.guard_after_bytes,
                  .kind = LayoutRangeKind::kGuardAfter,
                  .slot = slot,
                  .cause = "guard_after_bytes"};
      }
    }
    if (range_.bytes != 0) return;
  }
}

LayoutRanges::Iterator& LayoutRanges::Iterator::operator++() {
  ++step_;
  Settle();
  return *this;
}

LayoutRanges::Iterator LayoutRanges::Iterator::operator++(int) {
  Iterator before = *this;
  ++*this;
  return before;
}

LayoutRanges::Iterator LayoutRanges::begin() const {
  return Iterator(layout_, 0);
}

LayoutRanges::Iterator LayoutRanges::end() const {
  return Iterator(layout_, 1 + uint64_t{layout_->slots()} * 2);
}

LayoutRanges::Iterator LayoutRanges::From(SlotIndex slot) const {
  return Iterator(layout_, 1 + uint64_t{slot.value()} * 2);
}

namespace {

// The checks of one slot, independent of its neighbours.
class SlotChecker {
 public:
  SlotChecker(const LayoutOptions& options, const PoolLayout& layout)
      : options_(options), layout_(layout) {}

  absl::Status Check(uint32_t number) const {
    const SlotIndex slot(number);
    const Uint128 memory = MemoryOffset(number);
    const Uint128 end = memory + options_.max_memory_bytes;
    if (memory != layout_.memory_offset_bytes(slot)) {
      return Fail(number, "memory_offset_bytes",
                  layout_.memory_offset_bytes(slot), memory);
    }
    if (end != layout_.guard_after_offset_bytes(slot)) {
      return Fail(number, "guard_after_offset_bytes",
                  layout_.guard_after_offset_bytes(slot), end);
    }
    if (layout_.memory_offset_bytes(slot) % options_.page_bytes != 0) {
      return absl::InternalError(absl::StrCat(
          "slot ", number, ": memory_offset_bytes ",
          layout_.memory_offset_bytes(slot), " is not a multiple of the page"));
    }
    // Downwards there must be only guard until the memory before, or the base.
    const Uint128 below =
        number == 0 ? 0 : MemoryOffset(number - 1) + options_.max_memory_bytes;
    if (memory < below || memory - below < options_.guard_before_bytes) {
      return absl::InternalError(absl::StrCat(
          "slot ", number, ": fewer than guard_before_bytes ",
          options_.guard_before_bytes, " lie in front of the memory"));
    }
    if (memory - below != layout_.guard_in_front_bytes(slot)) {
      return Fail(number, "guard_in_front_bytes",
                  layout_.guard_in_front_bytes(slot), memory - below);
    }
    // Upwards there must be only guard until the next memory, or the end.
    const Uint128 above = number + 1 == layout_.slots()
                              ? Uint128{layout_.reservation_bytes()}
                              : MemoryOffset(number + 1);
    if (above < end || above - end < options_.guard_after_bytes) {
      return absl::InternalError(
          absl::StrCat("slot ", number, ": fewer than guard_after_bytes ",
                       options_.guard_after_bytes, " lie behind the memory"));
    }
    // The conversion of numbers, there and back.
    const InstanceIndex instance = layout_.InstanceOf(slot);
    const MemoryIndex index = layout_.MemoryOf(slot);
    if (instance.value() >= options_.instances ||
        index.value() >= options_.memories_per_instance ||
        layout_.SlotOf(instance, index) != slot ||
        uint64_t{instance.value()} * options_.memories_per_instance +
                index.value() !=
            number) {
      return absl::InternalError(
          absl::StrCat("slot ", number, ": is memory ", index.value(),
                       " of instance ", instance.value(), ", which is slot ",
                       layout_.SlotOf(instance, index).value()));
    }
    return absl::OkStatus();
  }

 private:
  Uint128 MemoryOffset(uint32_t number) const {
    return Uint128{options_.guard_before_bytes} +
           Uint128{number} * (Uint128{options_.max_memory_bytes} +
                              options_.guard_after_bytes);
  }

  static absl::Status Fail(uint32_t number, std::string_view what,
                           uint64_t value, Uint128 expected) {
    return absl::InternalError(
        absl::StrCat("slot ", number, ": ", std::string(what), " is ", value,
                     ", expected ", static_cast<uint64_t>(expected),
                     expected > kMax ? " (overflowed)" : ""));
  }

  const LayoutOptions& options_;
  const PoolLayout& layout_;
};

// The number of slots at either end of a large pool that are looked at one by
// one.
constexpr uint32_t kEndSlots = 2048;

// Walks the ranges [first, last) and checks that they are contiguous from
// `*offset` on; moves `*offset` to their end.
absl::Status CheckContiguous(LayoutRanges::Iterator first,
                             LayoutRanges::Iterator last, uint32_t max_ranges,
                             Uint128* offset) {
  for (uint32_t i = 0; first != last && i < max_ranges; ++first, ++i) {
    if (first->offset_bytes != *offset) {
      return absl::InternalError(absl::StrCat(
          std::string(LayoutRangeKindName(first->kind)), " of slot ",
          first->slot.value(), " begins at ", first->offset_bytes,
          ", but the range before it ends at ",
          static_cast<uint64_t>(*offset)));
    }
    if (first->bytes == 0 || first->cause.empty()) {
      return absl::InternalError(
          absl::StrCat("range at ", first->offset_bytes, " is unexplained"));
    }
    *offset += first->bytes;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckLayoutInvariants(const LayoutOptions& options,
                                   const PoolLayout& layout) {
  if (!(layout.options() == options)) {
    return absl::InternalError("the layout was made for other options");
  }
  if (absl::Status status = CheckOptions(options); !status.ok()) {
    return absl::InternalError(absl::StrCat(
        "the options are invalid: ",
        std::string(status.message().data(), status.message().size())));
  }
  const Uint128 slots =
      Uint128{options.instances} * options.memories_per_instance;
  const Uint128 stride =
      Uint128{options.max_memory_bytes} + options.guard_after_bytes;
  const Uint128 reservation = slots * stride + options.guard_before_bytes;
  if (slots != layout.slots()) {
    return absl::InternalError(absl::StrCat("slots is ", layout.slots(),
                                            ", expected ",
                                            static_cast<uint64_t>(slots)));
  }
  if (stride != layout.slot_stride_bytes()) {
    return absl::InternalError(absl::StrCat(
        "slot_stride_bytes is ", layout.slot_stride_bytes(), ", expected ",
        static_cast<uint64_t>(stride), stride > kMax ? " (overflowed)" : ""));
  }
  if (reservation != layout.reservation_bytes()) {
    return absl::InternalError(
        absl::StrCat("reservation_bytes is ", layout.reservation_bytes(),
                     ", expected ", static_cast<uint64_t>(reservation),
                     reservation > kMax ? " (overflowed)" : ""));
  }
  if (layout.first_memory_offset_bytes() != options.guard_before_bytes ||
      layout.memory_bytes() != options.max_memory_bytes) {
    return absl::InternalError(
        absl::StrCat("first_memory_offset_bytes ",
                     layout.first_memory_offset_bytes(), " or memory_bytes ",
                     layout.memory_bytes(), " is not what the options say"));
  }

  const SlotChecker checker(options, layout);
  const uint32_t count = layout.slots();
  const uint32_t front = std::min(count, 2 * kEndSlots);
  for (uint32_t slot = 0; slot < front; ++slot) {
    if (absl::Status status = checker.Check(slot); !status.ok()) return status;
  }
  for (uint32_t slot = std::max(front, count - std::min(count, kEndSlots));
       slot < count; ++slot) {
    if (absl::Status status = checker.Check(slot); !status.ok()) return status;
  }

  // The ranges are contiguous from 0; in a large pool the middle is skipped by
  // arithmetic that the slots above have confirmed at both ends.
  const LayoutRanges ranges = layout.Ranges();
  Uint128 offset = 0;
  const bool whole = count <= 2 * kEndSlots;
  absl::Status status = CheckContiguous(
      ranges.begin(), ranges.end(),
      whole ? std::numeric_limits<uint32_t>::max() : 4 * kEndSlots, &offset);
  if (!status.ok()) return status;
  if (!whole) {
    const SlotIndex resumed(count - kEndSlots);
    offset = layout.memory_offset_bytes(resumed);
    status = CheckContiguous(ranges.From(resumed), ranges.end(),
                             std::numeric_limits<uint32_t>::max(), &offset);
    if (!status.ok()) return status;
  }
  if (offset != layout.reservation_bytes()) {
    return absl::InternalError(
        absl::StrCat("the ranges end at ", static_cast<uint64_t>(offset),
                     ", the reservation at ", layout.reservation_bytes()));
  }
  return absl::OkStatus();
}

}  // namespace firsttouch
