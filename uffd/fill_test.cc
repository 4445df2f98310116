#include "firsttouch/uffd/fill.h"

#include <cerrno>
#include <cstdint>
#include <vector>

#include "firsttouch/uffd/fake_kernel.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

constexpr uintptr_t kStart = 0x10000000;
constexpr uintptr_t kSource = 0x20000000;
constexpr size_t kPages16 = 16 * 4096;

TEST(RangeResultFrom, NeverTakesAnErrorForACount) {
  // {returned, count, bytes} -> {bytes_done, error}
  EXPECT_EQ(RangeResultFrom(0, 4096, 4096).bytes_done, 4096);
  EXPECT_EQ(RangeResultFrom(0, 4096, 4096).error, 0);
  EXPECT_EQ(RangeResultFrom(-EAGAIN, -EAGAIN, 65536).bytes_done, 0);
  EXPECT_EQ(RangeResultFrom(-EAGAIN, -EAGAIN, 65536).error, EAGAIN);
  EXPECT_EQ(RangeResultFrom(-EAGAIN, 0, 65536).bytes_done, 0);
  EXPECT_EQ(RangeResultFrom(-EAGAIN, 8192, 65536).bytes_done, 8192);
  EXPECT_EQ(RangeResultFrom(-EAGAIN, 8192, 65536).error, EAGAIN);
  EXPECT_EQ(RangeResultFrom(-EEXIST, -EEXIST, 65536).bytes_done, 0);
  // A count above the requested one is not a count either.
  EXPECT_EQ(RangeResultFrom(-EAGAIN, INT64_MAX, 65536).bytes_done, 0);
  // Short without an error: go on from there.
  EXPECT_EQ(RangeResultFrom(0, 4096, 8192).bytes_done, 4096);
  EXPECT_EQ(RangeResultFrom(0, 4096, 8192).error, EAGAIN);
}

TEST(Fill, OneCallWhereNothingIsInTheWay) {
  FakeKernel kernel(FakeKernel::kScripted);
  const FillResult filled =
      CopyRange(kernel, 3, kStart, kSource, kPages16, 0, {});
  EXPECT_TRUE(filled.ok());
  EXPECT_EQ(filled.bytes_done, kPages16);
  EXPECT_EQ(filled.pages_filled(), 16u);
  EXPECT_EQ(filled.pages_present, 0u);
  EXPECT_EQ(kernel.Calls(Op::kCopy), 1u);
  EXPECT_EQ(kernel.TotalCalls(), 1u);
}

TEST(Fill, NothingToDoIsDone) {
  FakeKernel kernel(FakeKernel::kScripted);
  EXPECT_TRUE(ZeroRange(kernel, 3, kStart, 0, 0, {}).ok());
  EXPECT_EQ(kernel.TotalCalls(), 0u);
}

TEST(Fill, GoesOnFromAShortCountAndSkipsThePageThatIsThere) {
  FakeKernel kernel(FakeKernel::kScripted);
  std::vector<FakeKernel::Call> calls;
  kernel.Hook(Op::kCopy,
              [&](const FakeKernel::Call& call) { calls.push_back(call); });
  kernel.Fail(Op::kCopy, 1, RangeResult{2 * 4096, EAGAIN});
  kernel.Fail(Op::kCopy, 2, RangeResult{0, EEXIST});
  const FillResult filled =
      CopyRange(kernel, 3, kStart, kSource, kPages16, kUffdCopyWp, {});
  EXPECT_TRUE(filled.ok());
  EXPECT_EQ(filled.bytes_done, kPages16);
  EXPECT_EQ(filled.pages_present, 1u);
  EXPECT_EQ(filled.pages_filled(), 15u);
  ASSERT_EQ(calls.size(), 3u);
  EXPECT_EQ(calls[1].start, kStart + 2 * 4096);
  EXPECT_EQ(calls[1].source, kSource + 2 * 4096);
  EXPECT_EQ(calls[1].bytes, kPages16 - 2 * 4096);
  EXPECT_EQ(calls[2].start, kStart + 3 * 4096);
  EXPECT_EQ(calls[2].bytes, kPages16 - 3 * 4096);
  EXPECT_EQ(calls[2].mode, kUffdCopyWp);
  EXPECT_EQ(kernel.Calls(Op::kWake), 0u);
  EXPECT_EQ(kernel.Calls(Op::kPoll), 0u);
}

