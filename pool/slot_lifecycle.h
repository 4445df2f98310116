// The life cycle of a slot: free, leased, or in between. One state machine for
// SlotAllocator and for the service above it.
//
//   kFree --take--> kReturning --lease--> kLeased
//     ^                 ^                    |
//     |                 |                    v
//     \---- restored ---+----- release --- kParking --restored--> kParked
//
// kFree            in the allocator; any thread may take it. Pages below
//                  kept_pages hold initial bytes, pages above are missing.
// kLeased          a lease holds it.
// kReturning       one thread owns it, between two leases: it restores the
//                  slot, at a release or Reset, or prepares it for the next
//                  lease. For SlotAllocator a slot is kReturning from when it
//                  is handed out until it is back.
// kParking         a release decides whether the slot becomes kParked; for a
//                  few instructions, or a steady restore. In no other state
//                  does a slot become kParked that was not kParked before
//                  (service/service_pool.h).
// kParked          like kFree, but not in the allocator: kept for the thread
//                  that released it. A thread that moves it on from here by a
//                  compare-exchange owns it.
// kTrimming,       the slot was kFree or kParked, and its pages are being
// kTrimmingParked  given back; it soon returns to that state.
// kQuarantined     a step of the reset failed, and its contents are unknown;
//                  never leased again.
//
// In kReturning and kParking, the thread that restores may touch pages that the
// host took from the memory (MADV_DONTNEED): such a fault is resolved as in a
// lease.

#ifndef FIRSTTOUCH_POOL_SLOT_LIFECYCLE_H_
#define FIRSTTOUCH_POOL_SLOT_LIFECYCLE_H_

#include <sched.h>

#include <atomic>
#include <cassert>
#include <cstdint>
#include <optional>

namespace firsttouch {

// The values are part of what a pool publishes (control/block.h).
enum class SlotLifecycle : uint32_t {
  kFree,
  kLeased,
  kReturning,
  kQuarantined,
  kParked,
  kTrimming,
  kTrimmingParked,
  kParking,
};
inline constexpr uint32_t kSlotLifecycles = 8;

// "free", "leased", ...; a static string.
const char* SlotLifecycleName(SlotLifecycle lifecycle);

struct SlotTransition {
  SlotLifecycle from;
  SlotLifecycle to;
};

// All allowed transitions.
inline constexpr SlotTransition kSlotTransitions[] = {
    // Taken: from the allocator, or from the thread that keeps it.
    {SlotLifecycle::kFree, SlotLifecycle::kReturning},
    {SlotLifecycle::kParked, SlotLifecycle::kReturning},
    // Leased; or a Reset has ended.
    {SlotLifecycle::kReturning, SlotLifecycle::kLeased},
    // A Reset begins.
    {SlotLifecycle::kLeased, SlotLifecycle::kReturning},
    // A release begins. A release that is not steady goes on in kReturning, and
    // comes back when the slot is restored.
    {SlotLifecycle::kLeased, SlotLifecycle::kParking},
    {SlotLifecycle::kParking, SlotLifecycle::kReturning},
    {SlotLifecycle::kReturning, SlotLifecycle::kParking},
    // A restored slot, or one that could not be prepared, leaves.
    {SlotLifecycle::kParking, SlotLifecycle::kParked},
    {SlotLifecycle::kParking, SlotLifecycle::kFree},
    {SlotLifecycle::kReturning, SlotLifecycle::kFree},
    {SlotLifecycle::kReturning, SlotLifecycle::kQuarantined},
    // An idle slot gives back pages.
    {SlotLifecycle::kFree, SlotLifecycle::kTrimming},
    {SlotLifecycle::kTrimming, SlotLifecycle::kFree},
    {SlotLifecycle::kTrimming, SlotLifecycle::kQuarantined},
    {SlotLifecycle::kParked, SlotLifecycle::kTrimmingParked},
    {SlotLifecycle::kTrimmingParked, SlotLifecycle::kParked},
    {SlotLifecycle::kTrimmingParked, SlotLifecycle::kQuarantined},
};

constexpr bool IsSlotTransition(SlotLifecycle from, SlotLifecycle to) {
  for (const SlotTransition& transition : kSlotTransitions) {
    if (transition.from == from && transition.to == to) return true;
  }
  return false;
}

// The state of one slot. Any thread reads it; only the slot's owner changes it,
// except for the Take methods and BeginTrim, which make the caller the owner. A
// build with assertions ends the process at a transition that is not in the
// table. Load() is async-signal-safe.
class LifecycleCell {
 public:
  SlotLifecycle Load(std::memory_order order) const noexcept {
    return state_.load(order);
  }

  // Called by the slot's owner. The thread that takes the slot next sees what
  // the owner has written to it before.
  void Move(SlotLifecycle to,
            std::memory_order order = std::memory_order_release) {
    assert(IsSlotTransition(state_.load(std::memory_order_relaxed), to));
    state_.store(to, order);
  }

  // Moves from `from`, if the slot is still in that state.
  bool TryMove(SlotLifecycle from, SlotLifecycle to) {
    assert(IsSlotTransition(from, to));
    return state_.compare_exchange_strong(from, to, std::memory_order_acq_rel,
                                          std::memory_order_relaxed);
  }

  // Takes a parked slot, if it still is parked; waits for a thread that trims
  // it.
  bool TakeParked() {
    return Take(SlotLifecycle::kParked, SlotLifecycle::kTrimmingParked);
  }

  // Takes a slot that the allocator gave, or that the caller has taken already;
  // waits for a thread that trims it. False: the trim failed, and the slot is
  // quarantined.
  bool TakeFree() {
    return Take(SlotLifecycle::kFree, SlotLifecycle::kTrimming) ||
           state_.load(std::memory_order_relaxed) == SlotLifecycle::kReturning;
  }

  // Takes an idle slot out of use for a moment, and returns its state. Move()
  // it back to that state afterwards, or to kQuarantined.
  std::optional<SlotLifecycle> BeginTrim() {
    SlotLifecycle before = state_.load(std::memory_order_relaxed);
    if (before != SlotLifecycle::kFree && before != SlotLifecycle::kParked) {
      return std::nullopt;  // It is not idle.
    }
    const SlotLifecycle trimming = before == SlotLifecycle::kFree
                                       ? SlotLifecycle::kTrimming
                                       : SlotLifecycle::kTrimmingParked;
    if (!state_.compare_exchange_strong(before, trimming,
                                        std::memory_order_acquire,
                                        std::memory_order_relaxed)) {
      return std::nullopt;  // Another thread took it just now.
    }
    return before;
  }

 private:
  bool Take(SlotLifecycle idle, SlotLifecycle trimming) {
    while (true) {
      SlotLifecycle now = idle;
      if (state_.compare_exchange_strong(now, SlotLifecycle::kReturning,
                                         std::memory_order_acquire,
                                         std::memory_order_relaxed)) {
        return true;
      }
      if (now != trimming) return false;
      sched_yield();
    }
  }

  std::atomic<SlotLifecycle> state_{SlotLifecycle::kFree};
};
// Readers of other processes find the number there (control/block.h).
static_assert(sizeof(LifecycleCell) == sizeof(SlotLifecycle));

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_SLOT_LIFECYCLE_H_
