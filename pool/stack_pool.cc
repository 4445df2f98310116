#include "firsttouch/pool/stack_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/pool/sanitizer.h"
#include "firsttouch/pool/size_text.h"
#include "firsttouch/pool/slot_allocator.h"
#include "firsttouch/pool/stack_pool_with_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"

namespace firsttouch {
namespace {

// <linux/mman.h>, 6.13.
constexpr int kMadvGuardInstall = 102;

absl::StatusOr<PoolLayout> LayoutOf(const StackPoolOptions& options) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (options.stacks == 0) {
    return absl::InvalidArgumentError(
        "stacks is 0; a stack pool holds at least 1 stack");
  }
  if (options.stack_bytes == 0 || options.stack_bytes % page != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("stack_bytes ", SizeText(options.stack_bytes),
                     " is not a multiple of the page size ", page, " above 0"));
  }
  if (options.guard_bytes == 0 || options.guard_bytes % page != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "guard_bytes ", SizeText(options.guard_bytes),
        " is not a multiple of the page size ", page,
        " above 0; without a guard an overflow reaches the next stack"));
  }
  absl::StatusOr<PoolLayout> layout =
      PoolLayout::Compute({.instances = options.stacks,
                           .max_memory_bytes = options.stack_bytes,
                           .guard_before_bytes = options.guard_bytes,
                           .guard_after_bytes = options.guard_bytes,
                           .page_bytes = page,
                           .fault_around_bytes = page});
  if (!layout.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("stacks ", options.stacks, " * (stack_bytes ",
                     SizeText(options.stack_bytes), " + guard_bytes ",
                     SizeText(options.guard_bytes),
                     ") does not fit 64 bits; lower one of them"));
  }
  return layout;
}

