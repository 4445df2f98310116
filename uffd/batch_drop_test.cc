#include "firsttouch/uffd/batch_drop.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::Pair;
using Op = FakeKernel::Op;

constexpr size_t kPage = 4096;
constexpr uintptr_t kStart = 0x10000000;

using Ranges = std::vector<std::pair<uintptr_t, size_t>>;

// Records address and bytes of each call of `op`; for process_madvise, the
// start of its first range, and the bytes of all.
void Record(FakeKernel& kernel, Op op, Ranges* calls) {
  kernel.Hook(op, [calls](const FakeKernel::Call& call) {
    calls->emplace_back(call.start, call.bytes);
  });
}

Ranges FailuresOf(const DropBatch::Result& result) {
  Ranges failures;
  for (const DropBatch::Failure& failure : result.failures) {
    failures.emplace_back(failure.start, failure.bytes);
  }
  return failures;
}

// `count` ranges of one page with a page between them.
DropBatch Spread(size_t count) {
  DropBatch batch;
  for (size_t i = 0; i < count; ++i) batch.Add(kStart + 2 * i * kPage, kPage);
  return batch;
}

TEST(DropBatchTest, NothingIsNoCall) {
  FakeKernel kernel(FakeKernel::kScripted);
  DropBatch batch;
  EXPECT_TRUE(batch.empty());
  batch.Add(kStart, 0);
  EXPECT_TRUE(batch.empty());
  const DropBatch::Result dropped = batch.Drop(kernel);
  EXPECT_TRUE(dropped.ok());
  EXPECT_EQ(dropped.bytes_dropped, 0u);
  EXPECT_EQ(dropped.calls, 0u);
  EXPECT_EQ(kernel.TotalCalls(), 0u);
}

TEST(DropBatchTest, RangesThatTouchOrOverlapAreOne) {
  FakeKernel kernel(FakeKernel::kScripted);
  Ranges calls;
  Record(kernel, Op::kMadvise, &calls);
  DropBatch batch;
  batch.Add(kStart + 3 * kPage, 2 * kPage);
  batch.Add(kStart, kPage);
  batch.Add(kStart + kPage, 2 * kPage);
  batch.Add(kStart + 2 * kPage, kPage);  // within the one before
  EXPECT_FALSE(batch.empty());
  const DropBatch::Result dropped = batch.Drop(kernel);
  EXPECT_TRUE(dropped.ok());
  EXPECT_EQ(dropped.bytes_dropped, 5 * kPage);
  // One range needs no process_madvise, which not every kernel has.
  EXPECT_THAT(calls, ElementsAre(Pair(kStart, 5 * kPage)));
  EXPECT_EQ(kernel.TotalCalls(), 1u);
  EXPECT_TRUE(batch.empty());
}

TEST(DropBatchTest, OneCallForAsManyRangesAsTheKernelTakes) {
  FakeKernel kernel(FakeKernel::kScripted);
  Ranges calls;
  Record(kernel, Op::kProcessMadvise, &calls);
  // Drops 1025 ranges; the last one needs a call of its own.
  DropBatch::Result dropped = Spread(DropBatch::kMostRanges + 1).Drop(kernel);
  EXPECT_TRUE(dropped.ok());
  EXPECT_EQ(dropped.bytes_dropped, 1025 * kPage);
  EXPECT_EQ(dropped.calls, 2u);
  EXPECT_THAT(calls, ElementsAre(Pair(kStart, 1024 * kPage)));
  EXPECT_EQ(kernel.Calls(Op::kMadvise), 1u);

  calls.clear();
  dropped = Spread(3000).Drop(kernel);
  EXPECT_TRUE(dropped.ok());
  EXPECT_THAT(calls, ElementsAre(Pair(kStart, 1024 * kPage),
                                 Pair(kStart + 2 * 1024 * kPage, 1024 * kPage),
                                 Pair(kStart + 2 * 2048 * kPage, 952 * kPage)));
}

