// Releases outside the steady path (steady_path.h), and resets: both restore
// the memory. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_RELEASES_H_
#define FIRSTTOUCH_SERVICE_RELEASES_H_

#include "absl/status/status.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// Memory::Reset.
absl::Status ResetSlot(ServicePool& pool, SlotState& slot);

// The rest of ReleaseSlot(), of a slot that is kParking. The pool may be
// deleted when this returns.
absl::Status ReleaseAny(ServicePool& pool, SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_RELEASES_H_
