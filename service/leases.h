// Acquires outside the steady path (steady_path.h). Errors are those of
// Service::Acquire and AcquireInstance. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_LEASES_H_
#define FIRSTTOUCH_SERVICE_LEASES_H_

#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// `own` (may be null) is the slot that the thread had parked; the thread has
// claimed it.
absl::StatusOr<Memory> AcquireAny(ServicePool& pool,
                                  const MemoryOptions& options, SlotState* own);

absl::StatusOr<std::vector<Memory>> AcquireInstance(
    ServicePool& pool, std::span<const MemoryOptions> options);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_LEASES_H_
