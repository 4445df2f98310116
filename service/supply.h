// What supplies a pool's memory, and how it is chosen.
//
// The interface is the same over each supply; they differ in cost:
//
//   kUserfaultfd    faults are resolved by this library, page states are known
//                   without asking the kernel, bounds are pages that never
//                   come. A steady cycle makes no system call.
//   kMappingsScan   the kernel's own copy-on-write over a private mapping of
//                   the image, PROT_NONE outside the size. A release is
//                   one PAGEMAP_SCAN (6.7), and what it finds is copied back.
//   kMappingsDrop   the same, but a release gives everything private
//                   back (MADV_DONTNEED), and it faults in again: any kernel.
//
// The mappings need no privilege and no userfaultfd. A growth is one
// mprotect(2) there, a slot needs up to four mappings (vm.max_map_count), and
// system calls work on any page in bounds.

#ifndef FIRSTTOUCH_SERVICE_SUPPLY_H_
#define FIRSTTOUCH_SERVICE_SUPPLY_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/supply_kinds.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

// The environment variable that forces a supply where ServiceOptions::supply is
// AnySupply: one of the names above. Empty counts as unset.
inline constexpr char kSupplyVariable[] = "FIRSTTOUCH_SUPPLY";

// The supply that the environment asks for.
struct SupplyWish {
  std::optional<Supply> supply;  // unset: the variable is not set
  std::string reason;            // "asked for by ..."; empty where unset
};

// Parses the variable's value (null: not set). InvalidArgument, listing the
// names, for any other value.
absl::StatusOr<SupplyWish> WishedSupply(const char* variable);

// Whether `status`, of opening a userfaultfd, says that this kernel or user
// cannot have one that a pool can use, so that mappings are the way out. False
// for exhausted limits.
bool RefusesUserfaultfd(const absl::Status& status);

// Checks that PAGEMAP_SCAN on `pagemap_fd` tells private pages from the
// image's, by a scan of scratch memory whose answer is known. A kernel, sandbox
// or filter that answers something else must not decide what the next lease
// sees. Errors say what was wrong.
absl::Status CheckPrivatePagesAreFound(Kernel& kernel, int pagemap_fd);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SUPPLY_H_
