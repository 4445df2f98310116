// The two ends of a cycle, and what the rest of the service does with the slot
// that a thread keeps for its next acquire. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_STEADY_PATH_H_
#define FIRSTTOUCH_SERVICE_STEADY_PATH_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// Service::Acquire and Memory::Release.
absl::StatusOr<Memory> AcquireOne(ServicePool& pool,
                                  const MemoryOptions& options);
absl::Status ReleaseSlot(ServicePool& pool, SlotState& slot);

// Notes that the calling thread was found ready for guest code.
void NoteThreadReady();

// The slot that this thread parked with such an image, claimed; null where
// there is none, or another thread has taken it.
SlotState* ClaimOwn(const ServicePool& pool, const MemoryOptions& options);

// The slot, which is prepared, becomes the memory of a lease.
void BeginLease(SlotState& slot, const MemoryOptions& options);

// Keeps a clean slot, which is kParking, for this thread's next acquire. What
// the thread had parked before goes to everybody. The pool may be deleted when
// this returns.
void ParkSlot(ServicePool& pool, SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_STEADY_PATH_H_
