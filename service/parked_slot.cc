#include "firsttouch/service/parked_slot.h"

#include <atomic>

#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_returns.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {
namespace parked_slot_internal {

// clang-format off
[[gnu::tls_model("initial-exec")]]
constinit thread_local ParkedSlot t_parked[kParkedSlots] = {};
// clang-format on

}  // namespace parked_slot_internal

void NoteThreadReady() {
  for (ParkedSlot& parked : parked_slot_internal::t_parked)
    parked.thread_is_ready = true;
}

void ParkInsteadOf(ServicePool& pool, SlotState& before, SlotState& slot) {
  // The pool must live until `before` is returned: see Orphan().
  slot.returning.fetch_add(1, std::memory_order_relaxed);
  // The thread stays ready for guest code.
  ParkedSlotFor(pool).Keep(pool, slot);
  // In this order, so that the thread never keeps two slots from other threads.
  slot.lifecycle.Move(SlotLifecycle::kParked);
  if (before.lifecycle.TakeParked())
    ReturnSlot(pool, before, SlotLifecycle::kFree);
  slot.returning.fetch_sub(1, std::memory_order_release);
}

}  // namespace firsttouch
