// What idle slots keep: it is counted, limited, and given back. Any thread may
// call this, not a signal handler; functions that take one slot are for that
// slot's owner.

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

// Notes what a slot keeps after its restore.
void NoteIdle(ServicePool& pool, SlotState& slot);
// Forgets and returns it: the slot is quarantined, or has given its pages back.
uint64_t ForgetIdle(ServicePool& pool, SlotState& slot);

// Called by a release: wakes background reclaim if the pool may be over its
// budget.
void WakeIfOverBudget(ServicePool& pool);
inline void MindBudget(ServicePool& pool) {
  if (pool.steady.has_background_reclaim) WakeIfOverBudget(pool);
}

// Drops what the slot, which is being restored, would keep.
absl::Status DropKept(ServicePool& pool, SlotState& slot);

// Drops the cold pages of a slot that is being restored, together with those
// that free slots have put off.
absl::Status Demote(ServicePool& pool, SlotState& slot);
void PutOffDemotion(ServicePool& pool, const SlotState& slot);

// Where the supply distrusts what is known of pages, drops every page whose
// writes the supply may not have been told of. Called off the steady path,
// where a system call does no harm.
void DropWhatIsDistrusted(ServicePool& pool);
// Has the slot's next Bind() or Restore() drop its pages, if any thread has
// called that since the last one.
void HeedDistrust(SlotState& slot);

// Called when the last handle of an image is dropped: idle slots unbind it now,
// other slots at their release. Adds the references that they had to `dropped`,
// which the caller destroys when it holds no lock.
void LetGoOfImage(ServicePool& pool, const Image& image,
                  std::vector<std::shared_ptr<const Image>>& dropped);

// Service::Trim.
absl::StatusOr<uint64_t> TrimPool(ServicePool& pool);

// Gives back private pages of idle slots until the rest keep `budget` bytes.
// Returns the bytes given back. `more` (may be null) says whether the pool may
// be over the budget again once the releases that are under way have ended.
absl::StatusOr<uint64_t> TrimTo(ServicePool& pool, uint64_t budget, bool* more);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_RECLAIM_H_
