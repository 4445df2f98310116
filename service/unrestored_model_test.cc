// Checks that the model (model.h) notices a pool which restores no page: this
// program replaces the functions of restore_page.h.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "absl/status/status.h"
#include "firsttouch/service/model.h"
#include "firsttouch/service/restore_page.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {

bool RestorePage(std::byte*, const std::byte*, bool, bool*) { return true; }
bool RestoreZeroPage(std::byte*, bool) { return true; }

bool CopyGuarded(std::byte*, const std::byte*, size_t) { return true; }

bool DiffersFrom(const std::byte* page, const std::byte* initial) {
  return std::memcmp(page, initial, kPageBytes) != 0;
}

uintptr_t EndOfGuardedRead(uintptr_t) noexcept { return 0; }

namespace {

class UnrestoredModelTest : public testing::TestWithParam<Way> {};

// With private mappings and no scan all pages are dropped, and none restored.
INSTANTIATE_TEST_SUITE_P(
    WaysThatRestore, UnrestoredModelTest,
    testing::Values(Way{Backing::kShared, Resolve::kInThread},
                    Way{Backing::kCopied, Resolve::kInThread},
                    Way{Backing::kShared, Resolve::kHandlerThread},
                    Way{Backing::kShared, Resolve::kInThread, Tracking::kAsync},
                    kMappingsScanWay),
    WayName);

TEST_P(UnrestoredModelTest, NoticesIt) {
  const absl::Status allowed = ModelAllows(GetParam());
  if (!allowed.ok()) GTEST_SKIP() << allowed;
  EXPECT_TRUE(FindDifference(GetParam(), 100, 1).has_value());
}

}  // namespace
}  // namespace firsttouch
