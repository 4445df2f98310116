// Every call to the kernel may fail. None of these failures may end in a crash,
// a hang, or a byte that the next guest should not see.

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Op = FakeKernel::Op;

constexpr uint64_t kSize = 16 * kPageBytes;

ServiceOptions Options(Way way) {
  return {.name = "failing",
          .layout = {.instances = 3,
                     .max_memory_bytes = 32 * kPageBytes,
                     .guard_after_bytes = 65536},
          .supply = Asking(way),
          .trap_callback = JumpOutOfTrap};
}

class FailuresTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(Options(GetParam()), kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  static bool TracksBySignal() {
    return GetParam().tracking == Tracking::kSignal;
  }

  FakeKernel kernel_;
  std::unique_ptr<Service> service_;
};

INSTANTIATE_TEST_SUITE_P(AllWays, FailuresTest, AllWays(), WayName);

TEST_P(FailuresTest, ASlotThatCannotBeDroppedIsQuarantined) {
  const ImageRef image = PatternImage("q", 8);
  {
    Memory memory = *service_->Acquire({.image = image, .size_bytes = kSize});
    ASSERT_EQ(memory.Grow(kSize + kPageBytes), absl::OkStatus());
    Store(memory, kSize, 0x66);
    kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
    const absl::Status status = memory.Release();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(GetParam().supply == Supply::kMappingsDrop
                              ? "MADV_DONTNEED of 69632 bytes at offset 0 of "
                                "slot 0 in pool \"failing\""
                              : "MADV_DONTNEED of 4096 bytes at offset 65536 "
                                "of slot 0 in pool \"failing\""));
  }
  EXPECT_EQ(service_->Stats().slots_quarantined, 1u);
  // The other two slots still serve; the quarantined one never does again.
  std::vector<Memory> memories;
  for (int i = 0; i < 2; ++i) {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image, .size_bytes = kSize});
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_NE(memory->instance(), 0u);
    memories.push_back(*std::move(memory));
  }
  const absl::StatusOr<Memory> third = service_->Acquire({.size_bytes = kSize});
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(third.status().message()), HasSubstr("quarantined"));
}

TEST_P(FailuresTest, AResetThatFailsLeavesNothingUsable) {
  Memory memory = *service_->Acquire({.size_bytes = kSize});
  ASSERT_EQ(memory.Grow(kSize + kPageBytes), absl::OkStatus());
  Store(memory, kSize, 0x66);
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, EAGAIN});
  EXPECT_FALSE(memory.Reset().ok());
  EXPECT_EQ(memory.size_bytes(), 0u);
  EXPECT_THAT(std::string(memory.Reset().message()),
              HasSubstr("an earlier Reset or Snapshot of this memory failed"));
  // Growing the memory again would show what is there.
  for (const absl::Status& status :
       {memory.Grow(kSize), memory.Grow(0), memory.GrowBy(kPageBytes).status(),
        memory.GrowBy(0).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(
        std::string(status.message()),
        HasSubstr("an earlier Reset or Snapshot of this memory failed"));
  }
  EXPECT_EQ(memory.size_bytes(), 0u);
  EXPECT_THAT(std::string(memory.Release().message()),
              HasSubstr("its slot is quarantined"));
  EXPECT_EQ(service_->Stats().slots_quarantined, 1u);
}

