// Publishes a pool to readers in other processes (control/block.h): which
// records it works with, and where they are.

#ifndef FIRSTTOUCH_SERVICE_PUBLISH_H_
#define FIRSTTOUCH_SERVICE_PUBLISH_H_

#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// Called once, when the pool is made.
void PublishPool(ServicePool& pool);
// Called each time that a slot is bound, by the slot's owner.
void PublishImage(ServicePool& pool, const SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_PUBLISH_H_
