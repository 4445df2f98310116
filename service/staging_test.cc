// First writes from the staging area: the bytes are the image's, pages are
// really moved, and whatever the kernel refuses is copied instead.

#include "firsttouch/service/staging.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/service_test_util.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/staged_cells.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;
using Op = FakeKernel::Op;

constexpr uint64_t kGranulePages = 16;
constexpr uint64_t kGranuleBytes = kGranulePages * kPageBytes;
constexpr uint64_t kPages = 4 * kGranulePages;
constexpr uint64_t kSize = kPages * kPageBytes;

class StagingTest : public testing::TestWithParam<Resolve> {
 protected:
  ServiceOptions Options() {
    return {.name = "staged",
            .layout = {.instances = 48,
                       .max_memory_bytes = kSize,
                       .guard_after_bytes = 65536,
                       .granule_bytes = kGranuleBytes},
            .backing = Backing::kCopied,
            .resolve = GetParam(),
            .handler_threads = 2,
            .trap_callback = JumpOutOfTrap,
            .staging_bytes = 16 * kGranuleBytes};
  }

  void SetUp() override { Make(Options()); }

  void Make(ServiceOptions options) {
    held_.clear();
    service_.reset();
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create(std::move(options), kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
    if (service_->Describe().find("lacks UFFDIO_MOVE") != std::string::npos) {
      GTEST_SKIP() << service_->Describe();
    }
  }

  // A memory with nothing resident. No test releases one before it is done:
  // what tenants touched is made ready for the next one, and takes no fault
  // then.
  Memory Fresh(const ImageRef& image) {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image, .size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  void AwaitStaged(uint64_t pages) {
    while (service_->Stats().staged_bytes != pages * kPageBytes) sched_yield();
  }

  // Writes to a page of each granule; returns what the memory must hold now.
  static std::vector<uint8_t> WriteEachGranule(Memory& memory,
                                               const ImageRef& image) {
    std::vector<uint8_t> expected = InitialBytes(image, kSize);
    for (uint64_t at = 5 * kPageBytes; at < kSize; at += kGranuleBytes) {
      Store(memory, at, 0);
      expected[at] = 0;
    }
    // Waits for handler threads: they wake who writes before they have counted.
    static_cast<void>(memory.CountPages());
    return expected;
  }

  // Fills the area with all granules of `image`, which has this many stored
  // pages.
  void Stage(const ImageRef& image, uint64_t stored_pages) {
    held_.push_back(Fresh(image));
    WriteEachGranule(held_.back(), image);
    AwaitStaged(stored_pages);
  }

  FakeKernel kernel_;
  std::unique_ptr<Service> service_;
  std::vector<Memory> held_;
};

INSTANTIATE_TEST_SUITE_P(Ways, StagingTest,
                         testing::Values(Resolve::kInThread,
                                         Resolve::kHandlerThread),
                         [](const auto& way) {
                           return way.param == Resolve::kInThread
                                      ? "InThread"
                                      : "HandlerThread";
                         });

TEST_P(StagingTest, TheSecondSlotsFirstWritesMovePagesWithTheImagesBytes) {
  const ImageRef image = PatternImage("moved", kPages, {17, 40, 41});
  Memory first = Fresh(image);
  EXPECT_EQ(FirstDifference(first, WriteEachGranule(first, image)),
            std::nullopt);
  EXPECT_EQ(service_->Stats().pages_moved, 0u);
  AwaitStaged(kPages - 3);

  Memory second = Fresh(image);
  // What the comparison read is counted then, also by handler threads.
  static_cast<void>(first.CountPages());
  const uint64_t copies = service_->Stats().pages_copied;
  const std::vector<uint8_t> expected = WriteEachGranule(second, image);
  const ServiceStats stats = service_->Stats();
  // The run around the page that was written, in each granule: all of it, but
  // in the two that have holes.
  EXPECT_EQ(stats.pages_moved, 16u + 14u + 8u + 16u);
  EXPECT_EQ(stats.pages_copied - copies, stats.pages_moved);
  EXPECT_EQ(FirstDifference(second, expected), std::nullopt);
  // And they are filled up for the third one.
  AwaitStaged(kPages - 3);
  Memory third = Fresh(image);
  EXPECT_EQ(FirstDifference(third, WriteEachGranule(third, image)),
            std::nullopt);
  EXPECT_EQ(service_->Stats().pages_moved, 2 * stats.pages_moved);
}

TEST_P(StagingTest, AMemoryThatGotMovedPagesIsRestored) {
  const ImageRef image = PatternImage("restored", kPages);
  Stage(image, kPages);
  Memory memory = Fresh(image);
  WriteEachGranule(memory, image);
  // Moved pages can be written without a word, as copied ones.
  Store(memory, 9 * kPageBytes, 0);
  ASSERT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kSize)), std::nullopt);
  EXPECT_GT(service_->Stats().pages_moved, 0u);
}

