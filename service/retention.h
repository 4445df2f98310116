// Which pages a slot keeps from one lease to the next, and when the others are
// given back.
//
// A retained page costs something in every cycle: restoring it (q), and its
// memory (m). A page that was given back costs what its next write takes (f),
// in the share p of the leases that change it. So a page is worth keeping where
//   p f > q + m
// p is counted over the leases of an image in all slots of a pool (ChangeRates)
// and not slot by slot: that takes 64 leases and not 64 leases of each slot,
// and a slot that is bound later knows it at once.
//
// Where pages that are not worth keeping are given back together, one call is
// paid for all of them. They are left until keeping them has cost as much as
// that call: never more than twice of what is best (ski rental).
//
// What memory is worth is said in bytes per microsecond
// (ServiceOptions::retained_bytes_per_us), of all slots together: keeping one
// page more in each slot takes as many pages as there are slots, and shortens
// each cycle by as much as in a pool of one slot. So m grows with the number of
// slots that keep pages. In pools of few slots m is next to nothing, and p
// would have to be known more exactly than 64 leases tell it: there pages are
// kept until they were not changed for two sampling windows (uffd_restore.h).

#ifndef FIRSTTOUCH_SERVICE_RETENTION_H_
#define FIRSTTOUCH_SERVICE_RETENTION_H_

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {

// The leases from which ChangeRates decides.
inline constexpr uint32_t kLeasesCounted = 64;

// What the memory of a page is worth per cycle, in ns: m. `bytes_per_us` is
// ServiceOptions::retained_bytes_per_us, 0 where memory is free;
// `keeping_slots` the number of slots that keep pages.
double PageMemoryNs(uint64_t bytes_per_us, uint32_t keeping_slots);

// In how many of kLeasesCounted leases a page has to be changed at least, to be
// worth keeping, at `memory_ns` (m). At most all but four of them: what almost
// every lease changes is kept at any price. 0 where a page's memory is not
// worth more than restoring it, and where so few leases cannot tell.
uint32_t LeastChanges(const PageCosts& costs, double memory_ns);

// Whether to give back `pages` pages with one call, now that keeping them has
// cost `rent_ns`.
bool ShouldGiveBack(const PageCosts& costs, double rent_ns, uint64_t pages);

// How often the leases of an image change each page. Any thread; not for signal
// handlers.
class ChangeRates {
 public:
  // Page p is bit p % 64 of word p / 64.
  using Words = std::vector<uint64_t>;

  // Adds the pages that one lease has changed. After kLeasesCounted leases, and
  // then after each half as many, those that were changed in at least
  // `least_changes` (not 0) of the last ones become the regular pages; older
  // leases count half.
  void Add(std::span<const uint64_t> changed, uint32_t least_changes);

  // Changes with the regular pages. 0: nothing is known yet.
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  // The regular pages: those that are worth keeping.
  Words Regular() const;

 private:
  mutable Mutex mutex_;
  std::vector<uint8_t> changes_ ABSL_GUARDED_BY(mutex_);
  // The pages of which `changes_` is not 0: in a memory of 4 GiB a few of a
  // million, and other threads wait while they are gone through.
  Words counted_ ABSL_GUARDED_BY(mutex_);
  uint32_t leases_ ABSL_GUARDED_BY(mutex_) = 0;
  Words regular_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> version_{0};
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_RETENTION_H_
