// Finding out which pages a guest changes where the kernel tracks them:
// asynchronous write-protection (Tracking::kAsync), leases that are not tracked
// at all, and zero pages that were mapped without protection. For pools with a
// userfaultfd; tracking_policy.h has the choice between them.
//
// By the slot's owner, while no guest code runs in it, but for
// FindKernelWrites(). These functions may allocate and take no lock. After a
// failure the slot's state is unknown.

#ifndef FIRSTTOUCH_SERVICE_UFFD_TRACKING_H_
#define FIRSTTOUCH_SERVICE_UFFD_TRACKING_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/uffd/abi.h"

namespace firsttouch {

// Gives the slot the tracking that its policy asks for, for a lease that starts
// with `size_pages` pages; afterwards the kernel tracks no page outside the new
// bounds. No system call where nothing changes.
absl::Status AdjustTracking(const UffdContext& context, SlotState& slot,
                            uint64_t size_pages);

// Tracks the pages from `new_end` on by signals again; they are missing then.
absl::Status LeaveKernelTracking(const UffdContext& context, SlotState& slot,
                                 uint64_t new_end);

// Gives the pages from kernel_pages to `end` to the kernel's tracking. Their
// contents stay.
absl::Status EnterAsync(const UffdContext& context, SlotState& slot,
                        uint64_t end);

// Protects every page below kernel_pages again: retained pages fault once more,
// and all others need not be restored any longer. Where protecting fails, the
// pages stay as they are, and are restored.
void ProtectAll(const UffdContext& context, SlotState& slot);

// Finds out which pages below kernel_pages have changed, and marks them dirty.
absl::Status FindKernelWrites(const UffdContext& context, SlotState& slot);

// Calls visit(region) for the private pages below `end_page`: those that leases
// have written to and that were not dropped since, protected or not. Returns
// their number. Visits fewer where the scan fails.
uint64_t ForEachPrivateRegion(
    const UffdContext& context, SlotState& slot, uint64_t end_page,
    absl::FunctionRef<void(const PageRegion& region)> visit);

// Finds out which untracked pages below `end_page` have changed; afterwards
// none of them is untracked. Pages that no scan can judge are dropped, and so
// are those that are not known to be present. After an error the pages that
// were not reached are still untracked.
absl::Status SettleUntracked(const UffdContext& context, SlotState& slot,
                             uint64_t end_page);

// How far a slot's own guests are known to write: to the image's end, or behind
// it.
uint64_t WrittenEnd(const SlotState& slot, uint64_t size_pages);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_UFFD_TRACKING_H_
