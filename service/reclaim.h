// What idle slots keep: counted, limited, and given back. Any thread, not in a
// signal handler; what takes one slot, by that slot's owner.

#ifndef FIRSTTOUCH_SERVICE_RECLAIM_H_
#define FIRSTTOUCH_SERVICE_RECLAIM_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// How many private pages a slot may keep of a memory whose leases begin with
// `keep_pages` pages.
uint64_t RetainedPagesLimit(const ServicePool& pool, uint64_t keep_pages);

// Notes what a slot keeps that was just restored.
void NoteIdle(ServicePool& pool, SlotState& slot);
// Forgets it: the slot is quarantined, or has given it back. Returns it.
uint64_t ForgetIdle(ServicePool& pool, SlotState& slot);

// By a release: has background reclaim look at the budget if it may be passed.
void WakeIfOverBudget(ServicePool& pool);
inline void MindBudget(ServicePool& pool) {
  if (pool.steady.has_background_reclaim) WakeIfOverBudget(pool);
}

// Gives back what the slot, which is being restored, would keep.
absl::Status DropKept(ServicePool& pool, SlotState& slot);

// Drops the cold pages of a slot that is being restored, together with those
// of free slots that have put it off.
absl::Status Demote(ServicePool& pool, SlotState& slot);
void PutOffDemotion(ServicePool& pool, const SlotState& slot);

// Where the supply distrusts what is known of pages: has every page dropped
// of whose writes the supply may not have been told. Called where a system
// call does no harm: by what is not steady.
void DropWhatIsDistrusted(ServicePool& pool);

// The last handle of an image has gone: idle slots let go of it now, others
// at their release. Adds what they had to `dropped`, which the caller
// destroys when it holds nothing.
void LetGoOfImage(ServicePool& pool, const Image& image,
                  std::vector<std::shared_ptr<const Image>>& dropped);

// Service::Trim.
absl::StatusOr<uint64_t> TrimPool(ServicePool& pool);

// Gives back private pages of idle slots until the rest keep `budget` bytes.
// Returns the bytes given back. `more` (may be null): whether they may be over
// it once releases that are under way have ended.
absl::StatusOr<uint64_t> TrimTo(ServicePool& pool, uint64_t budget, bool* more);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_RECLAIM_H_
