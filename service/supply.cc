#include "firsttouch/service/supply.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

absl::StatusOr<SupplyWish> WishedSupply(const char* variable) {
  if (variable == nullptr || *variable == '\0') return SupplyWish{};
  for (const Supply supply : kSupplies) {
    if (std::string_view(variable) == SupplyName(supply)) {
      return SupplyWish{supply, absl::StrCat("asked for by the environment: ",
                                             kSupplyVariable)};
    }
  }
  return absl::InvalidArgumentError(absl::StrCat(
      kSupplyVariable, "=", variable, " names no supply: it must be ",
      SupplyName(Supply::kUserfaultfd), ", ", SupplyName(Supply::kMappingsScan),
      " or ", SupplyName(Supply::kMappingsDrop),
      ", or unset to let the pool choose"));
}

bool RefusesUserfaultfd(const absl::Status& status) {
  // FailedPrecondition: userfaultfd is there, but it lacks a feature.
  return absl::IsPermissionDenied(status) || absl::IsUnimplemented(status) ||
         absl::IsFailedPrecondition(status);
}

absl::Status CheckPrivatePagesAreFound(Kernel& kernel, int pagemap_fd) {
  // Two pages of a file, one of them read and one written, and a page of
  // anonymous memory behind them, written.
  constexpr uint64_t kFileBytes = 2 * kPageBytes;
  constexpr uint64_t kBytes = kFileBytes + kPageBytes;
  const UniqueFd file(memfd_create("firsttouch-scan-check", MFD_CLOEXEC));
  if (!file || ftruncate(file.get(), kFileBytes) != 0) {
    return absl::ErrnoToStatus(errno, "memfd_create(2) to try PAGEMAP_SCAN on");
  }
  // Inaccessible at first, so that nothing populates them
  // (mapping_properties.h).
  const CallResult mapped =
      kernel.Mmap(0, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!mapped.ok()) {
    return absl::ErrnoToStatus(mapped.error, "mmap of three pages");
  }
  const auto start = static_cast<uintptr_t>(mapped.value);
  const CallResult of_file = kernel.Mmap(
      start, kFileBytes, PROT_NONE, MAP_PRIVATE | MAP_FIXED, file.get(), 0);
  kernel.Munlock(start, kBytes);
  const CallResult opened =
      kernel.Mprotect(start, kBytes, PROT_READ | PROT_WRITE);
  absl::Status status;
  if (of_file.ok() && opened.ok()) {
    auto* const bytes = reinterpret_cast<volatile std::byte*>(start);
    [[maybe_unused]] const std::byte read = bytes[0];
    bytes[kPageBytes] = std::byte{1};
    bytes[2 * kPageBytes] = std::byte{1};
    PageRegion regions[4];
    uint64_t found = 0;
    const ScanResult scan = ScanPages(
        kernel, pagemap_fd, ScanRequest::PrivateCopies(start, start + kBytes),
        regions, 4, [&](const PageRegion& region) {
          for (uintptr_t at = region.start; at < region.end; at += kPageBytes) {
            found |= uint64_t{1} << ((at - start) / kPageBytes % 64);
          }
          return true;
        });
    if (!scan.ok()) {
      status = absl::UnimplementedError(
          absl::StrCat("PAGEMAP_SCAN failed: ", ErrnoText(scan.error)));
    } else if (found != 0b110) {
      status = absl::UnimplementedError(
          absl::StrCat("PAGEMAP_SCAN took the wrong pages for private ones "
                       "(bits ",
                       found, ", not 6)"));
    }
  } else {
    status = absl::ErrnoToStatus(
        of_file.ok() ? opened.error : of_file.error,
        of_file.ok() ? "mprotect of three pages" : "mmap of a memfd");
  }
  kernel.Munmap(start, kBytes);
  return status;
}

}  // namespace firsttouch