TEST(Fill, WakesThePageThatIsThereWhereAsked) {
  FakeKernel kernel(FakeKernel::kScripted);
  uintptr_t woken = 0;
  size_t woken_bytes = 0;
  kernel.Hook(Op::kWake, [&](const FakeKernel::Call& call) {
    woken = call.start;
    woken_bytes = call.bytes;
  });
  kernel.Fail(Op::kContinue, 1, RangeResult{4096, EAGAIN});
  kernel.Fail(Op::kContinue, 2, RangeResult{0, EEXIST});
  EXPECT_TRUE(
      ContinueRange(kernel, 3, kStart, kPages16, 0, {.wake_present = true})
          .ok());
  EXPECT_EQ(kernel.Calls(Op::kWake), 1u);
  EXPECT_EQ(woken, kStart + 4096);
  EXPECT_EQ(woken_bytes, 4096u);
}

TEST(Fill, EveryPagePresentIsSuccess) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kZeroPage, FakeKernel::kEvery, RangeResult{0, EEXIST});
  const FillResult filled = ZeroRange(kernel, 3, kStart, kPages16, 0, {});
  EXPECT_TRUE(filled.ok());
  EXPECT_EQ(filled.pages_present, 16u);
  EXPECT_EQ(filled.pages_filled(), 0u);
}

TEST(Fill, EagainWithoutACountIsNoProgress) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kCopy, 1, RangeResultFrom(-EAGAIN, -EAGAIN, kPages16));
  std::vector<uintptr_t> starts;
  kernel.Hook(Op::kCopy, [&](const FakeKernel::Call& call) {
    starts.push_back(call.start);
  });
  const FillResult filled =
      CopyRange(kernel, 3, kStart, kSource, kPages16, 0, {});
  EXPECT_TRUE(filled.ok());
  EXPECT_EQ(filled.stalls, 1u);
  EXPECT_EQ(filled.pages_filled(), 16u);
  EXPECT_EQ(starts, (std::vector<uintptr_t>{kStart, kStart}));
}

TEST(Fill, WaitsStayBetweenOneMillisecondAndTheCap) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EAGAIN});
  std::vector<int> waits;
  kernel.Hook(Op::kPoll, [&](const FakeKernel::Call& call) {
    EXPECT_EQ(call.bytes, 0u);
    waits.push_back(call.timeout_ms);
  });
  const FillResult filled = CopyRange(kernel, 3, kStart, kSource, kPages16, 0,
                                      {.max_stalls = 1004,
                                       .immediate_retries = 4,
                                       .first_wait_ms = 1,
                                       .wait_cap_ms = 50});
  EXPECT_EQ(filled.error, EAGAIN);
  EXPECT_EQ(filled.bytes_done, 0u);
  EXPECT_EQ(filled.stalls, 1005u);
  EXPECT_EQ(kernel.Calls(Op::kCopy), 1005u);
  ASSERT_EQ(waits.size(), 1000u);
  EXPECT_EQ(std::vector<int>(waits.begin(), waits.begin() + 8),
            (std::vector<int>{1, 2, 4, 8, 16, 32, 50, 50}));
  for (const int wait : waits) {
    EXPECT_GE(wait, 1);
    EXPECT_LE(wait, 50);
  }
}

