// Giving pages of a slot back to the kernel, for pools with a userfaultfd:
// finding what is resident, dropping it, and noting what was dropped.
//
// By the slot's owner, while no guest code runs in it. These functions may
// allocate and take no lock. After a failure the pages' states are unknown.

#ifndef FIRSTTOUCH_SERVICE_UFFD_DROP_H_
#define FIRSTTOUCH_SERVICE_UFFD_DROP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/uffd/batch_drop.h"

namespace firsttouch {

// The resident pages of [first_page, end_page): from the first one to the last
// one. Empty where no page is resident.
PageSpan ResidentSpan(const SlotState& slot, uint64_t first_page,
                      uint64_t end_page);

// Notes that a span, which is not empty, was dropped or, with an `error` of
// madvise(2), was not.
absl::Status NoteDropped(const UffdContext& context, SlotState& slot,
                         const PageSpan& span, int error);

// Gives back every page of the range, whether it is known to be there or not.
absl::Status DropRange(const UffdContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t pages);

// Gives back every page below `end_page`, known or not: all are missing again,
// and the working set is filled again before the next lease.
absl::Status DropEveryPage(const UffdContext& context, SlotState& slot,
                           uint64_t end_page);

// Gives back every resident page of [first_page, end_page): missing again. One
// system call, none where nothing is resident.
absl::Status DropPages(const UffdContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t end_page);

// Makes the pages outside the bounds that were made to trap one by one (handler
// threads) like untouched ones again. For a slot that is no longer leased, or
// not yet: where a guest has grown since, its pages are left alone, since the
// first touch there mends the page (HandleFault).
absl::Status UnpoisonAtRelease(const UffdContext& context, SlotState& slot);

// Demotion: pages of several slots that no longer change are dropped with one
// call, which makes one TLB shootdown. At their next touch they are mapped
// clean or, if that is a write, filled as private pages: neither makes a TLB
// shootdown, whereas protecting them one by one makes one for each.
//
// Takes the pages out of `demotion.cold_pages` that changed since they were put
// there.
void LeaveOutWarmPages(SlotState& slot);
// Adds the slot's `demotion.cold_pages` to `batch`.
void AddColdPages(const SlotState& slot, DropBatch& batch);
// Notes that they were dropped, and has the image's working set forget them.
absl::Status NoteDemoted(const UffdContext& context, SlotState& slot,
                         const DropBatch::Result& dropped);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_UFFD_DROP_H_
