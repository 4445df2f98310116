// Runs the model (model.h) against pools that lack one safety measure, to show
// that it notices. The fake kernel leaves the measure out.

#include "absl/status/status.h"
#include "firsttouch/service/model.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// As many as model_test runs.
constexpr uint64_t kSequences = 300;

class WithoutOneMeasure : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    const absl::Status allowed = ModelAllows(GetParam());
    if (!allowed.ok()) GTEST_SKIP() << allowed;
  }
};

// The kernel does not give back pages that a guest grew into.
class ModelWithoutDropsTest : public WithoutOneMeasure {};

INSTANTIATE_TEST_SUITE_P(AllWays, ModelWithoutDropsTest, AllWays(), WayName);

TEST_P(ModelWithoutDropsTest, NoticesIt) {
  EXPECT_TRUE(FindDifference(GetParam(), kSequences, 1, [](FakeKernel& kernel) {
                kernel.Fail(FakeKernel::Op::kMadvise, FakeKernel::kEvery,
                            CallResult{});
              }).has_value());
}

// The kernel places pages without the protection that reports their first
// write.
class ModelWithoutProtectionTest : public WithoutOneMeasure {};

INSTANTIATE_TEST_SUITE_P(
    WaysThatTrack, ModelWithoutProtectionTest,
    testing::Values(Way{Backing::kShared, Resolve::kInThread},
                    Way{Backing::kCopied, Resolve::kInThread},
                    Way{Backing::kShared, Resolve::kHandlerThread},
                    Way{Backing::kShared, Resolve::kInThread,
                        Tracking::kAsync}),
    WayName);

TEST_P(ModelWithoutProtectionTest, NoticesIt) {
  EXPECT_TRUE(FindDifference(GetParam(), kSequences, 1, [](FakeKernel& kernel) {
                using Op = FakeKernel::Op;
                kernel.WithholdMode(Op::kContinue, kUffdContinueWp);
                kernel.WithholdMode(Op::kCopy, kUffdCopyWp);
                kernel.WithholdMode(Op::kPagemapScan, kPmScanWpMatching);
              }).has_value());
}

}  // namespace
}  // namespace firsttouch
