// The part of ServicePool that begins leases, and what is done in them
// with them: acquire, grow, make ready, count. What an acquire does in a steady
// cycle is in steady_path.cc.

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// The values of FaultHandlerChanges() under which this thread's signals were
// found unblocked, and our handler was found in place.
thread_local uint32_t t_unblocked_at = 0;
thread_local uint32_t t_in_place_at = 0;

// Makes the thread ready for guest code, or says why it cannot be. Its signals
// are looked at once, and after each change that we know of.
absl::Status ReadyThread(SignalOwnership signals) {
  if (absl::Status status = EnsureAlternateStack(); !status.ok()) {
    return status;
  }
  const uint32_t changes = FaultHandlerChanges();
  if (t_unblocked_at != changes) {
    if (absl::Status status = CheckSignalsUnblocked(); !status.ok()) {
      return status;
    }
    t_unblocked_at = changes;
    ServicePool::NoteThreadReady();
  }
  // The host's own handler is the host's to look after.
  if (signals == SignalOwnership::kInstall && t_in_place_at != changes) {
    if (absl::Status status = CheckFaultHandler(); !status.ok()) return status;
    t_in_place_at = changes;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ServicePool::CheckUsable(const SlotState& slot) {
  if ((slot.exceptions.load(std::memory_order_relaxed) & kSlotBroken) == 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      "an earlier Reset or Snapshot of this memory failed: release it");
}

absl::Status ServicePool::CheckMemoryOptions(
    const MemoryOptions& options) const {
  const uint64_t size_bytes = options.initial_bytes();
  if (size_bytes > layout_.memory_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "size_bytes ", InPages(size_bytes), " exceeds max_memory_bytes ",
        InPages(layout_.memory_bytes()), " of pool \"", options_.name,
        "\": ask for less, or raise LayoutOptions::max_memory_bytes"));
  }
  if (options.image == nullptr) return absl::OkStatus();
  if (options.image->size_bytes() > size_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("image \"", options.image->name(), "\" of ",
                     InPages(options.image->size_bytes()),
                     " bytes is larger than size_bytes ", InPages(size_bytes),
                     " of the memory: raise MemoryOptions::size_bytes"));
  }
  if (absl::Status status = options.image->CheckProcess(); !status.ok()) {
    return status;
  }
  return supply_->CheckImage(*options.image);
}

absl::StatusOr<uint32_t> ServicePool::TakeInstance(const MemoryOptions& first) {
  const uint64_t key = first.image == nullptr ? 0 : first.image->id();
  if (!steady_.parks) return TakeFromAllocator(key, first.deadline);
  absl::StatusOr<uint32_t> slot = TakeFromAllocator(key, absl::InfinitePast());
  if (slot.ok()) return slot;
  // What other threads keep for themselves is free, too. Why this misses
  // nothing is said in service_pool.h.
  steady_.waiting.fetch_add(1, std::memory_order_seq_cst);
  std::optional<uint32_t> parked = ClaimAnyParked(/*surely=*/false);
  if (!parked.has_value()) {
    steady_.fence.Heavy();
    parked = ClaimAnyParked(/*surely=*/true);
  }
  if (!parked.has_value()) slot = TakeFromAllocator(key, first.deadline);
  steady_.waiting.fetch_sub(1, std::memory_order_relaxed);
  if (parked.has_value()) return *parked;
  return slot;
}

absl::StatusOr<uint32_t> ServicePool::TakeFromAllocator(uint64_t key,
                                                        absl::Time deadline) {
  absl::StatusOr<SlotAllocator::Pick> pick = allocator_->Acquire(key, deadline);
  if (!pick.ok()) {
    return absl::Status(pick.status().code(),
                        absl::StrCat("pool \"", options_.name,
                                     "\": ", pick.status().message()));
  }
  return pick->slot;
}

std::optional<uint32_t> ServicePool::ClaimAnyParked(bool surely) {
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    SlotState& slot = slots_[i];
    SlotLifecycle lifecycle = slot.lifecycle.Load(std::memory_order_acquire);
    while (surely && (lifecycle == SlotLifecycle::kParking ||
                      lifecycle == SlotLifecycle::kTrimmingParked)) {
      sched_yield();
      lifecycle = slot.lifecycle.Load(std::memory_order_acquire);
    }
    if (lifecycle == SlotLifecycle::kParked && slot.lifecycle.TakeParked())
      return i;
  }
  return std::nullopt;
}

