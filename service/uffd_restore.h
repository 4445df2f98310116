// Restoring a slot after a lease, for pools with a userfaultfd, and what is
// learned from it: which pages leases of the image write and read, which pages
// have stopped changing, and which tracking fits the image.
//
// By the slot's owner, while no guest code runs in it. May allocate, takes no
// lock.

#ifndef FIRSTTOUCH_SERVICE_UFFD_RESTORE_H_
#define FIRSTTOUCH_SERVICE_UFFD_RESTORE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/uffd_mapping.h"

namespace firsttouch {

// Restores the initial bytes of pages below `keep_pages` and drops those up to
// `size_pages` (pages that the guest grew into). Restored pages stay private
// and writable, as the next lease's retained pages, up to
// `retained_pages_limit` of them; above that the whole slot is dropped. Pages
// that were not found changed for two to three sampling windows, or are not
// worth their memory (retention.h), are put into `demotion.cold_pages`, and
// `demotion.due` is set where dropping them now pays.
absl::Status RestorePages(const UffdContext& context, SlotState& slot,
                          uint64_t keep_pages, uint64_t size_pages,
                          uint64_t retained_pages_limit);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_UFFD_RESTORE_H_
