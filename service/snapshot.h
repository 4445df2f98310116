// A memory's contents at one moment, while other threads may write to it: what
// Memory::Snapshot and SnapshotDelta (memory.h) promise.

#ifndef FIRSTTOUCH_SERVICE_SNAPSHOT_H_
#define FIRSTTOUCH_SERVICE_SNAPSHOT_H_

#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// With `delta` the image is only what differs, over the memory's own image. Any
// thread that holds the memory; not in a signal handler.
absl::StatusOr<ImageRef> SnapshotSlot(ServicePool& pool, SlotState& slot,
                                      std::string name, bool delta);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SNAPSHOT_H_
