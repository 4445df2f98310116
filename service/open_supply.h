// Chooses what supplies a pool's memory, and opens it. Only this file knows
// which kinds there are.

#ifndef FIRSTTOUCH_SERVICE_OPEN_SUPPLY_H_
#define FIRSTTOUCH_SERVICE_OPEN_SUPPLY_H_

#include <memory>

#include "absl/status/statusor.h"
#include "firsttouch/service/memory_supply.h"

namespace firsttouch {

// The supply that ServiceOptions::supply or FIRSTTOUCH_SUPPLY asks for; where
// neither does, the first that this kernel and user allow, in the order that
// options.h gives. Errors: InvalidArgument where the variable names no supply;
// those of the supply that was asked for; and where none was asked for, those
// of an exhausted limit, which is no reason to choose another supply.
absl::StatusOr<std::unique_ptr<MemorySupply>> OpenSupply(
    const SuppliedPool& pool);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_OPEN_SUPPLY_H_
