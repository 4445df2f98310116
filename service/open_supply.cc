#include "firsttouch/service/open_supply.h"

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/mapping_supply.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/service/uffd_supply.h"

namespace firsttouch {
namespace {

// Converts what both factories return to what the service takes.
template <typename Kind>
absl::StatusOr<std::unique_ptr<MemorySupply>> Opened(
    absl::StatusOr<std::unique_ptr<Kind>> supply) {
  if (!supply.ok()) return supply.status();
  return std::unique_ptr<MemorySupply>(*std::move(supply));
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemorySupply>> OpenSupply(
    const SuppliedPool& pool) {
  const std::string asked = "asked for by ServiceOptions::supply";
  if (const auto* options =
          std::get_if<UserfaultfdOptions>(&pool.options.supply)) {
    return Opened(UffdSupply::Open(pool, *options, asked));
  }
  if (const auto* options = std::get_if<MappingOptions>(&pool.options.supply)) {
    return Opened(MappingSupply::Open(pool,
                                      options->scan.value_or(true)
                                          ? Supply::kMappingsScan
                                          : Supply::kMappingsDrop,
                                      asked, !options->scan.has_value()));
  }
  const UserfaultfdOptions& userfaultfd =
      std::get<AnySupply>(pool.options.supply).userfaultfd;
  absl::StatusOr<SupplyWish> wish = WishedSupply(std::getenv(kSupplyVariable));
  if (!wish.ok()) return wish.status();
  const bool may_choose = !wish->supply.has_value();
  Supply kind = wish->supply.value_or(Supply::kUserfaultfd);
  std::string reason =
      may_choose ? "kernel and permissions allow it" : wish->reason;
  if (kind == Supply::kUserfaultfd) {
    absl::StatusOr<std::unique_ptr<UffdSupply>> uffd =
        UffdSupply::Open(pool, userfaultfd, reason);
    // A request for a backing that the kernel lacks could use the other one,
    // and the error says so.
    const bool other_backing_helps =
        absl::IsFailedPrecondition(uffd.status()) &&
        userfaultfd.backing.has_value();
    if (uffd.ok() || !may_choose || !RefusesUserfaultfd(uffd.status()) ||
        other_backing_helps) {
      return Opened(std::move(uffd));
    }
    kind = Supply::kMappingsScan;
    reason = absl::StrCat("userfaultfd is refused: ", uffd.status().message());
  }
  return Opened(MappingSupply::Open(pool, kind, std::move(reason), may_choose));
}

}  // namespace firsttouch
