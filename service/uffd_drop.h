// Giving pages of a slot back to the kernel, for pools with a userfaultfd: what
// is resident, dropping it, and taking note of what was dropped.
//
// By the slot's owner, while no guest code runs in it. These functions may
// allocate and take no lock. After a failure the pages are in no known state.

#ifndef FIRSTTOUCH_SERVICE_UFFD_DROP_H_
#define FIRSTTOUCH_SERVICE_UFFD_DROP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/uffd/batch_drop.h"

namespace firsttouch {

// What is resident in [first_page, end_page): from the first such page to the
// last one. Empty: nothing is.
PageSpan ResidentSpan(const SlotState& slot, uint64_t first_page,
                      uint64_t end_page);

// Takes note that a span that is not empty was dropped or, with an `error` of
// madvise(2), was not.
absl::Status NoteDropped(const UffdContext& context, SlotState& slot,
                         const PageSpan& span, int error);

// Gives back every page of the range, known of or not.
absl::Status DropRange(const UffdContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t pages);

// Gives back every page below `end_page`, whether anything is known of it or
// not: missing again, and the next lease has its working set filled.
absl::Status DropEveryPage(const UffdContext& context, SlotState& slot,
                           uint64_t end_page);

// Gives back every page that lies in [first_page, end_page): missing again.
// One system call, none where nothing is resident.
absl::Status DropPages(const UffdContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t end_page);

// Pages outside the bounds that were made to trap one by one (handler threads)
// are as untouched ones again. For a slot that is no longer leased, or not yet:
// what a guest has grown into since is left alone, since the first touch there
// mends the page (HandleFault).
absl::Status UnpoisonAtRelease(const UffdContext& context, SlotState& slot);

// Demotion: pages of several slots that no longer change are dropped with one
// call, which makes one TLB shootdown. At their next touch they are mapped
// clean or, if that is a write, filled as private pages: neither makes a TLB
// shootdown, whereas protecting them one by one makes one for each.
//
// Takes those out of `demotion.cold_pages` that changed since they were put
// there.
void LeaveOutWarmPages(SlotState& slot);
// Adds the slot's `demotion.cold_pages` to what is dropped.
void AddColdPages(const SlotState& slot, DropBatch& batch);
// Takes note that they were, and has the image's working set forget them.
absl::Status NoteDemoted(const UffdContext& context, SlotState& slot,
                         const DropBatch::Result& dropped);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_UFFD_DROP_H_
