// The acquire of a steady cycle. In a header, so that Service::Acquire
// (steady_path.cc) and an interface that keeps leases in records of its own
// (capi) have it inlined, each with what it is asked for and what it returns.
//
// It makes no system call, takes no lock, calls no virtual method, and asks
// nothing about what supplies the memory. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_STEADY_ACQUIRE_H_
#define FIRSTTOUCH_SERVICE_STEADY_ACQUIRE_H_

#include <atomic>
#include <cstdint>

#include "firsttouch/init/image.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/service/parked_slot.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/trap.h"

namespace firsttouch {

// What a lease begins with, and where its traps go: MemoryOptions without what
// only a search for a slot needs. `image` is borrowed.
struct LeaseTerms {
  const Image* image = nullptr;
  uint64_t initial_bytes = 0;
  TrapCallback trap_callback = nullptr;
  void* trap_user = nullptr;
};

// The slot that the calling thread had parked and owns now, null where there is
// none; and whether it is leased, or has to be prepared for that.
struct OwnSlot {
  SlotState* slot = nullptr;
  bool is_leased = false;
};

// Claims and returns the slot that this thread parked with such an image; null
// where there is none, or another thread has taken it.
[[gnu::always_inline]] inline SlotState* ClaimOwn(const ServicePool& pool,
                                                  const Image* image) {
  ParkedSlot& parked = ParkedSlotFor(pool);
  if (parked.pool != pool.steady.number || parked.image != image) {
    return nullptr;
  }
  parked.pool = 0;
  return parked.slot->lifecycle.TakeParked() ? parked.slot : nullptr;
}

// Whether a claimed slot can be leased as it is.
inline bool IsReadyFor(const SlotState& slot, const LeaseTerms& terms) {
  return slot.image.get() == terms.image &&
         slot.initial_bytes == terms.initial_bytes && !slot.prefill_wanted &&
         !slot.other_tracking_wanted &&
         !slot.has_poisoned_pages.load(std::memory_order_acquire);
}

// Whether this thread, which has parked a slot, may run guest code: it may have
// released a memory that another thread acquired.
inline bool ThisThreadIsReady(const ServicePool& pool) {
  // This is in the cache line that ClaimOwn() has just looked at.
  return ParkedSlotFor(pool).thread_is_ready;
}

// Makes the slot, which is prepared, the memory of a lease.
inline void BeginLease(SlotState& slot, const LeaseTerms& terms) {
  slot.trap_callback = terms.trap_callback;
  slot.trap_user = terms.trap_user;
  slot.lifecycle.Move(SlotLifecycle::kLeased);
  slot.size_bytes.store(slot.initial_bytes, std::memory_order_release);
}

// Leases the slot that this thread has parked, if that is ready for such a
// lease. Where the result is not leased, nothing has failed: the caller goes on
// with AcquireAny() and the slot.
[[gnu::always_inline]] inline OwnSlot LeaseOwn(const ServicePool& pool,
                                               const LeaseTerms& terms) {
  if (!pool.InOwnerProcess()) [[unlikely]] {
    return {};
  }
  SlotState* const own = ClaimOwn(pool, terms.image);
  if (own == nullptr || !IsReadyFor(*own, terms) || !ThisThreadIsReady(pool))
      [[unlikely]] {
    return {.slot = own};
  }
  BeginLease(*own, terms);
  return {.slot = own, .is_leased = true};
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_STEADY_ACQUIRE_H_