TEST_P(StagingTest, WhatIsMadeReadyForATenantIsMovedToo) {
  const ImageRef image = PatternImage("prefilled", kPages);
  Stage(image, kPages);
  // Tenants of the image write to all of it.
  constexpr uint64_t kAll[] = {~uint64_t{0}};
  image->working_set().LearnWritten(kAll);
  Memory memory = Fresh(image);
  EXPECT_EQ(service_->Stats().pages_prefilled, kPages);
  EXPECT_EQ(service_->Stats().pages_moved, kPages);
  const uint64_t faults = service_->Stats().faults();
  EXPECT_EQ(FirstDifference(memory, WriteEachGranule(memory, image)),
            std::nullopt);
  EXPECT_EQ(service_->Stats().faults(), faults);
}

TEST_P(StagingTest, PagesThatWereReadBeforeStayAsTheyAre) {
  const ImageRef image = PatternImage("read", kPages);
  Stage(image, kPages);
  Memory memory = Fresh(image);
  // A read brings the granule; the write that follows needs no page.
  EXPECT_NE(Load(memory, 0), 0);
  EXPECT_EQ(FirstDifference(memory, WriteEachGranule(memory, image)),
            std::nullopt);
  EXPECT_EQ(service_->Stats().pages_moved, kPages - kGranulePages);
}

TEST_P(StagingTest, WhatTheKernelWillNotMoveIsCopied) {
  for (int error : {EBUSY, ENOENT, EAGAIN, EINVAL, ENOMEM}) {
    const ImageRef image = PatternImage("refused", kPages);
    Make(Options());
    Stage(image, kPages);
    kernel_.Fail(Op::kMove, FakeKernel::kEvery, RangeResult{0, error});
    Memory memory = Fresh(image);
    EXPECT_EQ(FirstDifference(memory, WriteEachGranule(memory, image)),
              std::nullopt)
        << strerror(error);
    EXPECT_EQ(service_->Stats().pages_moved, 0u);
    EXPECT_GT(kernel_.Calls(Op::kMove), 0u);
    kernel_.Clear(Op::kMove);
  }
}

TEST_P(StagingTest, WhatIsLeftOfAMoveThatStopsHalfWayIsMovedOrCopied) {
  for (int error : {EAGAIN, EBUSY, ENOENT}) {
    const ImageRef image = PatternImage("half-way", kPages);
    Make(Options());
    Stage(image, kPages);
    kernel_.Shorten(Op::kMove, 1, 6 * kPageBytes, error);
    Memory memory = Fresh(image);
    EXPECT_EQ(FirstDifference(memory, WriteEachGranule(memory, image)),
              std::nullopt)
        << strerror(error);
    EXPECT_EQ(service_->Stats().pages_moved,
              error == EAGAIN ? kPages : kPages - 10)
        << strerror(error);
    // What was not taken is still good.
    AwaitStaged(kPages);
    Memory next = Fresh(image);
    EXPECT_EQ(FirstDifference(next, WriteEachGranule(next, image)),
              std::nullopt);
    kernel_.Clear(Op::kMove);
  }
}

TEST_P(StagingTest, APageThatIsThereAlreadyIsKeptAndUnprotected) {
  const ImageRef image = PatternImage("present", kPages);
  std::atomic<bool> armed{false};
  // In front of a move, another thread's read brings a page of the granule,
  // protected. Set before there are threads.
  service_.reset();
  kernel_.Hook(Op::kMove, [&](const FakeKernel::Call& call) {
    if (!armed.exchange(false)) return;
    EXPECT_TRUE(RealKernel()
                    .Copy(call.fd, call.start,
                          reinterpret_cast<uintptr_t>(image->data()),
                          kPageBytes, kUffdCopyWp)
                    .ok());
  });
  Make(Options());
  Stage(image, kPages);
  Memory memory = Fresh(image);
  armed = true;
  std::vector<uint8_t> expected = WriteEachGranule(memory, image);
  EXPECT_EQ(service_->Stats().pages_moved, kPages - 1);
  // It counts as open: to write to it, or to restore it, takes no fault.
  Store(memory, 0, 0);
  expected[0] = 0;
  EXPECT_EQ(service_->Stats().write_protect_faults, 0u);
  EXPECT_EQ(FirstDifference(memory, expected), std::nullopt);
  ASSERT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kSize)), std::nullopt);
  // The threads that call the hook end before what it looks at.
  memory = Memory();
  held_.clear();
  service_.reset();
}

