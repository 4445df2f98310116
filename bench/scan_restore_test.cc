#include "firsttouch/bench/scan_restore.h"

#include <cstring>
#include <vector>

#include "firsttouch/bench/fixture.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

TEST(ScanRestore, PutsBackImageAndZeroes) {
  absl::StatusOr<ScanRestore> restore = ScanRestore::Open();
  if (!restore.ok()) GTEST_SKIP() << restore.status();
  constexpr uint64_t kImageBytes = 16 * kPageBytes;
  constexpr uint64_t kBytes = 2 * kImageBytes;
  const ImageRef image = PatternImage(kImageBytes);
  Mapping mapping(kBytes, image);
  // On both sides of the image's end in one region; alone; a page that was only
  // read.
  for (const uint64_t page : {3, 14, 15, 16, 17, 30}) {
    memset(mapping.base() + page * kPageBytes, 1, kPageBytes);
  }
  ReadEachPage(mapping.base() + 20 * kPageBytes, kPageBytes);
  for (int round = 0; round < 2; ++round) {
    restore->Restore(mapping.base(), kBytes,
                     std::span(image->data(), kImageBytes));
    EXPECT_EQ(memcmp(mapping.base(), image->data(), kImageBytes), 0);
    const std::vector<std::byte> zeroes(kBytes - kImageBytes);
    EXPECT_EQ(
        memcmp(mapping.base() + kImageBytes, zeroes.data(), zeroes.size()), 0);
    memset(mapping.base(), 1, kBytes);
  }
}

}  // namespace
}  // namespace firsttouch::bench