TEST_P(FailuresTest, ABindThatFailsIsAnErrorAndTheSlotIsMappedAnew) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts what signals call";
  if (GetParam().backing != Backing::kShared) {
    GTEST_SKIP() << "the copied backing maps nothing at bind";
  }
  const bool mapped = GetParam().by_mappings();
  const ImageRef image = PatternImage("bind", 8);
  kernel_.Fail(Op::kMmap, 1, CallResult{0, ENOMEM});
  absl::StatusOr<Memory> memory =
      service_->Acquire({.image = image, .size_bytes = kSize});
  EXPECT_FALSE(memory.ok());
  EXPECT_THAT(std::string(memory.status().message()),
              HasSubstr("mmap of 32768 bytes at offset 0 of slot"));
  EXPECT_THAT(std::string(memory.status().message()),
              AllOf(HasSubstr("; out of memory: this process has "),
                    HasSubstr(" mappings and vm.max_map_count is ")));
  // The same slot, all of which is mapped anew first.
  if (mapped) {
    // The last of the slot's mapping properties.
    kernel_.Fail(Op::kMadvise, 3, CallResult{0, EAGAIN});
  } else {
    kernel_.Fail(Op::kRegister, 1, CallResult{0, EINVAL});
  }
  memory = service_->Acquire({.image = image, .size_bytes = kSize});
  EXPECT_FALSE(memory.ok());
  EXPECT_THAT(std::string(memory.status().message()),
              HasSubstr(mapped ? "MADV_DONTDUMP of 131072 bytes"
                               : "UFFDIO_REGISTER of 131072 bytes"));
  EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
  std::vector<Memory> memories;
  for (int i = 0; i < 3; ++i) {
    memory = service_->Acquire({.image = image, .size_bytes = kSize});
    ASSERT_TRUE(memory.ok()) << memory.status();
    EXPECT_EQ(FirstDifference(*memory, InitialBytes(image, kSize)),
              std::nullopt);
    EXPECT_TRUE(TrapOf([&] { Load(*memory, kSize); }).has_value());
    memories.push_back(*std::move(memory));
  }
}

// As where vm.overcommit_memory is 2: the old mapping is gone when mmap fails.
TEST_P(FailuresTest, APlaceThatMayBeSomebodyElsesIsNeverMappedAgain) {
  const ImageRef image = PatternImage("hole", 8);
  if (GetParam().backing != Backing::kShared) {
    GTEST_SKIP() << "the copied backing maps nothing at bind";
  }
  uintptr_t hole = 0;
  kernel_.Fail(Op::kMmap, 1, CallResult{0, ENOMEM});
  kernel_.Hook(Op::kMmap, [&](const FakeKernel::Call& call) {
    if (hole != 0) return;
    hole = call.start;
    ASSERT_EQ(munmap(reinterpret_cast<void*>(call.start), call.bytes), 0);
  });
  EXPECT_FALSE(service_->Acquire({.image = image, .size_bytes = kSize}).ok());
  // The place is reserved again, and then used as before.
  EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
  // The next time another mapping takes the place first.
  void* stranger = nullptr;
  kernel_.Hook(Op::kMmap, {});
  kernel_.Fail(Op::kMmap, 1, CallResult{0, ENOMEM});
  kernel_.Fail(Op::kMmap, 2, CallResult{0, EEXIST});
  kernel_.Hook(Op::kMmap, [&](const FakeKernel::Call& call) {
    if (call.start == 0 || stranger != nullptr) return;
    ASSERT_EQ(munmap(reinterpret_cast<void*>(call.start), call.bytes), 0);
    stranger = reinterpret_cast<void*>(call.start);
  });
  EXPECT_FALSE(service_->Acquire({.image = image, .size_bytes = kSize}).ok());
  kernel_.Hook(Op::kMmap, {});
  kernel_.Clear(Op::kMmap);
  EXPECT_EQ(service_->Stats().slots_quarantined, 1u);
  ASSERT_EQ(mmap(stranger, kPageBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
            stranger);
  *static_cast<volatile uint8_t*>(stranger) = 0x61;
  std::vector<Memory> memories;
  for (int i = 0; i < 2; ++i) {
    memories.push_back(
        *service_->Acquire({.image = image, .size_bytes = kSize}));
    EXPECT_EQ(FirstDifference(memories[i], InitialBytes(image, kSize)),
              std::nullopt);
  }
  EXPECT_FALSE(service_->Acquire({.image = image, .size_bytes = kSize}).ok());
  EXPECT_EQ(*static_cast<volatile uint8_t*>(stranger), 0x61);
}

TEST_P(FailuresTest, ASnapshotOfAPageWhoseFillFailedIsAnErrorOrHasIt) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts what signals call";
  const ImageRef image = PatternImage("unfilled", 8);
  Memory memory = *service_->Acquire({.image = image, .size_bytes = kSize});
  Store(memory, 7 * kPageBytes, 0x21);
  // A handler thread wakes the writer before it notes that the page is present.
  EXPECT_EQ(memory.MakeReady(7 * kPageBytes, 1, Access::kWrite),
            absl::OkStatus());
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, ENOMEM});
  EXPECT_FALSE(memory.MakeReady(12 * kPageBytes, 1, Access::kWrite).ok());
  for (const absl::Status& status :
       {memory.Snapshot("s").status(), memory.SnapshotDelta("d").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("UFFDIO_COPY for the page at offset 49152 of slot 0 "
                          "in pool \"failing\""));
  }
  kernel_.Clear(Op::kCopy);
  const absl::StatusOr<ImageRef> snapshot = memory.SnapshotDelta("whole");
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ((*snapshot)->PageBytes(PageIndex(7))[0], std::byte{0x21});
  EXPECT_FALSE((*snapshot)->IsStored(PageIndex(12)));
}

