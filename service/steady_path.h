// The two ends of a cycle, and how the rest of the service uses the slot that a
// thread keeps for its next acquire. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_STEADY_PATH_H_
#define FIRSTTOUCH_SERVICE_STEADY_PATH_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/steady_acquire.h"

namespace firsttouch {

inline LeaseTerms TermsOf(const MemoryOptions& options) {
  return {.image = options.image.get(),
          .initial_bytes = options.initial_bytes(),
          .trap_callback = options.trap_callback,
          .trap_user = options.trap_user};
}

// Service::Acquire and Memory::Release.
absl::StatusOr<Memory> AcquireOne(ServicePool& pool,
                                  const MemoryOptions& options);
absl::Status ReleaseSlot(ServicePool& pool, SlotState& slot);

// Keeps a clean slot, which is kParking, for this thread's next acquire. The
// slot that the thread had parked before becomes free for every thread. The
// pool may be deleted when this returns.
void ParkSlot(ServicePool& pool, SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_STEADY_PATH_H_
