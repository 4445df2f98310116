// Supplies by enumerators, for programs that go through all of them: tests,
// benchmarks, examples. A host writes UserfaultfdOptions or MappingOptions.

#ifndef FIRSTTOUCH_SERVICE_SUPPLY_CHOICE_H_
#define FIRSTTOUCH_SERVICE_SUPPLY_CHOICE_H_

#include <cstdint>
#include <optional>

#include "firsttouch/service/options.h"
#include "firsttouch/service/supply_kinds.h"

namespace firsttouch {

// The choice of exactly this supply. With mappings the other arguments are
// ignored.
inline SupplyChoice ChoiceOf(Supply supply,
                             std::optional<Backing> backing = std::nullopt,
                             Resolve resolve = Resolve::kInThread,
                             std::optional<Tracking> tracking = std::nullopt,
                             uint32_t handler_threads = 1) {
  if (supply != Supply::kUserfaultfd) {
    return MappingOptions{.scan = supply == Supply::kMappingsScan};
  }
  UserfaultfdOptions options = {.backing = backing, .tracking = tracking};
  if (resolve == Resolve::kHandlerThread) {
    options.faults = InHandlerThreads{.threads = handler_threads};
  }
  return options;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SUPPLY_CHOICE_H_
