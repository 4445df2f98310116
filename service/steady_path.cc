// The steady cycle: all that runs between two leases of a slot whose changed
// pages are known. A thread acquires again what it has released last, and the
// release copies the initial bytes over the pages that can have changed.
//
// It makes no system call, takes no lock, calls no virtual method, and asks
// nothing about what supplies the memory; whatever else there is to do is in
// AcquireAny() and ReleaseAny(). What decides is in the slot's record, in its
// first three cache lines (slot_state.h):
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
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/leases.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/pool_end.h"
#include "firsttouch/service/reclaim.h"
#include "firsttouch/service/releases.h"
#include "firsttouch/service/restore_groups.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_returns.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/this_thread.h"

namespace firsttouch {
namespace steady_path_internal {

// What this thread has released last in a pool, and acquires again before
// anything else. Only valid for the pool whose number it carries; that pool
// lives, since the caller is one of its methods.
struct alignas(32) ParkedSlot {
  uint64_t pool = 0;
  // Only to be compared: the slot may have been taken, and its image be gone.
  const Image* image = nullptr;
  SlotState* slot = nullptr;
  // Whether the thread was made ready for guest code (NoteThreadReady()): it
  // may have released a memory that another thread acquired.
  bool thread_is_ready = false;
};
constexpr size_t kParkedSlots = 4;

// In the thread's own block from the start, also in a shared library, where
// each look at it would be a call otherwise; with external linkage for the
// reason that run_trapped.cc has.
// clang-format off
[[gnu::tls_model("initial-exec")]]
extern constinit thread_local ParkedSlot t_parked[kParkedSlots];
[[gnu::tls_model("initial-exec")]]
constinit thread_local ParkedSlot t_parked[kParkedSlots] = {};
// clang-format on

}  // namespace steady_path_internal

namespace {

using steady_path_internal::kParkedSlots;
using steady_path_internal::ParkedSlot;
using steady_path_internal::t_parked;

// Restores the slot's dirty pages. Nothing that can fail, for a slot in which
// nothing was filled since the last restore. False where there is more to do,
// and then nothing was done.
bool RestoreSteady(uint32_t steady_cycles, SlotState& slot) {
  // What the last two cycles of a sampling window both changed is found out.
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

// Whether this thread, which has parked a slot, may run guest code: it may have
// released a memory that another thread acquired.
bool ThisThreadIsReady(const ServicePool& pool) {
  // In the line that ClaimOwn() has just looked at.
  return t_parked[pool.steady.number % kParkedSlots].thread_is_ready;
}

// Whether a claimed slot can be leased as it is.
bool IsReadyFor(const SlotState& slot, const MemoryOptions& options) {
  return slot.image == options.image &&
         slot.initial_bytes == options.initial_bytes() &&
         !slot.prefill_wanted && !slot.other_tracking_wanted &&
         !slot.has_poisoned_pages.load(std::memory_order_acquire);
}

// Whether the guest left nothing but changes of retained pages.
bool IsSteady(const SlotState& slot) {
  return slot.exceptions.load(std::memory_order_relaxed) == 0 &&
         !slot.filled.load(std::memory_order_relaxed) &&
         slot.size_bytes.load(std::memory_order_relaxed) == slot.initial_bytes;
}

// ParkSlot() for a thread that has parked `before`, which goes to everybody.
void ParkInsteadOf(ServicePool& pool, SlotState& before, SlotState& slot) {
  // The pool must live until `before` is returned: see Orphan().
  slot.returning.fetch_add(1, std::memory_order_relaxed);
  t_parked[pool.steady.number % kParkedSlots] = {
      .pool = pool.steady.number, .image = slot.image.get(), .slot = &slot};
  // In this order: at no moment does the thread keep both from others.
  slot.lifecycle.Move(SlotLifecycle::kParked);
  if (before.lifecycle.TakeParked())
    ReturnSlot(pool, before, SlotLifecycle::kFree);
  slot.returning.fetch_sub(1, std::memory_order_release);
}

}  // namespace

void NoteThreadReady() {
  for (ParkedSlot& parked : t_parked) parked.thread_is_ready = true;
}

void BeginLease(SlotState& slot, const MemoryOptions& options) {
  slot.trap_callback = options.trap_callback;
  slot.trap_user = options.trap_user;
  slot.lifecycle.Move(SlotLifecycle::kLeased);
  slot.size_bytes.store(slot.initial_bytes, std::memory_order_release);
}

SlotState* ClaimOwn(const ServicePool& pool, const MemoryOptions& options) {
  ParkedSlot& parked = t_parked[pool.steady.number % kParkedSlots];
  if (parked.pool != pool.steady.number ||
      parked.image != options.image.get()) {
    return nullptr;
  }
  parked.pool = 0;
  return parked.slot->lifecycle.TakeParked() ? parked.slot : nullptr;
}

absl::StatusOr<Memory> AcquireOne(ServicePool& pool,
                                  const MemoryOptions& options) {
  // In a steady cycle this is all.
  SlotState* own = nullptr;
  if (pool.InOwnerProcess()) [[likely]] {
    own = ClaimOwn(pool, options);
    if (own != nullptr && IsReadyFor(*own, options) && ThisThreadIsReady(pool))
        [[likely]] {
      BeginLease(*own, options);
      return pool.MemoryOf(*own);
    }
  }
  return AcquireAny(pool, options, own);
}

void ParkSlot(ServicePool& pool, SlotState& slot) {
  ParkedSlot& parked = t_parked[pool.steady.number % kParkedSlots];
  if (parked.pool == pool.steady.number && parked.slot != &slot) [[unlikely]] {
    ParkInsteadOf(pool, *parked.slot, slot);
    return;
  }
  parked.pool = pool.steady.number;
  parked.image = slot.image.get();
  parked.slot = &slot;
  // The last touch of this object, as in ReturnSlot().
  slot.lifecycle.Move(SlotLifecycle::kParked);
}

absl::Status ReleaseSlot(ServicePool& pool, SlotState& slot) {
  // In a child the slot is not ours to touch; forgetting it is all there is.
  if (!pool.InOwnerProcess()) [[unlikely]] {
    return pool.CheckProcess();
  }
  if (pool.steady.has_background_reclaim) {
    slot.idle.released_ns.store(MonotonicNanos(), std::memory_order_relaxed);
  }
  slot.restorer.store(ThisThread(), std::memory_order_relaxed);
  // Orphan() and TakeInstance() wait for releases that did not see them coming.
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
