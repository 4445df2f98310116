#include "firsttouch/uffd/fake_kernel.h"

#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

TEST(FakeKernel, TheNthCallFailsCountedFromNow) {
  FakeKernel kernel(FakeKernel::kScripted);
  EXPECT_TRUE(kernel.Wake(3, 4096, 4096).ok());
  kernel.Fail(Op::kWake, 2, CallResult{0, ENOENT});
  EXPECT_TRUE(kernel.Wake(3, 4096, 4096).ok());
  EXPECT_EQ(kernel.Wake(3, 4096, 4096).error, ENOENT);
  EXPECT_TRUE(kernel.Wake(3, 4096, 4096).ok());
  EXPECT_EQ(kernel.Calls(Op::kWake), 4u);
  EXPECT_EQ(kernel.TotalCalls(), 4u);
}

TEST(FakeKernel, EveryCallFailsUntilCleared) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, ENOMEM});
  kernel.Fail(Op::kCopy, 2, RangeResult{4096, EAGAIN});
  EXPECT_EQ(kernel.Copy(3, 0, 0, 8192, 0).error, ENOMEM);
  const RangeResult second = kernel.Copy(3, 0, 0, 8192, 0);
  EXPECT_EQ(second.bytes_done, 4096);
  EXPECT_EQ(second.error, EAGAIN);
  EXPECT_EQ(kernel.Copy(3, 0, 0, 8192, 0).error, ENOMEM);
  kernel.Clear(Op::kCopy);
  const RangeResult after = kernel.Copy(3, 0, 0, 8192, 0);
  EXPECT_EQ(after.error, 0);
  EXPECT_EQ(after.bytes_done, 8192);
}

TEST(FakeKernel, AShortenedCallReallyDoesItsFirstBytes) {
  FakeKernel kernel;
  absl::StatusOr<Uffd> uffd =
      Uffd::Open(kernel, {.required_features = kUffdFeatureSigbus});
  if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  ScratchMemory source(4 * 4096);
  ScratchMemory memory(4 * 4096);
  std::memset(source.data(), 'f', source.bytes());
  ASSERT_TRUE(uffd->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing, kUffdIoctlCopy)
                  .ok());
  kernel.Shorten(Op::kCopy, 1, 8192, EAGAIN);
  RangeResult copied = kernel.Copy(uffd->fd(), memory.address(),
                                   source.address(), memory.bytes(), 0);
  EXPECT_EQ(copied.bytes_done, 8192);
  EXPECT_EQ(copied.error, EAGAIN);
  EXPECT_EQ(memory.data()[8191], 'f');
  copied = kernel.Copy(uffd->fd(), memory.address() + 8192, source.address(),
                       8192, 0);
  EXPECT_TRUE(copied.ok()) << "the rest was not there yet: " << copied.error;
}

TEST(FakeKernel, AWithheldModeDoesNotReachTheKernel) {
  FakeKernel inner(FakeKernel::kScripted);
  FakeKernel kernel(static_cast<Kernel&>(inner));
  std::vector<uint64_t> modes;
  const auto note = [&](const FakeKernel::Call& call) {
    modes.push_back(call.mode);
  };
  inner.Hook(Op::kCopy, note);
  inner.Hook(Op::kContinue, note);
  inner.Hook(Op::kPagemapScan, note);
  kernel.WithholdMode(Op::kCopy, kUffdCopyWp);
  kernel.WithholdMode(Op::kContinue, kUffdContinueWp);
  kernel.WithholdMode(Op::kPagemapScan, kPmScanWpMatching);
  kernel.Copy(3, 0, 0, 4096, kUffdCopyWp | kUffdCopyDontWake);
  kernel.Continue(3, 0, 4096, kUffdContinueWp);
  PmScanArg scan = {.flags = kPmScanWpMatching | kPmScanCheckWpAsync};
  kernel.PagemapScan(3, &scan);
  EXPECT_EQ(modes,
            (std::vector<uint64_t>{kUffdCopyDontWake, 0, kPmScanCheckWpAsync}));
  EXPECT_EQ(scan.flags, kPmScanWpMatching | kPmScanCheckWpAsync);
}

