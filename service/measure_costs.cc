#include "firsttouch/service/measure_costs.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/service/restore_page.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr uint64_t kMeasuredPages = 8;

// What MeasurePageTimes() gives on the machine that the defaults of PageCosts
// are from.
constexpr PageTimes kReference = {.fill_ns = 1500, .restore_ns = 100};

// How much slower than the reference: a power of 1.5, from 1/11 to 11.
double Slower(double ns, double reference_ns) {
  if (ns <= 0) return 1;
  constexpr double kStep = 1.5;
  constexpr double kMostSteps = 6;
  const double steps =
      std::round(std::log(ns / reference_ns) / std::log(kStep));
  return std::pow(kStep, std::clamp(steps, -kMostSteps, kMostSteps));
}

}  // namespace

PageTimes MeasurePageTimes(Kernel& kernel, int uffd, uintptr_t start,
                           uint64_t pages, uintptr_t zeroes) {
  pages = std::min(pages, kMeasuredPages);
  PageTimes best;
  for (uint64_t i = 0; i < pages; ++i) {
    const uintptr_t address = start + i * kPageBytes;
    const uint64_t before = MonotonicNanos();
    const FillResult fill =
        CopyRange(kernel, uffd, address, zeroes, kPageBytes, 0, {});
    const uint64_t filled = MonotonicNanos();
    if (!fill.ok() || fill.pages_present != 0) {
      best = {};
      break;
    }
    auto* const page = reinterpret_cast<std::byte*>(address);
    page[kPageBytes / 2] = std::byte{1};
    const uint64_t changed = MonotonicNanos();
    RestoreZeroPage(page, /*downwards=*/false);
    const uint64_t restored = MonotonicNanos();
    const auto least = [](double& least_ns, uint64_t ns) {
      const auto now = static_cast<double>(ns);
      least_ns = least_ns == 0 ? now : std::min(least_ns, now);
    };
    least(best.fill_ns, filled - before);
    least(best.restore_ns, restored - changed);
  }
  if (!DropMappedPages(kernel, start, pages * kPageBytes).ok()) return {};
  return best;
}

PageCosts CostsOf(const PageTimes& times) {
  const double kernel = Slower(times.fill_ns, kReference.fill_ns);
  const double copying = Slower(times.restore_ns, kReference.restore_ns);
  PageCosts costs;
  for (double* ns :
       {&costs.signal_ns, &costs.kernel_fault_ns, &costs.kernel_copy_ns,
        &costs.scan_ns, &costs.scan_page_ns, &costs.exact_scan_ns,
        &costs.protect_ns, &costs.protect_page_ns, &costs.drop_ns,
        &costs.drop_page_ns}) {
    *ns *= kernel;
  }
  for (double* ns :
       {&costs.restore_ns, &costs.restore_zero_ns, &costs.first_restore_ns}) {
    *ns *= copying;
  }
  return costs;
}

}  // namespace firsttouch