TEST_P(FailuresTest, MakeReadyPassesOnTheErrnoAndTheSlotIsCleanAfterwards) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts what signals call";
  const ImageRef image = PatternImage("ready", 8);
  Memory memory = *service_->Acquire({.image = image, .size_bytes = kSize});
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, ENOMEM});
  const absl::Status status = memory.MakeReady(0, 100, Access::kWrite);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("UFFDIO_COPY for the page at offset 0 of slot 0 in "
                        "pool \"failing\""));
  EXPECT_EQ(memory.MakeReady(0, 100, Access::kWrite), absl::OkStatus());
  memory.base()[50] = std::byte{0x99};
  EXPECT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kSize)), std::nullopt);
  // The same holds where the failed page is not touched again before the
  // release: for one that is protected by the second reset, and for one that
  // was never present.
  EXPECT_EQ(memory.Reset(), absl::OkStatus());
  if (HasPagemapScan()) {  // without it a release drops the page
    kernel_.Fail(Op::kWriteProtect, 1, RangeResult{0, ENOMEM});
    EXPECT_FALSE(memory.MakeReady(12 * kPageBytes, 1, Access::kWrite).ok());
  }
  EXPECT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kSize)), std::nullopt);
  ASSERT_EQ(memory.Grow(20 * kPageBytes), absl::OkStatus());
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, ENOMEM});
  EXPECT_FALSE(memory.MakeReady(18 * kPageBytes, 1, Access::kWrite).ok());
  EXPECT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kSize)), std::nullopt);
}

TEST_P(FailuresTest, PagesOfAFillThatFailedHalfWayAreNotThereForAnotherImage) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts what signals call";
  const ImageRef first = PatternImage("first", 16);
  const ImageRef second = PatternImage("the second", 2);
  // Takes all slots, so that each is bound anew.
  std::vector<Memory> memories;
  for (int i = 0; i < 3; ++i) {
    memories.push_back(
        *service_->Acquire({.image = first, .size_bytes = kSize}));
    for (Op op : {Op::kCopy, Op::kContinue}) {
      kernel_.Shorten(op, 1, 4 * kPageBytes, ENOMEM);
    }
    EXPECT_FALSE(memories[i].MakeReady(0, kSize, Access::kRead).ok());
    for (Op op : {Op::kCopy, Op::kContinue}) kernel_.Clear(op);
  }
  memories.clear();
  for (int i = 0; i < 3; ++i) {
    memories.push_back(
        *service_->Acquire({.image = second, .size_bytes = 3 * kPageBytes}));
    EXPECT_EQ(
        FirstDifference(memories[i], InitialBytes(second, 3 * kPageBytes)),
        std::nullopt);
    EXPECT_TRUE(TrapOf([&] { Load(memories[i], 3 * kPageBytes); }).has_value());
  }
}