TEST(FakeKernel, HooksRunAroundTheCallAndMayMakeCalls) {
  FakeKernel kernel(FakeKernel::kScripted);
  std::string log;
  kernel.Hook(Op::kZeroPage, [&](const FakeKernel::Call& call) {
    log += "before " + std::to_string(call.nth) + " ";
    EXPECT_EQ(call.op, Op::kZeroPage);
    EXPECT_EQ(call.start, 4096u);
    kernel.Wake(3, call.start, call.bytes);
  });
  kernel.HookAfter(Op::kZeroPage,
                   [&](const FakeKernel::Call&) { log += "after "; });
  kernel.ZeroPage(3, 4096, 8192, 0);
  kernel.Hook(Op::kZeroPage, {});
  kernel.ZeroPage(3, 4096, 8192, 0);
  EXPECT_EQ(log, "before 1 after after ");
  EXPECT_EQ(kernel.Calls(Op::kWake), 1u);
}

TEST(FakeKernel, CountsCallsOfAllThreads) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kContinue, 1000, RangeResult{0, EEXIST});
  std::atomic<int> failures{0};
  const auto call = [&] {
    for (int i = 0; i < 1000; ++i) {
      if (!kernel.Continue(3, 0, 4096, 0).ok()) ++failures;
    }
  };
  std::thread first(call);
  std::thread second(call);
  first.join();
  second.join();
  EXPECT_EQ(kernel.Calls(Op::kContinue), 2000u);
  EXPECT_EQ(failures.load(), 1);
  kernel.ResetCalls();
  EXPECT_EQ(kernel.TotalCalls(), 0u);
}

TEST(FakeKernel, WithoutARealKernelNothingIsMadeUp) {
  FakeKernel kernel(FakeKernel::kScripted);
  EXPECT_EQ(kernel.OpenUserfaultfdSyscall(0).error, ENOSYS);
  EXPECT_EQ(kernel.Mmap(0, 4096, 0, 0, -1, 0).error, ENOSYS);
  EXPECT_EQ(kernel.EventFd().error, ENOSYS);
  EXPECT_EQ(kernel.Membarrier(0).error, ENOSYS);
  uffd_msg message;
  EXPECT_EQ(kernel.ReadEvents(3, &message, 1).error, EAGAIN);
  kernel.Fail(Op::kOpenUserfaultfdSyscall, 1, CallResult{7, 0});
  EXPECT_EQ(kernel.OpenUserfaultfdSyscall(0).value, 7);
}

TEST(FakeKernel, AHandshakeKnowsOnlyTheFeaturesItWasGiven) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.SetApiReply(kUffdFeatureSigbus, kUffdIoctlRegister);
  uffdio_api reply;
  EXPECT_EQ(kernel.Api(3, kUffdFeatureMove, &reply).error, EINVAL);
  EXPECT_EQ(reply.features, 0u);
  EXPECT_TRUE(kernel.Api(3, kUffdFeatureSigbus, &reply).ok());
  EXPECT_EQ(reply.features, kUffdFeatureSigbus);
  EXPECT_EQ(reply.ioctls, kUffdIoctlRegister);
}

TEST(FakeKernel, AScanIsAnsweredFromThePagesThatWereSet) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.SetPagemap({{0x1000, 0x3000, kPageIsPresent},
                     {0x4000, 0x5000, kPageIsSwapped | kPageIsFile},
                     {0x6000, 0x9000, kPageIsPresent | kPageIsWritten}});
  // In a buffer of one region, so that the scan goes on where that was full.
  PageRegion buffer[1];
  std::vector<PageRegion> found;
  const auto scan = [&](const ScanRequest& request) {
    found.clear();
    return ScanPages(kernel, 3, request, buffer, 1, [&](const PageRegion& at) {
      found.push_back(at);
      return true;
    });
  };
  ASSERT_TRUE(scan(ScanRequest::PrivateCopies(0x2000, 0x8000)).ok());
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].start, 0x2000u);
  EXPECT_EQ(found[0].end, 0x3000u);
  EXPECT_EQ(found[0].categories, kPageIsPresent);
  EXPECT_EQ(found[1].start, 0x6000u);
  EXPECT_EQ(found[1].end, 0x8000u);
  ASSERT_TRUE(scan(ScanRequest::Written(0x1000, 0x9000)).ok());
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].categories, kPageIsWritten);
  kernel.Fail(Op::kPagemapScan, 1, CallResult{0, EPERM});
  EXPECT_EQ(scan(ScanRequest::Written(0x1000, 0x9000)).error, EPERM);
}

TEST(FakeKernelDeathTest, TooManyScripts) {
  FakeKernel kernel(FakeKernel::kScripted);
  for (size_t i = 0; i < FakeKernel::kMaxScripts; ++i) {
    kernel.Fail(Op::kPoll, 1, CallResult{});
  }
  EXPECT_DEATH(kernel.Fail(Op::kPoll, 1, CallResult{}), "more than 32 scripts");
}

}  // namespace
}  // namespace firsttouch