TEST(Fill, SillyWaitsAreBroughtIntoBounds) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EAGAIN});
  std::vector<int> waits;
  kernel.Hook(Op::kPoll, [&](const FakeKernel::Call& call) {
    waits.push_back(call.timeout_ms);
  });
  CopyRange(kernel, 3, kStart, kSource, 4096, 0,
            {.max_stalls = 3,
             .immediate_retries = 0,
             .first_wait_ms = -5,
             .wait_cap_ms = -1});
  EXPECT_EQ(waits, (std::vector<int>{1, 1, 1}));
}

TEST(Fill, ProgressResetsTheWaits) {
  FakeKernel kernel(FakeKernel::kScripted);
  // Three stops, a page, three stops, the rest.
  for (const uint64_t nth : {1, 2, 3, 5, 6, 7}) {
    kernel.Fail(Op::kCopy, nth, RangeResult{0, EAGAIN});
  }
  kernel.Fail(Op::kCopy, 4, RangeResult{4096, EAGAIN});
  std::vector<int> waits;
  kernel.Hook(Op::kPoll, [&](const FakeKernel::Call& call) {
    waits.push_back(call.timeout_ms);
  });
  const FillResult filled =
      CopyRange(kernel, 3, kStart, kSource, kPages16, 0,
                {.max_stalls = 3, .immediate_retries = 0});
  EXPECT_TRUE(filled.ok());
  EXPECT_EQ(filled.stalls, 6u);
  EXPECT_EQ(waits, (std::vector<int>{1, 2, 4, 1, 2, 4}));
}

TEST(Fill, OtherErrorsEndItAndKeepTheCount) {
  for (const int error : {ESRCH, ENOMEM, EFAULT, EBUSY, EINVAL}) {
    SCOPED_TRACE(error);
    FakeKernel kernel(FakeKernel::kScripted);
    kernel.Fail(Op::kCopy, 1, RangeResult{8192, EAGAIN});
    kernel.Fail(Op::kCopy, 2, RangeResult{0, error});
    const FillResult filled =
        CopyRange(kernel, 3, kStart, kSource, kPages16, 0, {});
    EXPECT_EQ(filled.error, error);
    EXPECT_EQ(filled.bytes_done, 8192u);
    EXPECT_EQ(filled.pages_filled(), 2u);
    EXPECT_EQ(kernel.Calls(Op::kCopy), 2u);
  }
}

TEST(Fill, ARangeInSeveralMappingsIsFilledPageByPage) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kCopy, 1, RangeResult{0, ENOENT});
  const FillResult filled =
      CopyRange(kernel, 3, kStart, kSource, kPages16, 0, {});
  EXPECT_TRUE(filled.ok());
  EXPECT_EQ(filled.pages_filled(), 16u);
  EXPECT_EQ(kernel.Calls(Op::kCopy), 17u);
}

TEST(Fill, APageThatIsNotRegisteredEndsIt) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kContinue, 1, RangeResult{0, ENOENT});
  kernel.Fail(Op::kContinue, 4, RangeResult{0, ENOENT});
  const FillResult filled = ContinueRange(kernel, 3, kStart, kPages16, 0, {});
  EXPECT_EQ(filled.error, ENOENT);
  EXPECT_EQ(filled.pages_filled(), 2u);
  EXPECT_EQ(kernel.Calls(Op::kContinue), 4u);
}

TEST(Fill, AKernelThatDoesNothingAndSaysNothingEndsIt) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kPoison, FakeKernel::kEvery, RangeResult{0, 0});
  const FillResult filled = PoisonRange(kernel, 3, kStart, kPages16, 0, {});
  EXPECT_EQ(filled.error, EIO);
  EXPECT_EQ(kernel.Calls(Op::kPoison), 1u);
}

TEST(Fill, WriteProtectIsTriedAgain) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kWriteProtect, 1, RangeResult{0, EAGAIN});
  const FillResult filled =
      WriteProtectRange(kernel, 3, kStart, kPages16, kUffdWriteProtectWp, {});
  EXPECT_TRUE(filled.ok());
  EXPECT_EQ(kernel.Calls(Op::kWriteProtect), 2u);
}

}  // namespace
}  // namespace firsttouch
