#include "firsttouch/service/supply.h"

#include <errno.h>
#include <sys/mman.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/supply_kinds.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;
using Op = FakeKernel::Op;

TEST(SupplyNameTest, EveryKindHasItsName) {
  EXPECT_STREQ(SupplyName(Supply::kUserfaultfd), "userfaultfd");
  EXPECT_STREQ(SupplyName(Supply::kMappingsDrop), "mappings-drop");
  EXPECT_STREQ(SupplyName(Supply::kMappingsScan), "mappings-scan");
  EXPECT_STREQ(BackingName(Backing::kShared), "shared");
  EXPECT_STREQ(BackingName(Backing::kCopied), "copied");
  EXPECT_STREQ(ResolveName(Resolve::kInThread), "in-thread");
  EXPECT_STREQ(ResolveName(Resolve::kHandlerThread), "handler-thread");
  EXPECT_STREQ(TrackingName(Tracking::kSignal), "signal");
  EXPECT_STREQ(TrackingName(Tracking::kAsync), "async");
  EXPECT_STREQ(TrackingName(Tracking::kProfiling), "profiling");
}

TEST(RefusesUserfaultfdTest, AnExhaustedLimitIsNoRefusal) {
  EXPECT_TRUE(RefusesUserfaultfd(absl::PermissionDeniedError("")));
  EXPECT_TRUE(RefusesUserfaultfd(absl::UnimplementedError("")));
  EXPECT_TRUE(RefusesUserfaultfd(absl::FailedPreconditionError("")));
  EXPECT_FALSE(RefusesUserfaultfd(absl::ResourceExhaustedError("")));
  EXPECT_FALSE(RefusesUserfaultfd(absl::InvalidArgumentError("")));
  EXPECT_FALSE(RefusesUserfaultfd(absl::OkStatus()));
}

class CheckPrivatePagesTest : public testing::Test {
 protected:
  // The check with the machine's mappings and a pagemap that is made up.
  std::string Error() {
    const absl::Status status = CheckPrivatePagesAreFound(kernel_, -1);
    // Whatever comes of it, nothing stays mapped.
    EXPECT_EQ(kernel_.Calls(Op::kMunmap), 1u);
    return status.ok() ? "" : std::string(status.message());
  }

  FakeKernel kernel_;
};

TEST_F(CheckPrivatePagesTest, ThisKernelsScanCanBeReliedOn) {
  absl::StatusOr<Pagemap> pagemap = Pagemap::Open(kernel_);
  if (!pagemap.ok()) GTEST_SKIP() << pagemap.status();
  EXPECT_EQ(CheckPrivatePagesAreFound(kernel_, pagemap->fd()).ToString(), "OK");
}

TEST_F(CheckPrivatePagesTest, AScanThatFindsNothingCannot) {
  kernel_.SetPagemap({});
  EXPECT_EQ(Error(),
            "PAGEMAP_SCAN took the wrong pages for private ones (bits 0, not "
            "6)");
}

TEST_F(CheckPrivatePagesTest, AScanThatFindsAllCannot) {
  kernel_.SetPagemap({{0, ~uint64_t{0xfff}, kPageIsPresent}});
  EXPECT_EQ(Error(),
            "PAGEMAP_SCAN took the wrong pages for private ones (bits 7, not "
            "6)");
}

TEST_F(CheckPrivatePagesTest, AScanThatFailsCannot) {
  kernel_.Fail(Op::kPagemapScan, FakeKernel::kEvery, CallResult{0, EPERM});
  EXPECT_THAT(Error(), HasSubstr("PAGEMAP_SCAN failed: "));
}

TEST_F(CheckPrivatePagesTest, WhatItNeedsAndCannotHaveIsNamed) {
  kernel_.Fail(Op::kMmap, 2, CallResult{0, ENOMEM});
  EXPECT_THAT(Error(), HasSubstr("mmap of a memfd"));
  kernel_.ResetCalls();
  kernel_.Clear(Op::kMmap);
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(Error(), HasSubstr("mprotect of three pages"));
  kernel_.Fail(Op::kMmap, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(std::string(CheckPrivatePagesAreFound(kernel_, -1).message()),
              HasSubstr("mmap of three pages"));
}

}  // namespace
}  // namespace firsttouch