TEST(DropBatchTest, GoesOnFromTheCountOfACallThatStopped) {
  FakeKernel kernel(FakeKernel::kScripted);
  Ranges calls;
  Record(kernel, Op::kProcessMadvise, &calls);
  // The kernel does two ranges, then one and a half.
  DropBatch batch;
  for (size_t i = 0; i < 8; ++i) batch.Add(kStart + 4 * i * kPage, 2 * kPage);
  kernel.Fail(Op::kProcessMadvise, 1, CallResult{4 * kPage, 0});
  kernel.Fail(Op::kProcessMadvise, 2, CallResult{3 * kPage, 0});
  const DropBatch::Result dropped = batch.Drop(kernel);
  EXPECT_TRUE(dropped.ok());
  EXPECT_EQ(dropped.bytes_dropped, 16 * kPage);
  EXPECT_EQ(dropped.calls, 3u);
  EXPECT_THAT(calls, ElementsAre(Pair(kStart, 16 * kPage),
                                 Pair(kStart + 8 * kPage, 12 * kPage),
                                 Pair(kStart + 13 * kPage, 9 * kPage)));
}

// Before 6.13, in a sandbox, and with a kernel that reports that it did
// nothing.
TEST(DropBatchTest, GoesOneByOneWhereTheKernelTakesNoBatch) {
  for (const int error : {EINVAL, ENOSYS, EPERM, EBADF, EMFILE, 0}) {
    FakeKernel kernel(FakeKernel::kScripted);
    Ranges calls;
    Record(kernel, Op::kMadvise, &calls);
    kernel.Fail(Op::kProcessMadvise, FakeKernel::kEvery, CallResult{0, error});
    const DropBatch::Result dropped = Spread(3).Drop(kernel);
    EXPECT_TRUE(dropped.ok()) << error;
    EXPECT_EQ(dropped.bytes_dropped, 3 * kPage);
    EXPECT_EQ(dropped.calls, 4u);
    EXPECT_EQ(kernel.Calls(Op::kProcessMadvise), 1u) << "asked once";
    EXPECT_THAT(
        calls, ElementsAre(Pair(kStart, kPage), Pair(kStart + 2 * kPage, kPage),
                           Pair(kStart + 4 * kPage, kPage)));
  }
}

TEST(DropBatchTest, ARangeThatFailsIsNamedAndKeepsNoOther) {
  FakeKernel kernel(FakeKernel::kScripted);
  // The second of five ranges stops the batch; a call for it alone gives the
  // error.
  kernel.Fail(Op::kProcessMadvise, 1, CallResult{kPage, 0});
  kernel.Fail(Op::kProcessMadvise, 2, CallResult{0, ENOMEM});
  kernel.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  const DropBatch::Result dropped = Spread(5).Drop(kernel);
  EXPECT_FALSE(dropped.ok());
  EXPECT_THAT(FailuresOf(dropped),
              ElementsAre(Pair(kStart + 2 * kPage, kPage)));
  EXPECT_EQ(dropped.bytes_dropped, 4 * kPage);
  EXPECT_EQ(kernel.Calls(Op::kProcessMadvise), 3u) << "the rest is a batch";
  EXPECT_EQ(dropped.ErrorOf(kStart, kPage), 0);
  EXPECT_EQ(dropped.ErrorOf(kStart + 2 * kPage, kPage), ENOMEM);
  EXPECT_EQ(dropped.ErrorOf(kStart + kPage, 2 * kPage), ENOMEM);
  EXPECT_EQ(dropped.ErrorOf(kStart + 3 * kPage, 2 * kPage), 0);
}

