// How the pages that a guest changes are found out, where the kernel tracks
// them: asynchronous write-protection (Tracking::kAsync), leases that are not
// tracked at all, and zero pages that were mapped without protection. For
// pools with a userfaultfd; who chooses is in tracking_policy.h.
//
// By the slot's owner, while no guest code runs in it, but for
// FindKernelWrites(). These functions may allocate and take no lock. After a
// failure the slot is in no known state.

#ifndef FIRSTTOUCH_SERVICE_UFFD_TRACKING_H_
#define FIRSTTOUCH_SERVICE_UFFD_TRACKING_H_

#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/uffd_mapping.h"

namespace firsttouch {

// Makes the slot's way of tracking the one that its policy asks for, for a
// lease that starts with `size_pages` pages; no page below that is resident
// outside the new bounds afterwards. No system call where nothing changes.
absl::Status AdjustTracking(const UffdContext& context, SlotState& slot,
                            uint64_t size_pages);

// Tracks pages from `new_end` on by signals again; they are missing then.
absl::Status LeaveKernelTracking(const UffdContext& context, SlotState& slot,
                                 uint64_t new_end);

// Hands the pages from kernel_pages to `end` over to the kernel's tracking.
// What they hold stays.
absl::Status EnterAsync(const UffdContext& context, SlotState& slot,
                        uint64_t end);

// Protects every page below kernel_pages again: retained ones will fault once
// more, and all others need not be restored any longer. Where it does not work
// the pages stay as they are, and are restored.
void ProtectAll(const UffdContext& context, SlotState& slot);

// Finds out which pages below kernel_pages have changed, and marks them dirty.
absl::Status FindKernelWrites(const UffdContext& context, SlotState& slot);

// Finds out which untracked pages below `end_page` have changed; afterwards
// none of them is untracked. Those of which no scan tells are dropped, and so
// are those that are not known to be present. After an error those that it did
// not get to are untracked still.
absl::Status SettleUntracked(const UffdContext& context, SlotState& slot,
                             uint64_t end_page);

// How far a slot's own guests write, as far as is known: to the image's end,
// or behind it.
uint64_t WrittenEnd(const SlotState& slot, uint64_t size_pages);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_UFFD_TRACKING_H_