TEST_P(StagingTest, ImagesDoNotMixAndOneThatIsGoneFreesItsCells) {
  ServiceOptions options = Options();
  options.layout.instances = 2;
  Make(options);
  ImageRef one = PatternImage("one", kPages);
  const ImageRef other = PatternImage("the other", kPages);
  Stage(one, kPages);
  Memory memory = Fresh(other);
  EXPECT_EQ(FirstDifference(memory, WriteEachGranule(memory, other)),
            std::nullopt);
  EXPECT_EQ(service_->Stats().pages_moved, 0u);
  AwaitStaged(2 * kPages);
  // Its only slot gets a third image, which is when the thread looks who is
  // left.
  one.reset();
  held_.clear();
  const Memory third = Fresh(PatternImage("a third", kPages));
  AwaitStaged(kPages);
}

TEST(StagedCellsTest, TheAreaDoesNotGrowAndServesNewImagesInTime) {
  const absl::StatusOr<Uffd> uffd =
      Uffd::Open(RealKernel(), {.required_features = kUffdFeatureSigbus,
                                .wished_features = kUffdFeatureMove});
  ASSERT_TRUE(uffd.ok()) << uffd.status();
  if ((uffd->features() & kUffdFeatureMove) == 0) {
    GTEST_SKIP() << "no UFFDIO_MOVE before 6.8";
  }
  // One set.
  const absl::StatusOr<std::unique_ptr<Staging>> staging = Staging::Start(
      RealKernel(), *uffd, "cells", 4 * kGranuleBytes, kGranulePages);
  ASSERT_TRUE(staging.ok()) << staging.status();
  StagedCells& cells = (*staging)->cells();
  const ImageRef old = PatternImage("old", kPages);
  const ImageRef fresh = PatternImage("fresh", kPages);
  const auto claim = [&](const ImageRef& image, uint64_t chunk) {
    const uint64_t name = (*staging)->Use(image);
    StagedCell* cell = nullptr;
    while ((cell = ClaimStaged(cells, name, chunk)) == nullptr) sched_yield();
    EXPECT_EQ(cell->image.load(), name);
    EXPECT_EQ(cell->chunk.load(), chunk);
    EXPECT_EQ(memcmp(reinterpret_cast<const void*>(cells.AddressOf(*cell)),
                     image->data() + chunk * kGranuleBytes, kGranuleBytes),
              0);
    // Not to be had twice.
    EXPECT_EQ(ClaimStaged(cells, name, chunk), nullptr);
    GiveBackStaged(cells, *cell);
  };
  for (uint64_t chunk = 0; chunk < 4; ++chunk) claim(old, chunk);
  while ((*staging)->ready_bytes() != 4 * kGranuleBytes) sched_yield();
  // All is taken, and what nobody asks for any more makes room.
  for (uint64_t chunk = 0; chunk < 4; ++chunk) claim(fresh, chunk);
  while ((*staging)->ready_bytes() != 4 * kGranuleBytes) sched_yield();
  EXPECT_EQ((*staging)->bytes(), 4 * kGranuleBytes);
  EXPECT_EQ((*staging)->Use(nullptr), 0u);
}

