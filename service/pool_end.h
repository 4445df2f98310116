// The end of a pool, with its Service or with the last memory that is held.
//
// LOCK ORDER. One mutex for all pools, taken only once a Service is destroyed
// before its memories; never on the steady path, never with another mutex held,
// and never on the fault path.

#ifndef FIRSTTOUCH_SERVICE_POOL_END_H_
#define FIRSTTOUCH_SERVICE_POOL_END_H_

#include <memory>

#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// The Service is destroyed: deletes `pool` now, or when its last memory goes.
void Orphan(std::unique_ptr<ServicePool> pool);

// Releases a slot, which is kParking, of a pool without a Service. Deletes the
// pool if this was the last memory.
void ReleaseOrphan(ServicePool& pool, SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_POOL_END_H_