TEST_P(FailuresTest, PagesOfAFillThatFailedHalfWayAreNotThereForASmallerSize) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts what signals call";
  for (const Access access : {Access::kRead, Access::kWrite}) {
    Memory memory = *service_->Acquire({.size_bytes = kSize});
    const uint32_t slot = memory.instance();
    for (Op op : {Op::kCopy, Op::kZeroPage}) {
      kernel_.Shorten(op, 1, 2 * kPageBytes, ENOMEM);
    }
    EXPECT_FALSE(memory.MakeReady(0, kSize, access).ok());
    for (Op op : {Op::kCopy, Op::kZeroPage}) kernel_.Clear(op);
    ASSERT_EQ(memory.Release(), absl::OkStatus());
    memory = *service_->Acquire({.size_bytes = 0});
    ASSERT_EQ(memory.instance(), slot);
    for (uint64_t page = 0; page < 16; ++page) {
      EXPECT_TRUE(TrapOf([&] { Load(memory, page * kPageBytes); }).has_value())
          << "page " << page << " is out of bounds and can be read";
    }
  }
}

TEST_P(FailuresTest, FillsThatStopHalfWayOrAreRefusedForAMomentGoOn) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts what signals call";
  const ImageRef image = PatternImage("half", 16);
  for (Op op : {Op::kCopy, Op::kContinue, Op::kZeroPage, Op::kWriteProtect}) {
    for (uint64_t nth : {1, 2, 3}) {
      Memory memory = *service_->Acquire({.image = image, .size_bytes = kSize});
      ASSERT_EQ(memory.Grow(32 * kPageBytes), absl::OkStatus());
      kernel_.Fail(op, nth, RangeResult{0, EAGAIN});
      kernel_.Shorten(op, nth + 1, kPageBytes, EAGAIN);
      for (uint64_t page = 0; page < 32; ++page) {
        const uint64_t at = page * kPageBytes;
        const uint8_t expected = page < 16 ? InitialBytes(image, kSize)[at] : 0;
        ASSERT_EQ(Load(memory, at), expected);
        Store(memory, at, 0x11);
      }
      ASSERT_EQ(memory.Reset(), absl::OkStatus());
      ASSERT_EQ(FirstDifference(memory, InitialBytes(image, kSize)),
                std::nullopt);
      kernel_.Clear(op);
    }
  }
}

// The kernel delays a Reset: the end of the Service does not wait for it, nor
// for a moment between two Resets.
TEST_P(FailuresTest, TheServiceEndsInTheMiddleOfAReset) {
  Memory memory = *service_->Acquire({.size_bytes = kSize});
  ASSERT_EQ(memory.Grow(kSize + kPageBytes), absl::OkStatus());
  Store(memory, kSize, 0x66);
  std::atomic<bool> held_up = false;
  absl::Notification resetting;
  absl::Notification ended;
  bool ended_meanwhile = false;
  const pid_t here = gettid();
  kernel_.Hook(Op::kMadvise, [&](const FakeKernel::Call&) {
    if (gettid() == here || held_up.exchange(true)) return;
    resetting.Notify();
    ended_meanwhile = ended.WaitForNotificationWithTimeout(absl::Seconds(20));
  });
  std::thread holder([&] {
    EXPECT_EQ(memory.Reset(), absl::OkStatus());
    EXPECT_EQ(memory.Release(), absl::OkStatus());
  });
  resetting.WaitForNotification();
  service_.reset();
  ended.Notify();
  holder.join();
  EXPECT_TRUE(ended_meanwhile);
}

