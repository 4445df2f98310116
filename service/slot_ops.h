// What is done to a slot between two holders: binding an image, restoring,
// dropping.
//
// All of these belong to the slot's owner (the thread that acquires, resets or
// releases it) while no guest code runs in it. They may allocate and take no
// lock. A failure leaves the slot in a state that is not known: at an acquire
// the caller abandons it (see Abandon), at a release it is quarantined.

#ifndef FIRSTTOUCH_SERVICE_SLOT_OPS_H_
#define FIRSTTOUCH_SERVICE_SLOT_OPS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/drift.h"
#include "firsttouch/service/fault_core.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/batch_drop.h"

namespace firsttouch {

// What the operations need beside the fault path's view of the pool.
struct SlotOpsContext {
  FaultCore& core;
  // Which tracking each image needs.
  DriftPolicies* policies = nullptr;
  // Of PAGEMAP_SCAN; -1 where there is none (before 6.7), and then pages that
  // may have changed are dropped instead of looked at.
  int pagemap_fd = -1;
  // A second userfaultfd, with UFFD_FEATURE_WP_ASYNC (6.7), for Tracking::
  // kAsync; -1 where there is none. Protection that lifts itself belongs to a
  // userfaultfd, not to a range, so one pool needs two.
  int async_uffd = -1;
  // Whether the first holder of an unknown image may run untracked.
  bool learn_untracked = false;
  // Bytes from one slot's start to the next one's.
  uint64_t stride_bytes = 0;
  bool include_in_core_dump = false;
  // Hand-overs after which `recent` becomes `previous`.
  uint32_t span_handovers = 30;
};

// Notes in the record that the slot's memory is that of `image` (null: zeroes).
void SetImage(SlotState& slot, const ImageRef& image);

// Returns at a moment at which no snapshot keeps anybody from writing.
void WaitUntilThawed(const SlotState& slot);

// Waits until no fill is under way in the slot. Spins, then yields: a fill is a
// system call of some microseconds.
void WaitForFills(const SlotState& slot);

// Makes the slot's memory that of `image` (null: zeroes), whatever it was
// before. Nothing but pages that are known to be clean stays resident. Every
// property of the range (registration, DONTFORK, DONTDUMP, NOHUGEPAGE) is as
// before. An error that leaves the slot's `remap_wanted` false has changed
// nothing.
absl::Status BindImage(const SlotOpsContext& context, SlotState& slot,
                       const ImageRef& image);

// What BindImage and the functions below leave behind when they fail half-way
// is put right in two steps. Abandon, at once: forgets what the slot was bound
// to and what is known of its pages, so that nothing refers to it. MapAllAnew,
// before the next holder: maps and registers all of the memory as if it had
// never been used. The kernel drops every page of it, so that it is known to be
// clean.
void Abandon(SlotState& slot);
absl::Status MapAllAnew(const SlotOpsContext& context, SlotState& slot);

// Makes the slot's way of tracking the one that its policy asks for, for a
// holder that starts with `size_pages` pages; no page below that is resident
// outside the new bounds afterwards. No system call where nothing changes.
absl::Status AdjustTracking(const SlotOpsContext& context, SlotState& slot,
                            uint64_t size_pages);

// Tracks pages from `new_end` on by signals again; they are missing then.
absl::Status LeaveKernelTracking(const SlotOpsContext& context, SlotState& slot,
                                 uint64_t new_end);

// Makes the pages private that tenants of the slot's image are known to write,
// and maps those that they read, if the slot was bound or emptied since the
// last time. What fails is left to the first touch.
void Prefill(const SlotOpsContext& context, SlotState& slot,
             uint64_t size_pages, uint64_t most_pages);

// Finds out which pages below kernel_pages have changed, and marks them open.
absl::Status FindKernelWrites(const SlotOpsContext& context, SlotState& slot);

// What is resident in [first_page, end_page): from the first such page to the
// last one. Empty: nothing is.
PageSpan ResidentSpan(const SlotState& slot, uint64_t first_page,
                      uint64_t end_page);

// Takes note that a span that is not empty was dropped or, with an `error` of
// madvise(2), was not.
absl::Status NoteDropped(const SlotOpsContext& context, SlotState& slot,
                         const PageSpan& span, int error);

// Gives back every page below `end_page`, whether anything is known of it or
// not: missing again, and the next holder has its working set filled.
absl::Status DropEveryPage(const SlotOpsContext& context, SlotState& slot,
                           uint64_t end_page);

// Gives back every page that lies in [first_page, end_page): missing again.
// One system call, none where nothing is resident.
absl::Status DropPages(const SlotOpsContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t end_page);

// Pages outside the bounds that were made to trap one by one (handler threads)
// are as untouched ones again. For a slot that nobody holds any more, or not
// yet: what a holder has grown into since is left alone, since the first touch
// there mends the page (HandleFault).
absl::Status DropStrays(const SlotOpsContext& context, SlotState& slot);

// Restores the initial bytes of pages below `keep_pages` and drops those up to
// `size_pages` (pages that the holder grew into). Restored pages stay private
// and writable, as the next holder's hot set, up to `hot_pages_limit` of them;
// above that all of the slot is dropped. Pages that were not found changed for
// two to three spans of hand-overs are put into `cold_pages`, and where it pays
// to drop them now, `demotion_due` is set.
absl::Status RestorePages(const SlotOpsContext& context, SlotState& slot,
                          uint64_t keep_pages, uint64_t size_pages,
                          uint64_t hot_pages_limit);

// Demotion: pages of several slots that no longer change are dropped with one
// call, which interrupts the other cores once. Next time they are mapped clean
// or, if they are written after all, filled as private ones: neither interrupts
// other cores, as it would to protect them one by one.
//
// Takes those out of `cold_pages` that changed since they were put there.
void LeaveOutWarmPages(SlotState& slot);
// Adds the slot's `cold_pages` to what is dropped.
void AddColdPages(const SlotState& slot, DropBatch& batch);
// Takes note that they were, and has the image's working set forget them.
absl::Status NoteDemoted(const SlotOpsContext& context, SlotState& slot,
                         const DropBatch::Result& dropped);

// Finds out which untracked pages below `end_page` have changed; afterwards
// none of them is untracked. Those of which no scan tells are dropped, and so
// are those that are not known to be present. After an error those that it did
// not get to are untracked still.
absl::Status SettleUntracked(const SlotOpsContext& context, SlotState& slot,
                             uint64_t end_page);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SLOT_OPS_H_
