// From one look at a process to the next: what happened each second.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_RATES_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_RATES_H_

#include <cstdint>
#include <map>
#include <vector>

#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// Thread-compatible. Allocates.
class RateMeter {
 public:
  // Sets `rates` of the slots and of the totals of all pools that were there at
  // the last look, too, and remembers the counters for the next. A counter that
  // fell is of another pool, and its rate is 0. Slots are those that the
  // process has, before any filter.
  void Measure(ProcessSnapshot* snapshot);

 private:
  // At the last look, by pool and slot.
  // Pools and guests have numbers of their own.
  using Key = std::pair<bool, uint32_t>;
  std::map<Key, std::vector<Counters>> before_;
  int64_t before_ns_ = 0;  // 0: there was none.
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_RATES_H_
