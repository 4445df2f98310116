#include "firsttouch/bench/scan_restore.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "firsttouch/bench/fixture.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch::bench {

absl::StatusOr<ScanRestore> ScanRestore::Open() {
  absl::StatusOr<Pagemap> pagemap = Pagemap::Open(RealKernel());
  if (!pagemap.ok()) return pagemap.status();
  return ScanRestore(*std::move(pagemap));
}

void ScanRestore::Restore(std::byte* base, uint64_t bytes,
                          std::span<const std::byte> image) {
  const auto start = reinterpret_cast<uintptr_t>(base);
  ScanRequest request = ScanRequest::PrivateCopies(start, start + bytes);
  request.none_of |= kPageIsPfnZero;
  // Neighbours are one region whatever they are.
  request.report = 0;
  const ScanResult scan =
      ScanPages(RealKernel(), pagemap_.fd(), request, regions_.data(),
                regions_.size(), [&](const PageRegion& region) {
                  uint64_t from = region.start - start;
                  const uint64_t to = region.end - start;
                  if (from < image.size()) {
                    const uint64_t end = std::min<uint64_t>(to, image.size());
                    memcpy(base + from, image.data() + from, end - from);
                    from = end;
                  }
                  if (from < to) memset(base + from, 0, to - from);
                  return true;
                });
  if (!scan.ok()) Die("PAGEMAP_SCAN failed");
}

}  // namespace firsttouch::bench