TEST(DropBatchTest, EachFailureHasItsOwnError) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kProcessMadvise, FakeKernel::kEvery, CallResult{0, EINVAL});
  kernel.Fail(Op::kMadvise, 2, CallResult{0, EAGAIN});
  kernel.Fail(Op::kMadvise, 4, CallResult{0, ENOMEM});
  const DropBatch::Result dropped = Spread(4).Drop(kernel);
  EXPECT_EQ(dropped.bytes_dropped, 2 * kPage);
  EXPECT_EQ(dropped.ErrorOf(kStart, kPage), 0);
  EXPECT_EQ(dropped.ErrorOf(kStart + 2 * kPage, kPage), EAGAIN);
  EXPECT_EQ(dropped.ErrorOf(kStart + 4 * kPage, kPage), 0);
  EXPECT_EQ(dropped.ErrorOf(kStart + 6 * kPage, kPage), ENOMEM);
}

// The resident pages of the memory as "x", the others as ".".
std::string Resident(const ScratchMemory& memory) {
  std::vector<unsigned char> present(memory.bytes() / kPage);
  EXPECT_EQ(mincore(memory.data(), memory.bytes(), present.data()), 0);
  std::string text;
  for (const unsigned char page : present) text += (page & 1) != 0 ? 'x' : '.';
  return text;
}

TEST(DropBatchTest, PagesAreGoneAndOthersAreNot) {
  ScratchMemory memory(8 * kPage);
  std::memset(memory.data(), 'm', memory.bytes());
  EXPECT_EQ(Resident(memory), "xxxxxxxx");
  FakeKernel kernel;
  DropBatch batch;
  batch.Add(memory.address() + kPage, 2 * kPage);
  batch.Add(memory.address() + 6 * kPage, kPage);
  const DropBatch::Result dropped = batch.Drop(kernel);
  EXPECT_TRUE(dropped.ok());
  EXPECT_EQ(dropped.bytes_dropped, 3 * kPage);
  EXPECT_EQ(Resident(memory), "x..xxx.x");
  EXPECT_EQ(memory.data()[0], 'm');
  EXPECT_EQ(memory.data()[kPage], 0);
  EXPECT_EQ(memory.data()[6 * kPage], 0);
}

TEST(DropBatchTest, AHoleBetweenMappingsFailsAlone) {
  ScratchMemory memory(9 * kPage);
  std::memset(memory.data(), 'm', memory.bytes());
  ASSERT_EQ(munmap(memory.data() + 4 * kPage, kPage), 0);
  FakeKernel kernel;
  DropBatch batch;
  for (const size_t page : {0, 2, 4, 6, 8}) {
    batch.Add(memory.address() + page * kPage, kPage);
  }
  const DropBatch::Result dropped = batch.Drop(kernel);
  EXPECT_THAT(FailuresOf(dropped),
              ElementsAre(Pair(memory.address() + 4 * kPage, kPage)));
  EXPECT_EQ(dropped.ErrorOf(memory.address() + 4 * kPage, kPage), ENOMEM);
  EXPECT_EQ(dropped.bytes_dropped, 4 * kPage);
  for (const size_t page : {0, 2, 6, 8}) {
    EXPECT_EQ(memory.data()[page * kPage], 0) << page;
  }
  EXPECT_EQ(memory.data()[kPage], 'm');
}

// A sandbox that does not know the call refuses it.
TEST(DropBatchTest, DropsUnderAFilterThatRefusesTheCall) {
  const ChildResult child = RunInChild([]() -> std::string {
    ScratchMemory memory(4 * kPage);
    std::memset(memory.data(), 'm', memory.bytes());
    if (!RefuseSystemCalls({SYS_process_madvise}, EPERM, false)) return "skip";
    DropBatch batch;
    batch.Add(memory.address(), kPage);
    batch.Add(memory.address() + 2 * kPage, kPage);
    const DropBatch::Result dropped = batch.Drop(RealKernel());
    if (!dropped.ok() || dropped.calls != 3) return "failed";
    return Resident(memory);
  });
  if (child.output == "skip") GTEST_SKIP() << "no seccomp filters";
  EXPECT_EQ(child.output, ".x.x");
}

}  // namespace
}  // namespace firsttouch
