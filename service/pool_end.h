// The end of a pool: with its Service, or with the last memory that is held.
//
// LOCK ORDER. One mutex for all pools, taken only when a Service has gone
// before its memories; never on the steady path, nor with another one held, nor
// on the fault path.

#ifndef FIRSTTOUCH_SERVICE_POOL_END_H_
#define FIRSTTOUCH_SERVICE_POOL_END_H_

#include <memory>

#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// The Service is gone: deletes `pool` now, or when the last memory goes.
void Orphan(std::unique_ptr<ServicePool> pool);

// Releases a slot, which is kParking, of a pool without a Service. Deletes the
// pool if that was the last.
void ReleaseOrphan(ServicePool& pool, SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_POOL_END_H_