absl::Status ServicePool::PrepareSlot(SlotState& slot,
                                      const MemoryOptions& options) {
  const uint64_t size_bytes = options.initial_bytes();
  const uint64_t size_pages = PagesRoundedUp(size_bytes).value();
  DropWhatIsDistrusted();
  if (absl::Status status = supply_->Bind(slot, options.image, size_pages);
      !status.ok()) {
    return status;
  }
  PublishImage(slot);
  slot.kept_pages = size_pages;
  if (slot.prefill_wanted) {
    supply_->Prefill(slot, size_pages, RetainedPagesLimit(size_pages));
    NoteIdle(slot);
  }
  slot.initial_bytes = size_bytes;
  slot.remap_wanted = false;
  slot.exceptions.store(0, std::memory_order_relaxed);
  Lease(slot, options);
  return absl::OkStatus();
}

void ServicePool::AbandonSlot(SlotState& slot) {
  Abandon(slot);
  slot.initial_bytes = 0;
  // So that it is prepared for its next lease, whatever is asked for.
  slot.other_tracking_wanted = true;
  ForgetIdle(slot);
  PublishImage(slot);
}

void ServicePool::GiveUp(SlotState& slot) {
  if (slot.place_lost) {
    Return(slot, SlotLifecycle::kQuarantined);
    return;
  }
  if (slot.remap_wanted) AbandonSlot(slot);
  Return(slot, SlotLifecycle::kFree);
}

std::shared_ptr<const Image> ServicePool::Unbind(SlotState& slot) {
  std::shared_ptr<const Image> image = slot.image;
  AbandonSlot(slot);
  // After an error all is mapped anew before the next lease, and only then
  // does the kernel let go, too.
  if (supply_->Unbind(slot).ok()) slot.remap_wanted = false;
  return image;
}

absl::Status ServicePool::CheckAcquireOne(const MemoryOptions& options) const {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  if (absl::Status status = ReadyThread(options_.signals); !status.ok()) {
    return status;
  }
  const uint32_t per_instance = layout_.options().memories_per_instance;
  if (per_instance != 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "pool \"", options_.name, "\" has memories_per_instance ", per_instance,
        ": an instance is acquired as a whole, by AcquireInstance"));
  }
  return CheckMemoryOptions(options);
}

absl::StatusOr<Memory> ServicePool::AcquireAny(const MemoryOptions& options,
                                               SlotState* own) {
  if (absl::Status status = CheckAcquireOne(options); !status.ok()) {
    if (own != nullptr) Return(*own, SlotLifecycle::kFree);
    return status;
  }
  absl::StatusOr<uint32_t> instance =
      own != nullptr ? SlotNumber(*own) : TakeInstance(options);
  while (instance.ok() && !slots_[*instance].lifecycle.TakeFree()) {
    allocator_->Quarantine(*instance);
    instance = TakeInstance(options);
  }
  if (!instance.ok()) return instance.status();
  SlotState& slot = slots_[*instance];
  if (absl::Status status = PrepareSlot(slot, options); !status.ok()) {
    GiveUp(slot);
    return status;
  }
  return MemoryOf(slot);
}

