#include "firsttouch/tools/pooldump/rates.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "firsttouch/tools/pooldump/snapshot/totals.h"

namespace firsttouch::pooldump {
namespace {

double PerSecond(uint64_t now, uint64_t before, double seconds) {
  return now <= before || seconds <= 0
             ? 0
             : static_cast<double>(now - before) / seconds;
}

}  // namespace

void RateMeter::Measure(ProcessSnapshot* snapshot) {
  const double seconds =
      static_cast<double>(snapshot->monotonic_ns() - before_ns_) / 1e9;
  std::map<Key, std::vector<Counters>> counters;
  for (PoolSnapshot& pool : *snapshot->mutable_pools()) {
    const Key key = {pool.has_guest(), pool.pool_id()};
    std::vector<Counters>& of_pool = counters[key];
    of_pool.reserve(static_cast<size_t>(pool.slots_size()));
    const auto known = before_.find(key);
    Rates total;
    for (Slot& slot : *pool.mutable_slots()) {
      const size_t number = of_pool.size();
      of_pool.push_back(slot.counters());
      if (known == before_.end() || number >= known->second.size()) continue;
      const Counters& before = known->second[number];
      const Counters& now = slot.counters();
      Rates& rates = *slot.mutable_rates();
      rates.set_seconds(seconds);
      rates.set_traps(PerSecond(now.traps(), before.traps(), seconds));
      rates.set_handovers(
          PerSecond(now.handovers(), before.handovers(), seconds));
      total.set_traps(total.traps() + rates.traps());
      total.set_handovers(total.handovers() + rates.handovers());
      if (now.faults_unknown()) continue;
      rates.set_faults(PerSecond(Faults(now), Faults(before), seconds));
      total.set_faults(total.faults() + rates.faults());
    }
    if (known == before_.end()) continue;
    total.set_seconds(seconds);
    *pool.mutable_totals()->mutable_rates() = total;
  }
  before_ = std::move(counters);
  before_ns_ = snapshot->monotonic_ns();
}

}  // namespace firsttouch::pooldump
