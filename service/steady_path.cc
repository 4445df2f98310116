// The steady cycle: all that runs between two leases of a slot whose changed
// pages are known. A thread acquires again the slot that it released last, and
// the release copies the initial bytes over the pages that can have changed.
//
// It makes no system call, takes no lock, calls no virtual method, and asks
// nothing about what supplies the memory; everything else is in AcquireAny()
// and ReleaseAny(). Its acquire is LeaseOwn() of steady_acquire.h. The decision
// is made from the slot's record, from its first three cache lines
// (slot_state.h):
//
//   a supply that does not know each change    SupplyTraits::steady_cycles
//     by itself                                is 0
//   a page was filled, or lost its protection  `filled`
//   the memory has grown                       size_bytes, initial_bytes
//   the lease asked for something else, or     `exceptions`
//     something has failed
//   the slot has to be prepared for its next   `prefill_wanted`,
//     lease                                    `other_tracking_wanted`,
//                                              `has_poisoned_pages`

#include "firsttouch/service/steady_path.h"

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/leases.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/parked_slot.h"
#include "firsttouch/service/pool_end.h"
#include "firsttouch/service/reclaim.h"
#include "firsttouch/service/releases.h"
#include "firsttouch/service/restore_groups.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/steady_acquire.h"
#include "firsttouch/service/this_thread.h"

namespace firsttouch {
namespace {

// Restores the slot's dirty pages, by steps that cannot fail, in a slot in
// which nothing was filled since the last restore. Returns false, with nothing
// done, where there is more to do.
bool RestoreSteady(uint32_t steady_cycles, SlotState& slot) {
  // The last two cycles of a sampling window must find out what both changed.
  if (slot.tracking != Tracking::kSignal ||
      slot.window_cycles + 2 >= steady_cycles) {
    return false;
  }
  const Restored restored = RestoreGroups(
      slot,
      [](uint64_t, PageGroup& group, uint64_t, uint64_t changed) {
        NoteChanged(group, changed);
      },
      [](PageGroup&) {});
  slot.window_changed += restored.changed_pages;
  ++slot.window_cycles;
  return true;
}

// Whether the guest changed nothing but retained pages.
bool IsSteady(const SlotState& slot) {
  return slot.exceptions.load(std::memory_order_relaxed) == 0 &&
         !slot.filled.load(std::memory_order_relaxed) &&
         slot.size_bytes.load(std::memory_order_relaxed) == slot.initial_bytes;
}

}  // namespace

absl::StatusOr<Memory> AcquireOne(ServicePool& pool,
                                  const MemoryOptions& options) {
  // In a steady cycle only LeaseOwn() runs.
  const OwnSlot own = LeaseOwn(pool, TermsOf(options));
  if (own.is_leased) [[likely]] {
    return pool.MemoryOf(*own.slot);
  }
  return AcquireAny(pool, options, own.slot);
}

void ParkSlot(ServicePool& pool, SlotState& slot) {
  ParkedSlot& parked = ParkedSlotFor(pool);
  if (parked.pool == pool.steady.number && parked.slot != &slot) [[unlikely]] {
    ParkInsteadOf(pool, *parked.slot, slot);
    return;
  }
  parked.Keep(pool, slot);
  // The last access to this object, as in ReturnSlot().
  slot.lifecycle.Move(SlotLifecycle::kParked);
}

absl::Status ReleaseSlot(ServicePool& pool, SlotState& slot) {
  // In a child the slot must not be touched; the handle only forgets it.
  if (!pool.InOwnerProcess()) [[unlikely]] {
    return pool.CheckProcess();
  }
  if (pool.steady.has_background_reclaim) {
    slot.idle.released_ns.store(MonotonicNanos(), std::memory_order_relaxed);
  }
  slot.restorer.store(ThisThread(), std::memory_order_relaxed);
  // Orphan() and TakeInstance() wait for releases that did not see their marks.
  slot.lifecycle.Move(SlotLifecycle::kParking);
  pool.steady.fence.Light();
  if (pool.steady.orphaned.load(std::memory_order_acquire)) [[unlikely]] {
    ReleaseOrphan(pool, slot);
    return absl::OkStatus();
  }
  if (pool.steady.parks &&
      pool.steady.waiting.load(std::memory_order_relaxed) == 0 &&
      IsSteady(slot) && RestoreSteady(pool.steady.max_cycles, slot) &&
      slot.exceptions.load(std::memory_order_relaxed) == 0) [[likely]] {
    slot.size_bytes.store(0, std::memory_order_relaxed);
    CountOwned(slot.counters.handovers);
    MindBudget(pool);
    ParkSlot(pool, slot);
    return absl::OkStatus();
  }
  return ReleaseAny(pool, slot);
}

}  // namespace firsttouch
