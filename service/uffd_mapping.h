// Mapping and registering ranges of a slot's memory, for pools with a
// userfaultfd.
//
// By the slot's owner, while no guest code runs in it. These functions may
// allocate and take no lock. A failure leaves a range whose registration is
// unknown, and makes it inaccessible: the slot is abandoned, or quarantined.

#ifndef FIRSTTOUCH_SERVICE_UFFD_MAPPING_H_
#define FIRSTTOUCH_SERVICE_UFFD_MAPPING_H_

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// What the functions that work on a slot need besides the fault path's view of
// the pool.
struct UffdContext {
  FaultPool& fault_pool;
  // The tracking policy of each image.
  TrackingPolicies* policies = nullptr;
  // The descriptor for PAGEMAP_SCAN; -1 where there is none (before 6.7): pages
  // that may have changed are dropped then instead of looked at.
  int pagemap_fd = -1;
  // A second userfaultfd, with UFFD_FEATURE_WP_ASYNC (6.7), for
  // Tracking::kAsync; -1 where there is none. Protection that lifts itself
  // belongs to a userfaultfd, not to a range, so one pool needs two.
  int async_uffd = -1;
  // Whether the first lease of an unknown image is a profiling lease.
  bool profile_unknown_images = false;
  // Bytes from one slot's start to the next slot's.
  uint64_t stride_bytes = 0;
  bool include_in_core_dump = false;
  // Cycles after which `recent` becomes `previous`.
  uint32_t window_cycles = 30;
  // ServiceOptions::retained_bytes_per_us; 0: memory is free.
  uint64_t retained_bytes_per_us = 0;
  PageCosts costs;
  // Whether restores are timed. (A fake kernel's decide by `costs` alone.)
  bool times_restores = false;
  // NoHugePagesByMmap() of this kernel.
  bool no_huge_pages_by_mmap = false;
  // What ProcessMergesPages() has said last; null: to be asked.
  const std::atomic<bool>* process_merges = nullptr;
};

// The error of a system call on pages of a slot.
absl::Status CallFailed(const UffdContext& context, const SlotState& slot,
                        int error, const char* call, uint64_t first_page,
                        uint64_t pages);

// Registers pages with `uffd` for faults of `mode` (abi.h), or unregisters
// them. No call for no pages.
absl::Status Register(const UffdContext& context, SlotState& slot, int uffd,
                      uint64_t mode, uint64_t first_page, uint64_t pages);
absl::Status Unregister(const UffdContext& context, SlotState& slot, int uffd,
                        uint64_t first_page, uint64_t pages);

// Registers unregistered pages as Tracking::kSignal needs them.
absl::Status RegisterForSignals(const UffdContext& context, SlotState& slot,
                                uint64_t first_page, uint64_t end_page);

// Maps [first_page, first_page + pages) anew, from the image's memfd at the
// same offset or, with fd -1, anonymous, and gives it every property that the
// rest of the pool has, except for the registration where the next lease is
// `profiling`. No call for no pages.
absl::Status MapAnew(const UffdContext& context, SlotState& slot,
                     uint64_t first_page, uint64_t pages, int fd,
                     bool profiling = false);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_UFFD_MAPPING_H_