TEST_P(FailuresTest, WithoutPagemapScanPagesThatMayHaveChangedAreDropped) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts what signals call";
  service_.reset();
  kernel_.Fail(Op::kPagemapScan, FakeKernel::kEvery, CallResult{0, ENOTTY});
  absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService(Options(GetParam()), kernel_);
  ASSERT_TRUE(service.ok()) << service.status();
  EXPECT_THAT((*service)->Describe(), HasSubstr("dropped at release"));
  for (int cycle = 0; cycle < 3; ++cycle) {
    Memory memory = *(*service)->Acquire({.size_bytes = kSize});
    for (uint64_t page = 0; page < 16; ++page) {
      ASSERT_EQ(Load(memory, page * kPageBytes), 0);
      Store(memory, page * kPageBytes, 0x22);
    }
    // While the memories are held nothing may be dropped.
    absl::StatusOr<ImageRef> snapshot = memory.Snapshot("unscanned");
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    EXPECT_EQ((*snapshot)->stored_pages(), 16u);
    EXPECT_EQ(Load(memory, 5 * kPageBytes), 0x22);
  }
}

TEST_P(FailuresTest, BeforePoisonAPageIsMadeInaccessibleInstead) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts what signals call";
  if (GetParam().resolve != Resolve::kHandlerThread) {
    GTEST_SKIP() << "in-thread traps need neither";
  }
  service_.reset();
  // A kernel that has all other features.
  FakeKernel old_kernel;
  old_kernel.SetApiReply(
      kUffdFeaturePagefaultFlagWp | kUffdFeatureMissingShmem |
          kUffdFeatureMinorShmem | kUffdFeatureWpHugetlbfsShmem |
          kUffdFeatureExactAddress | kUffdFeatureWpUnpopulated,
      ~uint64_t{0});
  absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService(Options(GetParam()), old_kernel);
  ASSERT_TRUE(service.ok()) << service.status();
  for (int cycle = 0; cycle < 3; ++cycle) {
    Memory memory = *(*service)->Acquire({.size_bytes = kSize});
    for (uint64_t page = 16; page < 40; ++page) {
      std::optional<TrapInfo> trap =
          TrapOf([&] { Store(memory, page * kPageBytes + 5, 1); });
      ASSERT_TRUE(trap.has_value());
      EXPECT_EQ(trap->offset_bytes,
                static_cast<int64_t>(page * kPageBytes + 5));
    }
    ASSERT_EQ(memory.Grow(32 * kPageBytes), absl::OkStatus());
    for (uint64_t page = 0; page < 32; ++page) {
      ASSERT_EQ(Load(memory, page * kPageBytes + 5), 0);
      Store(memory, page * kPageBytes + 5, 1);
    }
  }
  EXPECT_EQ(old_kernel.Calls(Op::kPoison), 0u);
  EXPECT_GT(old_kernel.Calls(Op::kMprotect), 0u);
}

TEST_P(FailuresTest, CreateUndoesWhatItDidWhateverStepFails) {
  service_.reset();
  const struct {
    Op op;
    uint64_t nth;
  } steps[] = {{Op::kApi, 1},     {Op::kApi, 2},     {Op::kRegister, 1},
               {Op::kMmap, 1},    {Op::kMmap, 2},    {Op::kMmap, 3},
               {Op::kMadvise, 1}, {Op::kMadvise, 2}, {Op::kEventFd, 1}};
  for (const auto& step : steps) {
    FakeKernel kernel;
    kernel.Fail(step.op, step.nth, CallResult{0, EPERM});
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(Options(GetParam()), kernel);
    // Some of these calls are not made here, or their success is optional.
    if (service.ok()) {
      Memory memory = *(*service)->Acquire({.size_bytes = kSize});
      EXPECT_EQ(Load(memory, 0), 0);
    } else {
      EXPECT_NE(std::string(service.status().message()), "");
    }
  }
  // Nothing is left behind: the next service finds all it needs.
  absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService(Options(GetParam()), kernel_);
  EXPECT_TRUE(service.ok()) << service.status();
}