TEST_P(StagingTest, ThreadsThatWriteToOneGranuleAllFindTheImage) {
  const ImageRef image = PatternImage("race", kPages);
  const std::vector<uint8_t> initial = InitialBytes(image, kSize);
  Stage(image, kPages);
  for (int round = 0; round < 6; ++round) {
    // Both threads in both memories: for the same cells, and the same pages.
    held_.push_back(Fresh(image));
    held_.push_back(Fresh(image));
    Memory* const memories = &held_[held_.size() - 2];
    std::atomic<int> ready{0};
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 2; ++t) {
      threads.emplace_back([&, t] {
        ASSERT_EQ(EnsureAlternateStack(), absl::OkStatus());
        ready.fetch_add(1);
        while (ready.load() != 2) sched_yield();
        for (uint64_t page = 0; page < kPages; ++page) {
          Store(memories[(page + t) % 2], page * kPageBytes + t, 0);
        }
        for (uint64_t page = 0; page < kPages; ++page) {
          Store(memories[(page + t + 1) % 2], page * kPageBytes + t, 0);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<uint8_t> expected = initial;
    for (uint64_t page = 0; page < kPages; ++page) {
      expected[page * kPageBytes] = expected[page * kPageBytes + 1] = 0;
    }
    EXPECT_EQ(FirstDifference(memories[0], expected), std::nullopt);
    EXPECT_EQ(FirstDifference(memories[1], expected), std::nullopt);
  }
}

TEST_P(StagingTest, AForkedChildDoesNotKeepPagesFromBeingMoved) {
  const ImageRef image = PatternImage("forked", kPages);
  Stage(image, kPages);
  int hold[2];
  ASSERT_EQ(pipe(hold), 0);
  const pid_t child = fork();
  if (child == 0) {
    close(hold[1]);
    char byte;
    // Until the parent closes its end. Then it ends the pool, of which nothing
    // is its own.
    const ssize_t end = read(hold[0], &byte, 1);
    service_.reset();
    _exit(end == 0 ? 7 : 1);
  }
  close(hold[0]);
  Memory memory = Fresh(image);
  EXPECT_EQ(FirstDifference(memory, WriteEachGranule(memory, image)),
            std::nullopt);
  EXPECT_EQ(service_->Stats().pages_moved, kPages);
  close(hold[1]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST_P(StagingTest, AMemoryOutlivesItsServiceAndStillMoves) {
  const ImageRef image = PatternImage("orphan", kPages);
  Stage(image, kPages);
  Memory memory = Fresh(image);
  service_.reset();
  const uint64_t moves = kernel_.Calls(Op::kMove);
  EXPECT_EQ(FirstDifference(memory, WriteEachGranule(memory, image)),
            std::nullopt);
  EXPECT_EQ(kernel_.Calls(Op::kMove), moves + 4);
}

TEST_P(StagingTest, AnAreaOfOtherSizesIsRefused) {
  ServiceOptions options = Options();
  options.staging_bytes = 4 * kGranuleBytes - 1;
  const absl::StatusOr<std::unique_ptr<Service>> small =
      Service::Create(options, kernel_);
  EXPECT_EQ(small.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(small.status().message()),
              HasSubstr("staging_bytes 262143 of pool \"staged\" is not in "
                        "262144 (4 granules) to 17179869184"));
  options.staging_bytes = ~uint64_t{0};
  EXPECT_FALSE(Service::Create(options, kernel_).ok());
}

TEST_P(StagingTest, WithoutTheKernelsHelpThePoolCopies) {
  const absl::StatusOr<std::unique_ptr<Service>> here =
      Service::Create(Options(), kernel_);
  ASSERT_TRUE(here.ok());
  EXPECT_THAT((*here)->Describe(), HasSubstr("staging: 1048576 bytes\n"));

  constexpr uint64_t kOld = kUffdFeaturePagefaultFlagWp | kUffdFeatureSigbus;
  FakeKernel old;
  old.SetApiReply(kOld, ~uint64_t{0});
  const absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(Options(), old);
  ASSERT_TRUE(service.ok()) << service.status();
  EXPECT_THAT((*service)->Describe(),
              HasSubstr("staging: none (this kernel lacks UFFDIO_MOVE"));
  const ImageRef image = PatternImage("old", kPages);
  Memory memory = *(*service)->Acquire({.image = image, .size_bytes = kSize});
  EXPECT_EQ(FirstDifference(memory, WriteEachGranule(memory, image)),
            std::nullopt);

  ServiceOptions shared = Options();
  shared.backing = Backing::kShared;
  const absl::StatusOr<std::unique_ptr<Service>> other =
      Service::Create(shared, kernel_);
  if (!other.ok()) return;
  EXPECT_THAT((*other)->Describe(),
              HasSubstr("staging: none (the backing is not kCopied)"));
}

}  // namespace
}  // namespace firsttouch
