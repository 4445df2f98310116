// The order in which a pool hands out its free slots.

#ifndef FIRSTTOUCH_POOL_SLOT_STRATEGY_H_
#define FIRSTTOUCH_POOL_SLOT_STRATEGY_H_

#include <string_view>

namespace firsttouch {

// Which free slot to take.
enum class SlotStrategy {
  // The one released last, on this core if there is one: its pages and caches
  // are warm, and the number of slots ever used stays as small as the load
  // allows. Never-used slots come last, in ascending order.
  kNextAvailable,
  // Any slot, with equal probability: a guest cannot foresee its neighbours.
  // The generator is pseudo-random, and does not withstand an attacker that
  // sees many results.
  kRandom,
  // The one that needs the least work for the caller's key:
  //   1. the one released last among those last released with the same key
  //      (on this core first);
  //   2. one last released with key 0, then one never used;
  //   3. the least recently released of the rest (exact within a shard; between
  //      shards as far as the releases are separated by such a case 3).
  kAffinity,
};

// "next-available", "random", "affinity". Static storage.
std::string_view SlotStrategyName(SlotStrategy strategy);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_SLOT_STRATEGY_H_
