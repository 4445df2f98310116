// What a service counted, summed over its slots.

#ifndef FIRSTTOUCH_SERVICE_STATS_H_
#define FIRSTTOUCH_SERVICE_STATS_H_

#include <array>
#include <cstdint>
#include <string>

#include "firsttouch/service/fault_core.h"

namespace firsttouch {

// Counts since the service was made. Each is exact; read while others run, they
// may be a moment apart from each other. docs/statistics.md says of each when
// it should worry you.
struct ServiceStats {
  // Faults by kind.
  uint64_t minor_faults = 0;          // first read of an image page, shared
  uint64_t missing_read_faults = 0;   // first read of any other page
  uint64_t missing_write_faults = 0;  // first touch was a write
  uint64_t write_protect_faults = 0;  // first write to a page that was clean
  uint64_t traps = 0;                 // touches outside the bounds

  // Pages by how they came and went.
  uint64_t pages_mapped = 0;    // shared with the image
  uint64_t pages_copied = 0;    // private from their first touch
  uint64_t pages_zeroed = 0;    // the kernel's page of zeroes
  uint64_t pages_restored = 0;  // copied back, or zeroed, at release and reset
  uint64_t pages_dropped = 0;   // given back to the kernel

  uint64_t pages_prefilled = 0;  // made private before a holder asked
  uint64_t pages_trimmed = 0;    // given back by slots that nobody had
  uint64_t pages_demoted = 0;    // hot ones that had stopped changing; dropped
  uint64_t pages_found = 0;      // changed, as a scan told

  uint64_t untracked_leases = 0;  // first holders, who taught a write set
  uint64_t tracking_changes = 0;  // of slots, between signals and async

  uint64_t handovers = 0;  // releases after which the slot was clean
  uint64_t binds = 0;      // an image was put into a slot, or replaced there
  uint64_t grows = 0;
  uint64_t kernel_calls = 0;  // system calls made for all of the above

  uint64_t slots = 0;
  uint64_t slots_in_use = 0;
  uint64_t idle_private_bytes = 0;  // kept by slots that nobody has
  uint64_t slots_quarantined = 0;   // a reset failed: never used again

  // Resolved faults by latency: bucket i counts [2^i, 2^(i+1)) ns.
  std::array<uint64_t, LatencyHistogram::kBuckets> fault_latency{};

  uint64_t faults() const {
    return minor_faults + missing_read_faults + missing_write_faults +
           write_protect_faults;
  }

  // The upper end, in ns, of the bucket in which the given part (0 to 1) of all
  // resolved faults is reached; 0 without faults.
  uint64_t FaultLatencyQuantileNs(double part) const;

  // A few lines for people.
  std::string ToString() const;
};

// Adds one slot's counters.
void AddSlotCounters(const SlotCounters& counters, ServiceStats& stats);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_STATS_H_