// Calls `install(start, bytes)` for each guard, until one fails.
template <typename Install>
absl::Status ForEachGuard(const PoolLayout& layout, uintptr_t base,
                          const char* call, Install install) {
  for (const LayoutRange& range : layout.Ranges()) {
    if (range.kind == LayoutRangeKind::kMemory) continue;
    const uintptr_t start = base + range.offset_bytes;
    const CallResult result = install(start, range.bytes);
    if (!result.ok()) {
      return absl::ErrnoToStatus(
          result.error,
          absl::StrFormat(
              "%s of the guard %s stack %u [%#x, %#x)", call,
              range.kind == LayoutRangeKind::kGuardBefore ? "below" : "above",
              range.slot.value(), start, start + range.bytes));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<StackPool::Guards> InstallGuards(
    Kernel& kernel, const PoolLayout& layout, const Reservation& reservation) {
  // A kernel that does not know the advice says EINVAL at the first guard or
  // never.
  const CallResult first =
      kernel.Madvise(reservation.base(), layout.options().guard_before_bytes,
                     kMadvGuardInstall);
  if (first.ok() || first.error != EINVAL) {
    absl::Status status =
        ForEachGuard(layout, reservation.base(), "madvise(MADV_GUARD_INSTALL)",
                     [&](uintptr_t start, uint64_t bytes) {
                       // The first guard is installed already.
                       if (start == reservation.base()) return first;
                       return kernel.Madvise(start, bytes, kMadvGuardInstall);
                     });
    if (!status.ok()) return status;
    return StackPool::Guards::kMarkers;
  }

  absl::Status status = CheckLimits(
      layout, {.fixed_maps = 1, .alignment_bytes = 1, .maps_per_slot = 2},
      // The only thing that can be lacking now is mappings.
      [] {
        const LimitFacts now = ReadLimitFacts();
        return LimitFacts{.max_map_count = now.max_map_count, .maps = now.maps};
      }());
  if (!status.ok()) return status;
  status = ForEachGuard(layout, reservation.base(), "mprotect(PROT_NONE)",
                        [&](uintptr_t start, uint64_t bytes) {
                          return kernel.Mprotect(start, bytes, PROT_NONE);
                        });
  if (!status.ok()) return status;
  return StackPool::Guards::kMprotect;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StackPool>> StackPool::Create(
    const StackPoolOptions& options) {
  return CreateStackPool(RealKernel(), options);
}

absl::StatusOr<std::unique_ptr<StackPool>> CreateStackPool(
    Kernel& kernel, const StackPoolOptions& options) {
  absl::StatusOr<PoolLayout> layout = LayoutOf(options);
  if (!layout.ok()) return layout.status();
  absl::StatusOr<Reservation> reservation =
      Reservation::Create(kernel, *layout,
                          {.name = options.name,
                           .include_in_core_dump = true,
                           .inherit_on_fork = true,
                           .alignment_bytes = layout->options().page_bytes});
  if (!reservation.ok()) return reservation.status();
  absl::StatusOr<StackPool::Guards> guards =
      InstallGuards(kernel, *layout, *reservation);
  if (!guards.ok()) return guards.status();
  return absl::WrapUnique(new StackPool(
      kernel, *layout, *std::move(reservation), *guards, options));
}

StackPool::StackPool(Kernel& kernel, const PoolLayout& layout,
                     Reservation reservation, Guards guards,
                     const StackPoolOptions& options)
    : kernel_(kernel),
      layout_(layout),
      reservation_(std::make_unique<const Reservation>(std::move(reservation))),
      guards_(guards),
      keep_resident_bytes_(std::min(
          options.keep_resident_bytes & ~(layout.options().page_bytes - 1),
          layout.memory_bytes())),
      slots_(std::make_unique<SlotAllocator>(
          options.stacks, options.strategy, SlotAllocator::kDefaultSeed,
          SlotAllocator::kShardPerCore, "StackPoolOptions::stacks")) {}

StackPool::~StackPool() {
  if (slots_->in_use() != 0) {
    std::fprintf(stderr,
                 "firsttouch: a StackPool is destroyed while %u of its stacks "
                 "are leased\n",
                 slots_->in_use());
    std::abort();
  }
}

absl::StatusOr<StackLease> StackPool::Acquire(absl::Time deadline) {
  const absl::StatusOr<SlotAllocator::Pick> pick = slots_->Acquire(0, deadline);
  if (!pick.ok()) return pick.status();
  std::byte* base = reinterpret_cast<std::byte*>(
      reservation_->base() +
      layout_.memory_offset_bytes(SlotIndex(pick->slot)));
  return StackLease(this, pick->slot, base, layout_.memory_bytes());
}

void StackPool::Release(uint32_t slot, std::byte* base) {
  const uint64_t dropped = layout_.memory_bytes() - keep_resident_bytes_;
  // Frames that were left without returning still have their redzones.
  UnpoisonForSanitizers(base, layout_.memory_bytes());
  std::memset(base + dropped, 0, keep_resident_bytes_);
  if (dropped != 0 &&
      !DropMappedPages(kernel_, reinterpret_cast<uintptr_t>(base), dropped)
           .ok()) {
    slots_->Quarantine(slot);
    return;
  }
  slots_->Release(slot, 0);
}

StackLease::StackLease(StackLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      slot_(other.slot_),
      base_(std::exchange(other.base_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

StackLease& StackLease::operator=(StackLease&& other) noexcept {
  if (this != &other) {
    Release();
    pool_ = std::exchange(other.pool_, nullptr);
    slot_ = other.slot_;
    base_ = std::exchange(other.base_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void StackLease::Release() {
  if (pool_ == nullptr) return;
  std::exchange(pool_, nullptr)->Release(slot_, std::exchange(base_, nullptr));
  bytes_ = 0;
}

uintptr_t StackPool::base() const { return reservation_->base(); }

uint32_t StackPool::capacity() const { return slots_->capacity(); }

uint32_t StackPool::in_use() const { return slots_->in_use(); }

uint32_t StackPool::quarantined() const { return slots_->quarantined(); }

}  // namespace firsttouch