absl::StatusOr<std::vector<Memory>> ServicePool::AcquireInstance(
    std::span<const MemoryOptions> options) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  if (absl::Status status = ReadyThread(options_.signals); !status.ok()) {
    return status;
  }
  const uint32_t per_instance = layout_.options().memories_per_instance;
  if (options.size() != per_instance) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.size(), " memories asked for in pool \"", options_.name,
        "\", whose memories_per_instance is ", per_instance,
        ": give exactly one MemoryOptions for each"));
  }
  for (const MemoryOptions& one : options) {
    if (absl::Status status = CheckMemoryOptions(one); !status.ok()) {
      return status;
    }
  }
  SlotState* const own = ClaimOwn(options[0]);
  absl::StatusOr<uint32_t> instance =
      own != nullptr ? SlotNumber(*own) : TakeInstance(options[0]);
  if (!instance.ok()) return instance.status();
  std::vector<Memory> memories;
  memories.reserve(per_instance);
  absl::Status failure;
  for (uint32_t i = 0; i < per_instance; ++i) {
    SlotState& slot = slots_[*instance * per_instance + i];
    if (!slot.lifecycle.TakeFree()) {
      failure.Update(absl::InternalError(
          absl::StrCat("slot ", SlotNumber(slot), " of pool \"", options_.name,
                       "\" could not be trimmed and is quarantined")));
      LetGo(slot, /*failed=*/true);
      continue;
    }
    if (failure.ok()) failure = PrepareSlot(slot, options[i]);
    if (!failure.ok()) {
      GiveUp(slot);
      continue;
    }
    memories.push_back(MemoryOf(slot));
  }
  if (!failure.ok()) return failure;
  return memories;
}

absl::StatusOr<uint64_t> ServicePool::GrowBy(SlotState& slot,
                                             uint64_t delta_bytes) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  const MemorySupply::GrowthLock lock(*supply_, slot);
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  uint64_t before = slot.size_bytes.load(std::memory_order_relaxed);
  do {
    if (delta_bytes > layout_.memory_bytes() ||
        before > layout_.memory_bytes() - delta_bytes) {
      return TooLarge(before, delta_bytes);
    }
    absl::Status status =
        supply_->Open(slot, PagesRoundedUp(before + delta_bytes).value());
    if (!status.ok()) return status;
  } while (!slot.size_bytes.compare_exchange_weak(before, before + delta_bytes,
                                                  std::memory_order_seq_cst));
  Count(slot.counters.grows);
  supply_->NoteGrown(slot, before, before + delta_bytes);
  return before;
}

absl::Status ServicePool::GrowTo(SlotState& slot, uint64_t new_size_bytes) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  const MemorySupply::GrowthLock lock(*supply_, slot);
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  uint64_t before = slot.size_bytes.load(std::memory_order_relaxed);
  do {
    if (new_size_bytes < before) {
      return absl::InvalidArgumentError(absl::StrCat(
          "new_size_bytes ", new_size_bytes, " is below the present size of ",
          before, " bytes: a memory does not shrink"));
    }
    if (new_size_bytes > layout_.memory_bytes()) {
      return TooLarge(before, new_size_bytes - before);
    }
    absl::Status status =
        supply_->Open(slot, PagesRoundedUp(new_size_bytes).value());
    if (!status.ok()) return status;
  } while (!slot.size_bytes.compare_exchange_weak(before, new_size_bytes,
                                                  std::memory_order_seq_cst));
  Count(slot.counters.grows);
  supply_->NoteGrown(slot, before, new_size_bytes);
  return absl::OkStatus();
}

absl::Status ServicePool::TooLarge(uint64_t size_bytes,
                                   uint64_t delta_bytes) const {
  return absl::ResourceExhaustedError(
      absl::StrCat("growing from ", InPages(size_bytes), " by ", delta_bytes,
                   " bytes exceeds max_memory_bytes ",
                   InPages(layout_.memory_bytes()), " of pool \"",
                   options_.name, "\": raise LayoutOptions::max_memory_bytes"));
}

absl::Status ServicePool::MakeReady(SlotState& slot, uint64_t offset_bytes,
                                    uint64_t bytes, Access access) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  if (access == Access::kExecute) {
    return absl::InvalidArgumentError(
        "access kExecute: no page of a pool can be executed; use kRead or "
        "kWrite");
  }
  const uint64_t size_bytes = slot.size_bytes.load(std::memory_order_relaxed);
  if (offset_bytes > size_bytes || bytes > size_bytes - offset_bytes) {
    return absl::OutOfRangeError(absl::StrCat(
        "the range of ", bytes, " bytes at offset ", offset_bytes,
        " does not end within the memory's size of ", size_bytes, " bytes"));
  }
  if (bytes == 0) return absl::OkStatus();
  return supply_->MakeReady(slot, offset_bytes, bytes, access);
}

MemoryPages ServicePool::CountPages(SlotState& slot) const {
  if (!InOwnerProcess()) return {};
  return supply_->CountPages(slot);
}

}  // namespace firsttouch
