// Returns a slot whose lease has ended, or could not begin: to all threads, or
// out of use. By the slot's owner; not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_SLOT_RETURNS_H_
#define FIRSTTOUCH_SERVICE_SLOT_RETURNS_H_

#include <memory>

#include "firsttouch/init/image.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// Gives the slot back, as kFree or kQuarantined. The pool may be deleted when
// this returns.
void ReturnSlot(ServicePool& pool, SlotState& slot, SlotLifecycle lifecycle);

// Gives the slot back to the allocator, or, with `failed`, quarantines it.
void LetGoOfSlot(ServicePool& pool, const SlotState& slot, bool failed);

// Gives up a slot that could not be prepared: it becomes free again, unchanged
// if nothing was changed, else to be mapped anew; it is quarantined only where
// that cannot be done.
void GiveUpSlot(ServicePool& pool, SlotState& slot);

// Forgets everything about the slot; it is mapped anew for its next lease.
void AbandonSlot(ServicePool& pool, SlotState& slot);

// Makes a slot that the caller has claimed, or is returning, one that was never
// bound; returns its old image. The slot may have lost its place.
std::shared_ptr<const Image> UnbindSlot(ServicePool& pool, SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SLOT_RETURNS_H_
