#include "firsttouch/service/releases.h"

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/held_memory.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/reclaim.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_returns.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/steady_path.h"
#include "firsttouch/service/this_thread.h"

namespace firsttouch {
namespace {

// Ends a lease: no fill of the slot's pages runs from here on. Returns the size
// that the memory had.
uint64_t EndLease(ServicePool& pool, SlotState& slot) {
  const uint64_t size_bytes =
      slot.size_bytes.exchange(0, std::memory_order_seq_cst);
  pool.supply->StopFills(slot);
  return size_bytes;
}

// Restores a slot whose lease has ended with `size_bytes`.
absl::Status RestoreAndNote(ServicePool& pool, SlotState& slot,
                            uint64_t size_bytes) {
  // DistrustsPages() asks the kernel, so it is called only where the kernel was
  // asked for something since the last restore: thus the end of a sampling
  // window, in a cycle without a fault, makes no system call either.
  if (slot.filled.load(std::memory_order_relaxed) ||
      slot.tracking != Tracking::kSignal) {
    DropWhatIsDistrusted(pool);
  }
  HeedDistrust(slot);
  // No page that may have changed is restored in place then.
  const bool drops =
      (slot.exceptions.load(std::memory_order_relaxed) & kSlotDropped) != 0;
  absl::Status status = pool.supply->Restore(
      slot, size_bytes, drops ? 0 : RetainedPagesLimit(pool, slot.kept_pages));
  if (status.ok() && slot.demotion.due) {
    status = Demote(pool, slot);
  } else if (status.ok() && !slot.demotion.cold_pages.empty()) {
    PutOffDemotion(pool, slot);
  }
  if (!status.ok()) return status;
  NoteIdle(pool, slot);
  if (pool.options.resident_budget_bytes == uint64_t{0} &&
      slot.idle.pages.load(std::memory_order_relaxed) != 0) {
    // The pages were copied, and only read.
    status = DropKept(pool, slot);
    NoteIdle(pool, slot);
  }
  return status;
}

// Restores a slot whose lease has ended.
absl::Status Restore(ServicePool& pool, SlotState& slot) {
  slot.last_fault_page.store(~uint64_t{0}, std::memory_order_relaxed);
  absl::Status status = RestoreAndNote(pool, slot, EndLease(pool, slot));
  slot.size_bytes.store(0, std::memory_order_seq_cst);
  if ((slot.exceptions.load(std::memory_order_relaxed) & kSlotLost) != 0) {
    status.Update(absl::DataLossError(absl::StrCat(
        "a page at offset ",
        slot.lost_page.load(std::memory_order_relaxed) - slot.base, " of slot ",
        pool.SlotNumber(slot), " in pool \"", pool.options.name,
        "\" was unmapped or made inaccessible by somebody else while the "
        "memory was held (munmap, mremap, mprotect, MADV_GUARD_INSTALL), or "
        "its contents are not to be had any more: the slot is not used again; "
        "leave the mappings of a pool alone")));
  }
  return status;
}

// Returns a restored slot whose image may have no handle any more.
void ReturnUnbound(ServicePool& pool, SlotState& slot) {
  slot.lifecycle.Move(SlotLifecycle::kReturning);
  slot.exceptions.fetch_and(static_cast<uint8_t>(~kSlotImageUnused),
                            std::memory_order_relaxed);
  // Destroyed when the slot is given back.
  std::shared_ptr<const Image> image;
  if (slot.image != nullptr && !slot.image->in_use())
    image = UnbindSlot(pool, slot);
  ReturnSlot(
      pool, slot,
      slot.place_lost ? SlotLifecycle::kQuarantined : SlotLifecycle::kFree);
}

}  // namespace

absl::Status ResetSlot(ServicePool& pool, SlotState& slot) {
  if (absl::Status status = pool.CheckProcess(); !status.ok()) return status;
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  slot.restorer.store(ThisThread(), std::memory_order_relaxed);
  slot.resetting.store(true, std::memory_order_relaxed);
  slot.lifecycle.Move(SlotLifecycle::kReturning);
  absl::Status status = Restore(pool, slot);
  if (status.ok()) {
    slot.size_bytes.store(slot.initial_bytes, std::memory_order_release);
  } else {
    // The size stays 0: every touch of a missing page traps.
    slot.exceptions.fetch_or(kSlotBroken, std::memory_order_relaxed);
  }
  slot.lifecycle.Move(SlotLifecycle::kLeased);
  slot.resetting.store(false, std::memory_order_relaxed);
  return status;
}

absl::Status ReleaseAny(ServicePool& pool, SlotState& slot) {
  // Unmapping may take long, and no thread should wait for it.
  slot.lifecycle.Move(SlotLifecycle::kReturning);
  if (slot.remap_wanted) {
    // A snapshot could not make the memory writable again; otherwise the slot
    // is intact.
    EndLease(pool, slot);
    AbandonSlot(pool, slot);
    ReturnSlot(pool, slot, SlotLifecycle::kFree);
    return absl::OkStatus();
  }
  absl::Status status =
      (slot.exceptions.load(std::memory_order_relaxed) & kSlotBroken) != 0
          ? absl::FailedPreconditionError(
                "a Reset of this memory failed: its slot is quarantined")
          : Restore(pool, slot);
  if (status.ok()) {
    CountOwned(slot.counters.handovers);
    MindBudget(pool);
    slot.exceptions.fetch_and(static_cast<uint8_t>(~kSlotDropped),
                              std::memory_order_relaxed);
    slot.lifecycle.Move(SlotLifecycle::kParking);
    // A thread that waits for a slot, or that has dropped the image's last
    // handle, waits for this slot only while it is kParking.
    pool.steady.fence.Light();
    if ((slot.exceptions.load(std::memory_order_relaxed) & kSlotImageUnused) !=
        0) {
      ReturnUnbound(pool, slot);
      return status;
    }
    if (pool.steady.parks &&
        pool.steady.waiting.load(std::memory_order_relaxed) == 0) {
      ParkSlot(pool, slot);
      return status;
    }
  }
  ReturnSlot(pool, slot,
             status.ok() ? SlotLifecycle::kFree : SlotLifecycle::kQuarantined);
  return status;
}

}  // namespace firsttouch
