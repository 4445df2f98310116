// Statistics of a service, summed over its slots.

#ifndef FIRSTTOUCH_SERVICE_STATS_H_
#define FIRSTTOUCH_SERVICE_STATS_H_

#include <array>
#include <cstdint>
#include <string>

#include "firsttouch/control/counters.h"

namespace firsttouch {

struct SlotCounters;

// The counters of control/counters.h, since the service was made. Each is
// exact; counters read while others run may be a moment apart.
// docs/statistics.md says for each when it is a reason to worry.
struct SlotCounts {
#define FIRSTTOUCH_DECLARE(name) uint64_t name = 0;
  FIRSTTOUCH_SLOT_COUNTERS(FIRSTTOUCH_DECLARE)
#undef FIRSTTOUCH_DECLARE

  uint64_t faults() const {
    return minor_faults + missing_read_faults + missing_write_faults +
           write_protect_faults;
  }
};

// The counters of all slots together, and the present state of the service.
struct ServiceStats : SlotCounts {
  uint64_t slots = 0;
  uint64_t slots_in_use = 0;
  uint64_t idle_private_bytes = 0;  // kept by free slots
  uint64_t slots_quarantined = 0;   // a reset failed: never used again

  // Resolved faults by latency: bucket i counts [2^i, 2^(i+1)) ns.
  static constexpr int kLatencyBuckets = 32;
  std::array<uint64_t, kLatencyBuckets> fault_latency{};

  // The upper end, in ns, of the latency bucket in which the given part (0 to
  // 1) of all resolved faults is reached; 0 without faults.
  uint64_t FaultLatencyQuantileNs(double part) const;

  // A few lines of text for people.
  std::string ToString() const;
};

// Adds one slot's counters. Used by the service itself.
void AddSlotCounters(const SlotCounters& counters, SlotCounts& counts);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_STATS_H_
