// Copy-on-write memory that is made clean by PAGEMAP_SCAN and copying back, as
// Wasmtime does it.

#ifndef FIRSTTOUCH_BENCH_SCAN_RESTORE_H_
#define FIRSTTOUCH_BENCH_SCAN_RESTORE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/pagemap.h"

namespace firsttouch::bench {

class ScanRestore {
 public:
  // Unimplemented before Linux 6.7. For this process only, not for a child.
  static absl::StatusOr<ScanRestore> Open();

  // Asks the kernel which pages of [base, base + bytes) are private, and puts
  // each back to what the image (whole pages, mapped privately at base) says,
  // or to zeroes behind it. The pages stay private: all that was ever written
  // is copied each time.
  void Restore(std::byte* base, uint64_t bytes,
               std::span<const std::byte> image);

 private:
  explicit ScanRestore(Pagemap pagemap)
      : pagemap_(std::move(pagemap)), regions_(kRegions) {}

  static constexpr size_t kRegions = 512;
  Pagemap pagemap_;
  std::vector<PageRegion> regions_;
};

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_SCAN_RESTORE_H_
