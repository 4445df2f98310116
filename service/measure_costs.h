// How fast this machine is at what a cycle consists of.

#ifndef FIRSTTOUCH_SERVICE_MEASURE_COSTS_H_
#define FIRSTTOUCH_SERVICE_MEASURE_COSTS_H_

#include <cstdint>

#include "firsttouch/service/page_costs.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

// What a few pages of a pool have taken.
struct PageTimes {
  // A call that places one page (UFFDIO_COPY).
  double fill_ns = 0;
  // Comparing a page with its initial bytes, and restoring it.
  double restore_ns = 0;
};

// Places some of the `pages` pages at `start`, restores them, and gives them
// back: some 30 us. They are registered with `uffd` and missing, and are so
// afterwards. `zeroes` is a zero page. Times of 0 where a call fails.
PageTimes MeasurePageTimes(Kernel& kernel, int uffd, uintptr_t start,
                           uint64_t pages, uintptr_t zeroes);

// The costs on a machine that takes so long: those that the kernel causes and
// those of copying grow by as much as the two times do beside those of the
// machine that the defaults are from. In steps of a half more, so that two
// processes on one machine decide alike. Unchanged for times of 0.
PageCosts CostsOf(const PageTimes& times);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_MEASURE_COSTS_H_
