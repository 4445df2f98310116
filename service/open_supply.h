// Chooses what supplies a pool's memory, and opens it. The one place that knows
// which kinds there are.

#ifndef FIRSTTOUCH_SERVICE_OPEN_SUPPLY_H_
#define FIRSTTOUCH_SERVICE_OPEN_SUPPLY_H_

#include <memory>

#include "absl/status/statusor.h"
#include "firsttouch/service/memory_supply.h"

namespace firsttouch {

// The supply that ServiceOptions::supply or FIRSTTOUCH_SUPPLY asks for; where
// neither does, the first that this kernel and user allow, in the order that
// options.h gives. Errors: InvalidArgument for a variable that names none;
// those of the supply that was asked for; and with none asked for, of an
// exhausted limit, which is no reason to choose another one.
absl::StatusOr<std::unique_ptr<MemorySupply>> OpenSupply(
    const SuppliedPool& pool);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_OPEN_SUPPLY_H_
