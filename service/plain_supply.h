// A supply without any art: plain anonymous memory that the image is copied
// into, and copied over at each release. For tests: what the service needs of a
// supply is what this one has, and where another one differs from it in what a
// guest sees, the other one is wrong.

#ifndef FIRSTTOUCH_SERVICE_PLAIN_SUPPLY_H_
#define FIRSTTOUCH_SERVICE_PLAIN_SUPPLY_H_

#include <memory>

#include "absl/status/statusor.h"
#include "firsttouch/service/memory_supply.h"

namespace firsttouch {

// A SupplyOpener. Never fails.
absl::StatusOr<std::unique_ptr<MemorySupply>> OpenPlainSupply(
    const SuppliedPool& pool);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_PLAIN_SUPPLY_H_
