#include "firsttouch/service/stats.h"

#include <atomic>
#include <string>

#include "absl/strings/str_cat.h"
#include "firsttouch/control/counters.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

static_assert(ServiceStats::kLatencyBuckets == LatencyHistogram::kBuckets);

uint64_t ServiceStats::FaultLatencyQuantileNs(double part) const {
  uint64_t total = 0;
  for (uint64_t count : fault_latency) total += count;
  if (total == 0) return 0;
  uint64_t seen = 0;
  for (int i = 0; i < kLatencyBuckets; ++i) {
    seen += fault_latency[i];
    if (static_cast<double>(seen) >= part * static_cast<double>(total)) {
      return uint64_t{1} << (i + 1);
    }
  }
  return uint64_t{1} << kLatencyBuckets;
}

std::string ServiceStats::ToString() const {
  return absl::StrCat(
      "faults: ", minor_faults, " minor, ", missing_read_faults,
      " missing read, ", missing_write_faults, " missing write, ",
      write_protect_faults, " write-protect; ", traps, " traps\n",
      "pages: ", pages_mapped, " mapped, ", pages_copied, " copied, ",
      pages_zeroed, " zero, ", pages_restored, " restored, ", pages_dropped,
      " dropped\n", "retained set: ", pages_prefilled, " prefilled, ",
      pages_demoted, " demoted, ", pages_trimmed, " trimmed, ", pages_found,
      " found by scans; ", untracked_leases, " profiling leases, ",
      tracking_changes, " changes of tracking\n", "slots: ", slots, ", ",
      slots_in_use, " in use, ", slots_quarantined, " quarantined; ", handovers,
      " cycles, ", binds, " binds, ", grows, " grows\n",
      "kernel calls: ", kernel_calls, "; fault latency: half below ",
      FaultLatencyQuantileNs(0.5), " ns, 99 % below ",
      FaultLatencyQuantileNs(0.99), " ns\n");
}

void AddSlotCounters(const SlotCounters& counters, SlotCounts& counts) {
#define FIRSTTOUCH_ADD(name) \
  counts.name += counters.name.load(std::memory_order_relaxed);
  FIRSTTOUCH_SLOT_COUNTERS(FIRSTTOUCH_ADD)
#undef FIRSTTOUCH_ADD
}

}  // namespace firsttouch
