#include "firsttouch/tools/self_test.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <set>
#include <string>

#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
using Op = FakeKernel::Op;

TEST(SelfTest, EachWorksOrSaysWhyNot) {
  std::set<std::string_view> ids;
  for (const SelfTestResult& result : RunSelfTests(RealKernel(), {})) {
    SCOPED_TRACE(std::string(result.test.id));
    EXPECT_TRUE(ids.insert(result.test.id).second);
    if (result.outcome == SelfTestOutcome::kWorks) {
      EXPECT_EQ(result.detail, "");
    } else {
      EXPECT_EQ(result.outcome, SelfTestOutcome::kMissing) << result.detail;
      EXPECT_NE(result.detail, "");
    }
  }
  EXPECT_EQ(ids.size(), SelfTests().size());
}

TEST(SelfTest, AHangIsReportedWithTheKernelsVersion) {
  const SelfTestResult result = RunSelfTest(
      RealKernel(), "in-thread.protect",
      {.time_limit = absl::Milliseconds(200), .hang = "in-thread.protect"});
  EXPECT_EQ(result.outcome, SelfTestOutcome::kHung);
  EXPECT_EQ(result.detail,
            "no answer within 200ms on Linux " + KernelRelease());
}

TEST(SelfTest, ALostWakeUpIsAHang) {
  // A handler thread's fill makes the page present and wakes no thread.
  FakeKernel kernel;
  kernel.Fail(Op::kReadEvents, FakeKernel::kEvery, CallResult{0, EAGAIN});
  const SelfTestResult result = RunSelfTest(
      kernel, "handler-thread.copy", {.time_limit = absl::Milliseconds(200)});
  if (result.outcome == SelfTestOutcome::kMissing) GTEST_SKIP();
  EXPECT_EQ(result.outcome, SelfTestOutcome::kHung);
}

TEST(SelfTest, AKernelThatFailsIsNoticed) {
  FakeKernel kernel;
  kernel.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, ENOMEM});
  SelfTestResult result = RunSelfTest(kernel, "in-thread.copy", {});
  if (result.outcome == SelfTestOutcome::kMissing) {
    GTEST_SKIP() << result.detail;
  }
  EXPECT_EQ(result.outcome, SelfTestOutcome::kFailed);
  EXPECT_EQ(result.detail,
            "a fault could not be resolved: ENOMEM: Cannot allocate memory "
            "(errno 12)");
  result = RunSelfTest(kernel, "handler-thread.copy", {});
  EXPECT_EQ(result.outcome, SelfTestOutcome::kFailed);
  EXPECT_EQ(result.detail,
            "resolving a fault: ENOMEM: Cannot allocate memory (errno 12)");
}

TEST(SelfTest, WrongBytesAreNoticed) {
  // The fill gives zeroes instead of the image's bytes.
  FakeKernel kernel;
  kernel.Hook(Op::kCopy, [&kernel](const FakeKernel::Call& call) {
    kernel.ZeroPage(call.fd, call.start, call.bytes, 0);
  });
  const SelfTestResult result = RunSelfTest(kernel, "in-thread.copy", {});
  if (result.outcome == SelfTestOutcome::kMissing) {
    GTEST_SKIP() << result.detail;
  }
  EXPECT_EQ(result.outcome, SelfTestOutcome::kFailed);
  EXPECT_EQ(result.detail, "page 0 reads 0 where it should read 97");
}

TEST(SelfTest, ACrashIsReported) {
  FakeKernel kernel;
  kernel.Hook(Op::kCopy, [](const FakeKernel::Call&) { raise(SIGKILL); });
  const SelfTestResult result = RunSelfTest(kernel, "in-thread.copy", {});
  if (result.outcome == SelfTestOutcome::kMissing) {
    GTEST_SKIP() << result.detail;
  }
  EXPECT_EQ(result.outcome, SelfTestOutcome::kCrashed);
  EXPECT_THAT(result.detail, StartsWith("killed by SIGKILL on Linux "));
}

TEST(SelfTest, AMissingFeatureIsNamed) {
  FakeKernel kernel;
  kernel.SetApiReply(kUffdFeatureSigbus, 0);
  const SelfTestResult result = RunSelfTest(kernel, "poison", {});
  EXPECT_EQ(result.outcome, SelfTestOutcome::kMissing);
  EXPECT_THAT(result.detail,
              testing::AnyOf(HasSubstr("POISON (Linux 6.6)"),
                             HasSubstr("no way to open a userfaultfd")));
}

TEST(SelfTest, AnUnknownIdIsAnError) {
  const SelfTestResult result = RunSelfTest(RealKernel(), "nonsense", {});
  EXPECT_EQ(result.outcome, SelfTestOutcome::kFailed);
  EXPECT_EQ(result.detail, "there is no self-test \"nonsense\"");
}

}  // namespace
}  // namespace firsttouch
