#include "firsttouch/pool/slot_strategy.h"

#include <string_view>

namespace firsttouch {

std::string_view SlotStrategyName(SlotStrategy strategy) {
  switch (strategy) {
    case SlotStrategy::kNextAvailable:
      return "next-available";
    case SlotStrategy::kRandom:
      return "random";
    case SlotStrategy::kAffinity:
      return "affinity";
  }
  return "unknown";
}

}  // namespace firsttouch