class AsyncFailuresTest : public testing::Test {
 protected:
  void SetUp() override {
    constexpr Way kWay{Backing::kShared, Resolve::kInThread, Tracking::kAsync};
    if (const std::string missing = MissingFor(kWay); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    ServiceOptions options = Options(kWay);
    options.retained_cycles = 5;
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(options, kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  // Changes pages of a memory that must begin with its initial bytes.
  absl::Status Cycle() {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image_, .size_bytes = kSize});
    if (!memory.ok()) return memory.status();
    EXPECT_EQ(FirstDifference(*memory, InitialBytes(image_, kSize)),
              std::nullopt);
    for (uint64_t page : {1, 5, 12}) Store(*memory, page * kPageBytes + 3, 9);
    return memory->Release();
  }

  FakeKernel kernel_;
  std::unique_ptr<Service> service_;
  const ImageRef image_ = PatternImage("async", 8);
};

TEST_F(AsyncFailuresTest, AScanThatFailsQuarantinesTheSlot) {
  EXPECT_EQ(Cycle(), absl::OkStatus());
  kernel_.Fail(Op::kPagemapScan, 1, CallResult{0, EIO});
  EXPECT_THAT(std::string(Cycle().message()),
              HasSubstr("PAGEMAP_SCAN of 32768 bytes at offset 0 of slot"));
  EXPECT_EQ(service_->Stats().slots_quarantined, 1u);
  EXPECT_EQ(Cycle(), absl::OkStatus());
}

TEST_F(AsyncFailuresTest, WherePagesCannotBeProtectedTheyAreRestored) {
  EXPECT_EQ(Cycle(), absl::OkStatus());
  // As after a stray close(2) of the second userfaultfd: every private page
  // counts as written.
  for (int i = 0; i < 40; ++i) {
    kernel_.Fail(Op::kPagemapScan, 2, CallResult{0, EPERM});
    EXPECT_EQ(Cycle(), absl::OkStatus());
    kernel_.Clear(Op::kPagemapScan);
  }
  EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
}

TEST_F(AsyncFailuresTest, ASlotThatIsHalfRegisteredIsMappedAnew) {
  for (Op op : {Op::kUnregister, Op::kRegister}) {
    const bool second = op == Op::kRegister;
    // The first registration is that of the image's mapping.
    kernel_.Fail(op, second ? 2 : 1, CallResult{0, ENOMEM});
    EXPECT_THAT(std::string(Cycle().message()),
                HasSubstr(second ? "UFFDIO_REGISTER of 32768 bytes"
                                 : "UFFDIO_UNREGISTER of 32768 bytes"));
    kernel_.Clear(op);
  }
  EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Cycle(), absl::OkStatus());
}

TEST(OptionsTest, AsyncTrackingWhereItIsNotToBeHadSaysWhatItNeeds) {
  constexpr Way kSignalWay{Backing::kShared, Resolve::kInThread};
  if (const std::string missing = MissingFor(kSignalWay); !missing.empty()) {
    GTEST_SKIP() << "this machine has no " << missing;
  }
  FakeKernel kernel;
  kernel.Fail(Op::kPagemapScan, FakeKernel::kEvery, CallResult{0, ENOTTY});
  const absl::Status status =
      CreateService(
          Options({Backing::kShared, Resolve::kInThread, Tracking::kAsync}),
          kernel)
          .status();
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("tracking kAsync needs userfaultfd's WP_ASYNC and "
                        "PAGEMAP_SCAN (kernel 6.7)"));
}

