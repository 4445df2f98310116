// Operations on a held memory: grow, make ready, count. The methods of Memory
// (memory.h) say what each promises. Any number of threads may call them at
// once; not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_HELD_MEMORY_H_
#define FIRSTTOUCH_SERVICE_HELD_MEMORY_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/memory_pages.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/trap.h"

namespace firsttouch {

// FailedPrecondition after a Reset or a Snapshot that failed.
absl::Status CheckUsable(const SlotState& slot);

absl::StatusOr<uint64_t> GrowBy(ServicePool& pool, SlotState& slot,
                                uint64_t delta_bytes);
absl::Status GrowTo(ServicePool& pool, SlotState& slot,
                    uint64_t new_size_bytes);
absl::Status MakeSlotReady(ServicePool& pool, SlotState& slot,
                           uint64_t offset_bytes, uint64_t bytes,
                           Access access);
MemoryPages CountSlotPages(const ServicePool& pool, SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_HELD_MEMORY_H_
