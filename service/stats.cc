#include "firsttouch/service/stats.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace firsttouch {

uint64_t ServiceStats::FaultLatencyQuantileNs(double part) const {
  uint64_t total = 0;
  for (uint64_t count : fault_latency) total += count;
  if (total == 0) return 0;
  uint64_t seen = 0;
  for (int i = 0; i < LatencyHistogram::kBuckets; ++i) {
    seen += fault_latency[i];
    if (static_cast<double>(seen) >= part * static_cast<double>(total)) {
      return uint64_t{1} << (i + 1);
    }
  }
  return uint64_t{1} << LatencyHistogram::kBuckets;
}

std::string ServiceStats::ToString() const {
  return absl::StrCat(
      "faults: ", minor_faults, " minor, ", missing_read_faults,
      " missing read, ", missing_write_faults, " missing write, ",
      write_protect_faults, " write-protect; ", traps, " traps\n",
      "pages: ", pages_mapped, " mapped, ", pages_copied, " copied, ",
      pages_zeroed, " zero, ", pages_restored, " restored, ", pages_dropped,
      " dropped\n", "hot set: ", pages_prefilled, " prefilled, ", pages_demoted,
      " demoted, ", pages_trimmed, " trimmed, ", pages_found,
      " found by scans; ", untracked_leases, " untracked holders, ",
      tracking_changes, " changes of tracking\n", "slots: ", slots, ", ",
      slots_in_use, " in use, ", slots_quarantined, " quarantined; ", handovers,
      " hand-overs, ", binds, " binds, ", grows, " grows\n",
      "kernel calls: ", kernel_calls, "; fault latency: half below ",
      FaultLatencyQuantileNs(0.5), " ns, 99 % below ",
      FaultLatencyQuantileNs(0.99), " ns\n");
}

void AddSlotCounters(const SlotCounters& counters, ServiceStats& stats) {
  const auto get = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  stats.minor_faults += get(counters.minor_faults);
  stats.missing_read_faults += get(counters.missing_read_faults);
  stats.missing_write_faults += get(counters.missing_write_faults);
  stats.write_protect_faults += get(counters.write_protect_faults);
  stats.traps += get(counters.traps);
  stats.pages_mapped += get(counters.pages_mapped);
  stats.pages_copied += get(counters.pages_copied);
  stats.pages_zeroed += get(counters.pages_zeroed);
  stats.pages_restored += get(counters.pages_restored);
  stats.pages_dropped += get(counters.pages_dropped);
  stats.pages_prefilled += get(counters.pages_prefilled);
  stats.pages_trimmed += get(counters.pages_trimmed);
  stats.pages_demoted += get(counters.pages_demoted);
  stats.pages_found += get(counters.pages_found);
  stats.untracked_leases += get(counters.untracked_leases);
  stats.tracking_changes += get(counters.tracking_changes);
  stats.handovers += get(counters.handovers);
  stats.binds += get(counters.binds);
  stats.grows += get(counters.grows);
  stats.kernel_calls += get(counters.kernel_calls);
}

}  // namespace firsttouch
