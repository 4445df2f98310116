// The counters of slots by their names, and sums of them.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_TOTALS_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_TOTALS_H_

#include <cstdint>

#include "firsttouch/control/counters.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// A counter as a control block names it, and where it is in a message.
struct NamedCounter {
  const char* name;
  void (Counters::*set)(uint64_t);
  uint64_t (Counters::*get)() const;
};

inline constexpr NamedCounter kSlotCounters[] = {
#define FIRSTTOUCH_NAMED(name) {#name, &Counters::set_##name, &Counters::name},
    FIRSTTOUCH_SLOT_COUNTERS(FIRSTTOUCH_NAMED)
#undef FIRSTTOUCH_NAMED
};

// Faults of all kinds.
uint64_t Faults(const Counters& counters);

// Adds a slot to the sums, all of its fields that are set.
void AddToTotals(const Slot& slot, Totals& totals);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_TOTALS_H_
