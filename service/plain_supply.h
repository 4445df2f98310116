// The simplest supply: plain anonymous memory that the image is copied into,
// and that is copied over at each release. For tests: it has exactly what the
// service needs of a supply. Where another supply shows a guest something else,
// the other supply is wrong.

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
