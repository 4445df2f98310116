// Tells readers in other processes of a pool (control/block.h): what the
// records are that it works with, and where they are.

#ifndef FIRSTTOUCH_SERVICE_PUBLISH_H_
#define FIRSTTOUCH_SERVICE_PUBLISH_H_

#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// Once, when the pool is made.
void PublishPool(ServicePool& pool);
// Each time that a slot is bound. By the slot's owner.
void PublishImage(ServicePool& pool, const SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_PUBLISH_H_