TEST(OptionsTest, ContradictoryOptionsNameTheOptionAndTheWayOut) {
  const Way way{Backing::kShared, Resolve::kHandlerThread};
  ServiceOptions options = Options(way);
  options.supply = Asking(way, /*handler_threads=*/0);
  EXPECT_THAT(std::string(Service::Create(options).status().message()),
              HasSubstr("InHandlerThreads::threads 0 is not in 1 to 64"));
  options.supply = Asking(way, /*handler_threads=*/65);
  EXPECT_THAT(std::string(Service::Create(options).status().message()),
              HasSubstr("InHandlerThreads::threads 65 is not in 1 to 64"));
  options = Options(way);
  options.layout.instances = 0;
  EXPECT_EQ(Service::Create(options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(OptionsTest, AKernelWithoutTheSharedBackingGetsTheCopiedOne) {
  FakeKernel kernel;
  // As 5.15: write-protection and SIGBUS, no minor faults on private memfds.
  kernel.SetApiReply(kUffdFeaturePagefaultFlagWp | kUffdFeatureSigbus |
                         kUffdFeatureMissingShmem,
                     ~uint64_t{0});
  ServiceOptions options = Options({Backing::kShared, Resolve::kInThread});
  EXPECT_EQ(CreateService(options, kernel).status().code(),
            absl::StatusCode::kFailedPrecondition);
  options.supply = AnySupply{};
  absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService(options, kernel);
  ASSERT_TRUE(service.ok()) << service.status();
  EXPECT_EQ((*service)->backing(), Backing::kCopied);
  EXPECT_THAT((*service)->Describe(),
              HasSubstr("backing: copied (this kernel lacks what kShared"));
  const ImageRef image = PatternImage("old", 4);
  Memory memory = *(*service)->Acquire({.image = image, .size_bytes = kSize});
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kSize)), std::nullopt);
}

TEST(OptionsTest, AFullTableOfDescriptorsIsNamed) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  // The lowest free descriptor number becomes the limit.
  const int next = dup(0);
  ASSERT_GE(next, 0);
  close(next);
  rlimit none = before;
  none.rlim_cur = next;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status status =
      Service::Create(Options({Backing::kCopied, Resolve::kInThread})).status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("RLIMIT_NOFILE"));
}

TEST(OptionsTest, TwoThousandSmallPoolsWorkOrTheLimitIsNamed) {
  // The second round finds nothing left of the first.
  for (size_t wanted : {2000, 200}) {
    std::vector<std::unique_ptr<Service>> pools;
    while (pools.size() < wanted) {
      absl::StatusOr<std::unique_ptr<Service>> pool =
          Service::Create({.name = "small",
                           .layout = {.instances = 1,
                                      .max_memory_bytes = 4 * kPageBytes,
                                      .guard_after_bytes = 65536}});
      if (!pool.ok()) {
        EXPECT_EQ(pool.status().code(), absl::StatusCode::kResourceExhausted);
        EXPECT_THAT(std::string(pool.status().message()),
                    HasSubstr("RLIMIT_NOFILE"));
        break;
      }
      pools.push_back(*std::move(pool));
    }
    EXPECT_GT(pools.size(), 100u);
    for (size_t i = 0; i < pools.size(); i += pools.size() / 20) {
      Memory memory = *pools[i]->Acquire({.size_bytes = 4 * kPageBytes});
      Store(memory, 3 * kPageBytes, 1);
      EXPECT_EQ(Load(memory, 0), 0);
    }
  }
}

TEST(FailuresDeathTest, AFillThatFailsUnderAGuestDiesInsteadOfShowingZeroes) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (Resolve resolve : {Resolve::kInThread, Resolve::kHandlerThread}) {
    const bool trapped_by_mprotect =
        resolve == Resolve::kHandlerThread && !TrapsByPoison();
    EXPECT_EXIT(
        {
          FakeKernel kernel;
          auto service =
              CreateService(Options({Backing::kCopied, resolve}), kernel);
          auto memory = (*service)->Acquire({.size_bytes = kSize});
          kernel.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, ENOMEM});
          Store(*memory, 5 * kPageBytes + 7, 1);
        },
        testing::KilledBySignal(trapped_by_mprotect ? SIGSEGV : SIGBUS),
        "firsttouch: cannot supply the page at offset 2048[07] of pool "
        "\"failing\", instance 0, memory 0: UFFDIO_COPY failed with errno 12; "
        "going on would show wrong bytes");
  }
}

}  // namespace
}  // namespace firsttouch
