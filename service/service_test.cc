// The contract of a memory, on every way of supplying it.

#include "firsttouch/service/service.h"

#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "firsttouch/locator/locator.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMax = 64 * kPageBytes;
constexpr uint64_t kGuard = 64 * 1024;

class ServiceTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override { MakeService({}); }

  // Fills unset options with what the tests use.
  void MakeService(ServiceOptions options, uint32_t handler_threads = 1) {
    options.name = "test";
    options.layout.instances = 3;
    if (options.layout.max_memory_bytes == 0) {
      options.layout.max_memory_bytes = kMax;
    }
    options.layout.guard_before_bytes = kGuard;
    options.layout.guard_after_bytes = kGuard;
    options.supply = Asking(GetParam(), handler_threads);
    options.trap_callback = JumpOutOfTrap;
    service_.reset();
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(GetParam(), std::move(options), kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  Memory MustAcquire(const MemoryOptions& options) {
    absl::StatusOr<Memory> memory = service_->Acquire(options);
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  static bool TracksBySignal() {
    return GetParam().tracking == Tracking::kSignal;
  }

  // Forwards all calls. How fast the machine is does not decide what a pool
  // does where its kernel is none (UffdSupply::Costs()).
  FakeKernel kernel_;
  std::unique_ptr<Service> service_;
};

INSTANTIATE_TEST_SUITE_P(AllWays, ServiceTest, AllWays(), WayName);
INSTANTIATE_TEST_SUITE_P(TestsOwn, ServiceTest, testing::Values(kPlainWay),
                         WayName);

TEST_P(ServiceTest, AMemoryIsAsLargeAsItsImageUnlessItIsToBeLarger) {
  const ImageRef image = PatternImage("size", 5, {});
  absl::StatusOr<Memory> memory = service_->Acquire({.image = image});
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->size_bytes(), 5 * kPageBytes);
  EXPECT_EQ(memory->span().data(), memory->base());
  EXPECT_EQ(memory->span().size(), 5 * kPageBytes);
  EXPECT_EQ(memory->span()[4 * kPageBytes], image->PageBytes(PageIndex(4))[0]);
  ASSERT_TRUE(memory->Release().ok());
  absl::StatusOr<Memory> none = service_->Acquire({});
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->size_bytes(), 0u);
  EXPECT_TRUE(none->span().empty());
}

TEST_P(ServiceTest, AMemoryThatIsNotHeldAnswers) {
  absl::StatusOr<Memory> memory =
      service_->Acquire({.size_bytes = 2 * kPageBytes});
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_NE(memory->instance(), kNoMemory);
  EXPECT_EQ(memory->memory_index(), 0u);
  const SlotCounts before = memory->stats();
  ASSERT_TRUE(memory->Grow(3 * kPageBytes).ok());
  EXPECT_EQ(memory->stats().grows, before.grows + 1);
  ASSERT_TRUE(memory->Release().ok());
  const Memory never;
  for (const Memory* gone : {static_cast<const Memory*>(&*memory), &never}) {
    EXPECT_FALSE(*gone);
    EXPECT_EQ(gone->instance(), kNoMemory);
    EXPECT_EQ(gone->memory_index(), kNoMemory);
    EXPECT_EQ(gone->base(), nullptr);
    EXPECT_EQ(gone->size_bytes(), 0u);
    EXPECT_EQ(gone->max_bytes(), 0u);
    EXPECT_TRUE(gone->span().empty());
    EXPECT_EQ(gone->stats().handovers, 0u);
    EXPECT_EQ(gone->CountPages().touched, 0u);
  }
}

TEST_P(ServiceTest, AMemoryStartsAsItsImageAndThenZeroes) {
  const ImageRef image = PatternImage("start", 20, {3, 17});
  Memory memory = MustAcquire({.image = image, .size_bytes = 40 * kPageBytes});
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, 40 * kPageBytes)),
            std::nullopt);
}

TEST_P(ServiceTest, WritesAreSeenByTheLeaseAndNotByTheNextOne) {
  const ImageRef image = PatternImage("next", 20, {3, 17});
  const std::vector<uint8_t> initial = InitialBytes(image, 40 * kPageBytes);
  for (int cycle = 0; cycle < 20; ++cycle) {
    std::vector<Memory> memories;
    for (int slot = 0; slot < 3; ++slot) {
      memories.push_back(
          MustAcquire({.image = image, .size_bytes = initial.size()}));
      ASSERT_EQ(FirstDifference(memories.back(), initial), std::nullopt)
          << "cycle " << cycle << " slot " << slot;
    }
    for (Memory& memory : memories) {
      for (uint64_t page : {0, 1, 3, 7, 16, 17, 19, 20, 25, 39}) {
        const uint64_t at = page * kPageBytes + 9 + cycle;
        Store(memory, at, ~initial[at]);
        EXPECT_EQ(Load(memory, at), static_cast<uint8_t>(~initial[at]));
      }
      EXPECT_EQ(memory.CountPages().changed, 10u);
    }
    for (Memory& memory : memories)
      EXPECT_EQ(memory.Release(), absl::OkStatus());
  }
}

TEST_P(ServiceTest, WritesWithoutAReadBeforeAreNotSeenByTheNextLease) {
  const ImageRef image = PatternImage("cold", 20, {3, 17});
  const std::vector<uint8_t> initial = InitialBytes(image, 40 * kPageBytes);
  for (uint64_t page = 0; page < 40; ++page) {
    Memory memory = MustAcquire({.image = image, .size_bytes = initial.size()});
    Store(memory, page * kPageBytes + 5, 0xaa);
    memory = MustAcquire({.image = image, .size_bytes = initial.size()});
    Memory second = MustAcquire({.image = image, .size_bytes = initial.size()});
    EXPECT_EQ(FirstDifference(memory, initial), std::nullopt) << page;
    EXPECT_EQ(FirstDifference(second, initial), std::nullopt) << page;
  }
}

TEST_P(ServiceTest, AZeroPageThatIsReadAndThenWrittenIsRestored) {
  for (int cycle = 0; cycle < 3; ++cycle) {
    Memory memory = MustAcquire({.size_bytes = kMax});
    for (uint64_t page = 0; page < 64; ++page) {
      ASSERT_EQ(Load(memory, page * kPageBytes + 100), 0) << page;
    }
    for (uint64_t page = 0; page < 64; page += 3) {
      Store(memory, page * kPageBytes + 100, 0x5a);
    }
    EXPECT_EQ(memory.Release(), absl::OkStatus());
  }
  Memory memory = MustAcquire({.size_bytes = kMax});
  EXPECT_EQ(FirstDifference(memory, std::vector<uint8_t>(kMax)), std::nullopt);
}

TEST_P(ServiceTest, ATouchOutsideTheSizeTrapsAndNamesTheOffset) {
  Memory memory = MustAcquire({.size_bytes = 10 * kPageBytes});
  const uint64_t size = memory.size_bytes();
  for (uint64_t offset : {size, size + 1, kMax - 1}) {
    std::optional<TrapInfo> trap = TrapOf([&] { Load(memory, offset); });
    ASSERT_TRUE(trap.has_value()) << offset;
    EXPECT_EQ(trap->offset_bytes, static_cast<int64_t>(offset));
    EXPECT_EQ(trap->access, Access::kRead);
    EXPECT_EQ(trap->size_bytes, size);
    EXPECT_EQ(trap->instance, memory.instance());
    EXPECT_EQ(trap->memory, 0u);
    EXPECT_TRUE(trap->leased);
    EXPECT_STREQ(trap->pool_name, "test");
    EXPECT_EQ(trap->address,
              reinterpret_cast<uintptr_t>(memory.base()) + offset);

    trap = TrapOf([&] { Store(memory, offset, 1); });
    ASSERT_TRUE(trap.has_value()) << offset;
    EXPECT_EQ(trap->access, Access::kWrite);
  }
  // The memory behind can reach this much of the guard.
  for (uint64_t offset : {kMax, kMax + kGuard - 1}) {
    std::optional<TrapInfo> trap = TrapOf([&] { Load(memory, offset); });
    ASSERT_TRUE(trap.has_value()) << offset;
    EXPECT_EQ(trap->instance, memory.instance() == 2 ? 2 : kNoMemory);
    EXPECT_EQ(trap->address,
              reinterpret_cast<uintptr_t>(memory.base()) + offset);
  }
  Store(memory, size - 1, 1);
  EXPECT_EQ(Load(memory, size - 1), 1);
}

TEST_P(ServiceTest, ATouchInFrontOfThePoolHasANegativeOffset) {
  std::vector<Memory> memories;
  for (int i = 0; i < 3; ++i) {
    memories.push_back(MustAcquire({.size_bytes = kPageBytes}));
  }
  for (Memory& memory : memories) {
    std::optional<TrapInfo> trap =
        TrapOf([&] { Load(memory, static_cast<uint64_t>(-5)); });
    ASSERT_TRUE(trap.has_value());
    if (memory.instance() == 0) {
      EXPECT_EQ(trap->instance, 0u);
      EXPECT_EQ(trap->offset_bytes, -5);
    } else {
      // The memory before can reach as far, so that the touch belongs to
      // neither.
      EXPECT_EQ(trap->instance, kNoMemory);
      EXPECT_EQ(trap->memory, kNoMemory);
      EXPECT_EQ(trap->offset_bytes, 0);
    }
  }
}

TEST_P(ServiceTest, AThousandTrapsInOneThread) {
  Memory memory = MustAcquire({.size_bytes = kPageBytes});
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(TrapOf([&] {
                  Store(memory, kPageBytes * (1 + i % 60), 1);
                }).has_value());
  }
  EXPECT_EQ(service_->Stats().traps, 1000u);
}

TEST_P(ServiceTest, ASizeOfZeroIsLegalAndEveryTouchTraps) {
  Memory memory = MustAcquire({.size_bytes = 0});
  EXPECT_EQ(memory.size_bytes(), 0u);
  std::optional<TrapInfo> trap = TrapOf([&] { Load(memory, 0); });
  ASSERT_TRUE(trap.has_value());
  EXPECT_EQ(trap->offset_bytes, 0);
  EXPECT_EQ(trap->size_bytes, 0u);
}

TEST_P(ServiceTest, GrowthShowsZeroesAndMovesTheBound) {
  Memory memory = MustAcquire({.size_bytes = 2 * kPageBytes});
  // A page that trapped before it was in bounds must be like any other.
  ASSERT_TRUE(TrapOf([&] { Load(memory, 2 * kPageBytes); }).has_value());
  EXPECT_EQ(memory.Grow(5 * kPageBytes), absl::OkStatus());
  EXPECT_EQ(memory.size_bytes(), 5 * kPageBytes);
  EXPECT_EQ(Load(memory, 2 * kPageBytes), 0);
  Store(memory, 5 * kPageBytes - 1, 7);
  EXPECT_EQ(Load(memory, 5 * kPageBytes - 1), 7);
  EXPECT_TRUE(TrapOf([&] { Load(memory, 5 * kPageBytes); }).has_value());
  absl::StatusOr<uint64_t> before = memory.GrowBy(kPageBytes);
  ASSERT_TRUE(before.ok());
  EXPECT_EQ(*before, 5 * kPageBytes);
}

TEST_P(ServiceTest, APageThatWasGrownIntoIsGoneForTheNextLease) {
  for (int cycle = 0; cycle < 4; ++cycle) {
    Memory memory = MustAcquire({.size_bytes = 2 * kPageBytes});
    ASSERT_TRUE(TrapOf([&] { Load(memory, 2 * kPageBytes + 3); }).has_value())
        << cycle;
    ASSERT_EQ(memory.Grow(30 * kPageBytes), absl::OkStatus());
    for (uint64_t page = 2; page < 30; ++page) {
      ASSERT_EQ(Load(memory, page * kPageBytes + 3), 0) << cycle;
      Store(memory, page * kPageBytes + 3, 0x77);
    }
  }
}

TEST_P(ServiceTest, ASmallerLeaseCannotReachPastItsSize) {
  for (int cycle = 0; cycle < 3; ++cycle) {
    {
      Memory large = MustAcquire({.size_bytes = 40 * kPageBytes});
      for (uint64_t page = 0; page < 40; ++page) {
        Store(large, page * kPageBytes, 0x33);
      }
    }
    Memory small = MustAcquire({.size_bytes = 4 * kPageBytes});
    for (uint64_t page = 4; page < 40; ++page) {
      ASSERT_TRUE(TrapOf([&] { Load(small, page * kPageBytes); }).has_value());
    }
    ASSERT_EQ(small.Grow(40 * kPageBytes), absl::OkStatus());
    for (uint64_t page = 0; page < 40; ++page) {
      ASSERT_EQ(Load(small, page * kPageBytes), 0);
    }
  }
}

TEST_P(ServiceTest, ASizeThatEndsInsideAPageTrapsBehindThePage) {
  Memory memory = MustAcquire({.size_bytes = 5000});
  Store(memory, 4999, 1);
  EXPECT_TRUE(TrapOf([&] { Load(memory, 2 * kPageBytes); }).has_value());
  ASSERT_EQ(memory.GrowBy(3).value(), 5000u);
  EXPECT_EQ(memory.size_bytes(), 5003u);
  EXPECT_EQ(Load(memory, 5002), 0);
  // The rest of the last page can be touched once the page is present, and is
  // zero for the next lease.
  Store(memory, 5002, 1);
  Store(memory, 6000, 9);
  memory = Memory();
  std::vector<Memory> next;
  for (int i = 0; i < 3; ++i) {
    next.push_back(MustAcquire({.size_bytes = 5000}));
    EXPECT_EQ(Load(next.back(), 4999), 0);
    EXPECT_EQ(Load(next.back(), 6000), 0);
  }
}

TEST_P(ServiceTest, ChangingTheImageShowsTheNewOneOnly) {
  const ImageRef images[] = {PatternImage("a", 10, {2}),
                             PatternImage("bb", 30, {0, 29}), nullptr,
                             PatternImage("ccc", 1)};
  for (int cycle = 0; cycle < 40; ++cycle) {
    const ImageRef& image = images[(cycle * 7 + cycle / 5) % 4];
    const uint64_t size = (30 + cycle % 11) * kPageBytes;
    Memory memory = MustAcquire({.image = image, .size_bytes = size});
    ASSERT_EQ(FirstDifference(memory, InitialBytes(image, size)), std::nullopt)
        << cycle;
    for (uint64_t page = cycle % 3; page < size / kPageBytes; page += 2) {
      Store(memory, page * kPageBytes + cycle, 0xdd);
    }
  }
}

TEST_P(ServiceTest, ResetRestoresBytesAndSize) {
  const ImageRef image = PatternImage("reset", 12, {5});
  const std::vector<uint8_t> initial = InitialBytes(image, 16 * kPageBytes);
  Memory memory = MustAcquire({.image = image, .size_bytes = initial.size()});
  for (int cycle = 0; cycle < 5; ++cycle) {
    ASSERT_EQ(memory.Grow(20 * kPageBytes), absl::OkStatus());
    for (uint64_t page = 0; page < 20; page += 2) {
      Store(memory, page * kPageBytes + 1, 0xcc);
    }
    ASSERT_EQ(memory.Reset(), absl::OkStatus());
    ASSERT_EQ(FirstDifference(memory, initial), std::nullopt) << cycle;
    ASSERT_TRUE(TrapOf([&] { Load(memory, 16 * kPageBytes); }).has_value());
  }
}

TEST_P(ServiceTest, ASnapshotIsWhatTheMemoryHeld) {
  const ImageRef image = PatternImage("origin", 12, {5});
  Memory memory = MustAcquire({.image = image, .size_bytes = 16 * kPageBytes});
  EXPECT_EQ(Load(memory, 14 * kPageBytes), 0);
  Store(memory, 0, 1);
  Store(memory, 5 * kPageBytes + 8, 2);
  Store(memory, 14 * kPageBytes + 8, 3);
  ASSERT_EQ(memory.Grow(18 * kPageBytes), absl::OkStatus());
  Store(memory, 17 * kPageBytes, 4);
  memset(memory.base() + 2 * kPageBytes, 0, kPageBytes);
  std::vector<uint8_t> held(18 * kPageBytes);
  memcpy(held.data(), memory.base(), held.size());

  absl::StatusOr<ImageRef> snapshot = memory.Snapshot("snapshot");
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ((*snapshot)->size_bytes(), 18 * kPageBytes);
  // 12 pages, one a hole and one zeroed; 5, 14 and 17 written.
  EXPECT_EQ((*snapshot)->stored_pages(), 13u);
  Memory copy =
      MustAcquire({.image = *snapshot, .size_bytes = 18 * kPageBytes});
  EXPECT_EQ(FirstDifference(copy, held), std::nullopt);
  // The memory itself goes on as before.
  EXPECT_EQ(FirstDifference(memory, held), std::nullopt);
}

TEST_P(ServiceTest, ASnapshotRightAfterAFirstWriteHasIt) {
  // A handler thread may still be making its notes when the write is done.
  for (int i = 0; i < 300; ++i) {
    Memory memory = MustAcquire({.size_bytes = kMax});
    Store(memory, (i % 64) * kPageBytes, 1);
    absl::StatusOr<ImageRef> snapshot = memory.Snapshot("right after");
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    ASSERT_TRUE((*snapshot)->IsStored(PageIndex(i % 64))) << i;
    ASSERT_EQ(memory.Release(), absl::OkStatus());
  }
}

TEST_P(ServiceTest, SystemCallsWorkOnARangeThatWasMadeReady) {
  const ImageRef image = PatternImage("syscall", 12);
  for (int cycle = 0; cycle < 3; ++cycle) {
    Memory memory =
        MustAcquire({.image = image, .size_bytes = 30 * kPageBytes});
    int pipe_fds[2];
    ASSERT_EQ(pipe(pipe_fds), 0);
    const std::string text(3 * kPageBytes, 'x');
    ASSERT_EQ(write(pipe_fds[1], text.data(), text.size()),
              static_cast<ssize_t>(text.size()));
    // The range has image pages and zero pages, and begins in the middle of a
    // page.
    const uint64_t offset = 10 * kPageBytes + 100;
    ASSERT_EQ(memory.MakeReady(offset, text.size(), Access::kWrite),
              absl::OkStatus());
    EXPECT_EQ(read(pipe_fds[0], memory.base() + offset, text.size()),
              static_cast<ssize_t>(text.size()));
    EXPECT_EQ(memcmp(memory.base() + offset, text.data(), text.size()), 0);

    ASSERT_EQ(memory.MakeReady(0, 3 * kPageBytes, Access::kRead),
              absl::OkStatus());
    EXPECT_EQ(write(pipe_fds[1], memory.base(), 3 * kPageBytes),
              static_cast<ssize_t>(3 * kPageBytes));
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    ASSERT_EQ(memory.Reset(), absl::OkStatus());
    EXPECT_EQ(FirstDifference(memory, InitialBytes(image, 30 * kPageBytes)),
              std::nullopt);
  }
}

TEST_P(ServiceTest, SystemCallsOnColdPagesFailUnlessKernelFaultsAreServed) {
  Memory memory = MustAcquire({.size_bytes = 4 * kPageBytes});
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  ASSERT_EQ(write(pipe_fds[1], "hello", 5), 5);
  const ssize_t got = read(pipe_fds[0], memory.base(), 5);
  EXPECT_TRUE(service_->serves_kernel_faults() || !GetParam().by_mappings());
  if (service_->serves_kernel_faults()) {
    EXPECT_EQ(got, 5);
  } else {
    EXPECT_EQ(got, -1);
    EXPECT_EQ(errno, EFAULT);
  }
  close(pipe_fds[0]);
  close(pipe_fds[1]);
}

TEST_P(ServiceTest, MakeReadyPastTheEndIsAnErrorThatNamesTheRange) {
  Memory memory = MustAcquire({.size_bytes = 5000});
  const absl::Status status = memory.MakeReady(4999, 2, Access::kRead);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the range of 2 bytes at offset 4999 does not end "
                        "within the memory's size of 5000 bytes"));
  EXPECT_EQ(memory.MakeReady(~uint64_t{0}, 2, Access::kRead).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(memory.MakeReady(5000, 0, Access::kRead), absl::OkStatus());
}

TEST_P(ServiceTest, UseAfterReleaseIsAClearError) {
  Memory memory = MustAcquire({.size_bytes = kPageBytes});
  EXPECT_EQ(memory.Release(), absl::OkStatus());
  EXPECT_FALSE(memory);
  EXPECT_EQ(memory.base(), nullptr);
  EXPECT_EQ(memory.size_bytes(), 0u);
  for (const absl::Status& status :
       {memory.Release(), memory.Reset(), memory.Grow(1),
        memory.GrowBy(1).status(), memory.MakeReady(0, 0, Access::kRead),
        memory.Snapshot("x").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("the memory was released"));
  }
}

TEST_P(ServiceTest, ATouchAfterReleaseOfAMissingPageTraps) {
  Memory memory = MustAcquire({.size_bytes = 4 * kPageBytes});
  // Mappings stay accessible up to the initial size; beyond it, a page that was
  // in bounds a moment ago traps, too.
  uint64_t page = 3;
  if (GetParam().by_mappings()) {
    page = 6;
    ASSERT_EQ(memory.Grow(8 * kPageBytes), absl::OkStatus());
    Store(memory, page * kPageBytes, 1);
  }
  volatile auto* stale =
      reinterpret_cast<volatile uint8_t*>(memory.base()) + page * kPageBytes;
  EXPECT_EQ(memory.Release(), absl::OkStatus());
  std::optional<TrapInfo> trap = TrapOf([&] { *stale = 1; });
  ASSERT_TRUE(trap.has_value());
  EXPECT_FALSE(trap->leased);
  EXPECT_EQ(trap->size_bytes, 0u);
  // What the trap left behind does not disturb the next lease.
  std::vector<Memory> next;
  for (int i = 0; i < 3; ++i) {
    next.push_back(MustAcquire({.size_bytes = 4 * kPageBytes}));
    Store(next.back(), 3 * kPageBytes, 2);
  }
}

TEST_P(ServiceTest, SizesOutOfRangeNameBothSizesAndTheOption) {
  absl::StatusOr<Memory> memory =
      service_->Acquire({.size_bytes = kMax + kPageBytes});
  EXPECT_EQ(memory.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(memory.status().message()),
            "size_bytes 266240 (65 pages) exceeds max_memory_bytes 262144 (64 "
            "pages) of pool \"test\": ask for less, or raise "
            "LayoutOptions::max_memory_bytes");

  memory = service_->Acquire(
      {.image = PatternImage("big", 5), .size_bytes = 4 * kPageBytes});
  EXPECT_EQ(memory.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(memory.status().message()),
            "image \"big\" of 20480 (5 pages) bytes is larger than size_bytes "
            "16384 (4 pages) of the memory: raise MemoryOptions::size_bytes");

  Memory held = MustAcquire({.size_bytes = kPageBytes});
  absl::Status status = held.Grow(kMax + 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(std::string(status.message()),
            "growing from 4096 (1 pages) by 258049 bytes exceeds "
            "max_memory_bytes 262144 (64 pages) of pool \"test\": raise "
            "LayoutOptions::max_memory_bytes");
  EXPECT_EQ(held.GrowBy(~uint64_t{0}).status().code(),
            absl::StatusCode::kResourceExhausted);
  status = held.Grow(1);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("new_size_bytes 1 is below the present size of 4096"));
  EXPECT_EQ(held.size_bytes(), kPageBytes);
}

TEST_P(ServiceTest, AnExhaustedPoolSaysSoAtOnce) {
  std::vector<Memory> memories;
  for (int i = 0; i < 3; ++i) {
    memories.push_back(MustAcquire({.size_bytes = kPageBytes}));
  }
  absl::StatusOr<Memory> more = service_->Acquire({.size_bytes = kPageBytes});
  EXPECT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(more.status().message()), HasSubstr("pool \"test\""));
  EXPECT_EQ(service_->Stats().slots_in_use, 3u);
  memories.pop_back();
  EXPECT_TRUE(service_->Acquire({.size_bytes = kPageBytes}).ok());
}

TEST_P(ServiceTest, AMemoryMayOutliveItsService) {
  const ImageRef image = PatternImage("outlive", 8);
  Memory first = MustAcquire({.image = image, .size_bytes = 10 * kPageBytes});
  Memory second = MustAcquire({.image = image, .size_bytes = 10 * kPageBytes});
  const uintptr_t base = service_->base();
  service_.reset();
  EXPECT_EQ(FirstDifference(first, InitialBytes(image, 10 * kPageBytes)),
            std::nullopt);
  EXPECT_TRUE(TrapOf([&] { Load(first, 10 * kPageBytes); }).has_value());
  EXPECT_EQ(first.Release(), absl::OkStatus());
  EXPECT_NE(FindPool(base), nullptr);
  EXPECT_EQ(Load(second, 9 * kPageBytes), 0);
  EXPECT_EQ(second.Release(), absl::OkStatus());
  EXPECT_EQ(FindPool(base), nullptr);
}

TEST_P(ServiceTest, MemoriesThatOutliveTheirServiceMayGoAllAtOnce) {
  for (int i = 0; i < 30; ++i) {
    MakeService({});
    if (service_ == nullptr) return;
    std::vector<std::thread> threads;
    std::atomic<int> ready{0};
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back(
          [&ready](Memory memory) {
            Store(memory, 0, 1);
            ++ready;
            while (ready < 4) std::this_thread::yield();
            EXPECT_EQ(memory.Release(), absl::OkStatus());
          },
          MustAcquire({.size_bytes = kPageBytes}));
    }
    while (ready < 3) std::this_thread::yield();
    ++ready;
    service_.reset();
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_P(ServiceTest, ThreadsThatTouchTheSamePagesAtOnceAgree) {
  const ImageRef image = PatternImage("threads", 32, {4, 5, 20});
  const std::vector<uint8_t> initial = InitialBytes(image, kMax);
  for (int cycle = 0; cycle < 30; ++cycle) {
    Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
    std::atomic<int> ready{0};
    std::atomic<uint64_t> wrong{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        ASSERT_EQ(EnsureAlternateStack(), absl::OkStatus());
        ready.fetch_add(1);
        while (ready.load() < 4) std::this_thread::yield();
        for (uint64_t page = 0; page < 64; ++page) {
          const uint64_t at = page * kPageBytes;
          if (Load(memory, at) != initial[at]) ++wrong;
          Store(memory, at + 8 + t, 0x40 + t);
          if (Load(memory, at + 8 + t) != 0x40 + t) ++wrong;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong.load(), 0u);
    // No write was lost to a page that was placed a second time.
    for (uint64_t page = 0; page < 64; ++page) {
      for (int t = 0; t < 4; ++t) {
        ASSERT_EQ(Load(memory, page * kPageBytes + 8 + t), 0x40 + t)
            << "cycle " << cycle << " page " << page;
      }
    }
    ASSERT_EQ(memory.Reset(), absl::OkStatus());
    ASSERT_EQ(FirstDifference(memory, initial), std::nullopt) << cycle;
  }
}

TEST_P(ServiceTest, ASteadyGuestFaultsOnlyTheFirstTime) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts signals";
  const ImageRef image = PatternImage("steady", 32);
  const auto cycle = [&] {
    Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
    for (uint64_t page : {1, 5, 9, 33}) Store(memory, page * kPageBytes, 1);
  };
  // Repeats until pages that came along with others are dropped again.
  for (int i = 0; i < 100; ++i) cycle();
  const ServiceStats before = service_->Stats();
  for (int i = 0; i < 100; ++i) cycle();
  const ServiceStats after = service_->Stats();
  EXPECT_EQ(after.faults(), before.faults());
  EXPECT_EQ(after.handovers, before.handovers + 100);
  // Mappings: one scan per release, or one call that drops; no mprotect.
  EXPECT_EQ(after.kernel_calls,
            before.kernel_calls + (GetParam().by_mappings() ? 100 : 0));
  if (GetParam().supply == Supply::kMappingsDrop) {
    EXPECT_EQ(after.pages_dropped, before.pages_dropped + 100u * 64);
    EXPECT_EQ(after.pages_restored, 0u);
  } else {
    EXPECT_GE(after.pages_restored, before.pages_restored + 400);
  }
}

TEST_P(ServiceTest, StatisticsTellFaultsApart) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts signals";
  const ImageRef image = PatternImage("stats", 32, {31});
  {
    Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
    Load(memory, 0);                    // image, read
    Store(memory, kPageBytes, 1);       // clean image page, write
    Store(memory, 16 * kPageBytes, 1);  // image, first touch a write
    Load(memory, 40 * kPageBytes);      // zero page, read
  }
  const ServiceStats stats = service_->Stats();
  const bool shared = GetParam().backing == Backing::kShared;
  EXPECT_EQ(stats.minor_faults, shared ? 1u : 0u);
  EXPECT_EQ(stats.missing_read_faults, shared ? 1u : 2u);
  EXPECT_EQ(stats.missing_write_faults, 1u);
  EXPECT_EQ(stats.write_protect_faults, 1u);
  EXPECT_EQ(stats.faults(), 4u);
  EXPECT_GT(stats.FaultLatencyQuantileNs(0.5), 0u);
  EXPECT_THAT(stats.ToString(), HasSubstr("1 write-protect"));
}

TEST_P(ServiceTest, WhoeverReadsUpwardsGetsMoreOfTheImageAtAFault) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts signals";
  MakeService({.layout = {.max_memory_bytes = 600 * kPageBytes}});
  if (service_ == nullptr) return;
  const ImageRef image = PatternImage("upwards", 512, {100});
  const std::vector<uint8_t> initial = InitialBytes(image, 600 * kPageBytes);
  Memory memory = MustAcquire({.image = image, .size_bytes = initial.size()});
  for (uint64_t page = 0; page < 512; ++page) {
    ASSERT_EQ(Load(memory, page * kPageBytes + 7),
              initial[page * kPageBytes + 7])
        << page;
  }
  const ServiceStats stats = service_->Stats();
  // A handler thread counts after it has woken the waiting thread.
  const bool settled = GetParam().resolve == Resolve::kInThread;
  if (settled && GetParam().backing == Backing::kShared &&
      !GetParam().by_mappings()) {
    // 16, 32, 64, 128 and 256 pages, and the last 16; the zero page is not one
    // of the image's.
    EXPECT_EQ(stats.minor_faults, 6u);
    EXPECT_EQ(stats.missing_read_faults, 1u);
    EXPECT_EQ(stats.pages_mapped, 511u);
  }
  // All of it is still tracked.
  Store(memory, 300 * kPageBytes, ~initial[300 * kPageBytes]);
  if (settled) {
    EXPECT_EQ(memory.CountPages().changed, 1u);
  }
  EXPECT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_EQ(FirstDifference(memory, initial), std::nullopt);
}

TEST_P(ServiceTest, WhoeverWritesUpwardsGetsMorePrivatePagesAtAFault) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts signals";
  MakeService({.layout = {.max_memory_bytes = 120 * kPageBytes}});
  if (service_ == nullptr) return;
  const ImageRef image = PatternImage("upwards", 100, {40});
  const std::vector<uint8_t> initial = InitialBytes(image, 120 * kPageBytes);
  Memory memory = MustAcquire({.image = image, .size_bytes = initial.size()});
  EXPECT_EQ(Load(memory, 20 * kPageBytes), initial[20 * kPageBytes]);
  for (uint64_t page = 0; page < 120; ++page) {
    Store(memory, page * kPageBytes, ~initial[page * kPageBytes]);
  }
  // A handler thread counts after it has woken the waiting thread.
  const bool settled = GetParam().resolve == Resolve::kInThread;
  if (settled) {
    EXPECT_EQ(memory.CountPages().changed, 120u);
  }
  if (settled && GetParam().backing == Backing::kShared &&
      !GetParam().by_mappings()) {
    const ServiceStats stats = service_->Stats();
    // The fault-around range that was read is present, and stays shared until
    // each of its pages is written; nothing else is mapped.
    EXPECT_EQ(stats.minor_faults, 1u);
    EXPECT_EQ(stats.pages_mapped, 16u);
    EXPECT_EQ(stats.write_protect_faults, 16u);
    EXPECT_EQ(stats.pages_copied, 104u);
    EXPECT_LE(stats.missing_write_faults, 24u);
  }
  EXPECT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_EQ(FirstDifference(memory, initial), std::nullopt);
}

TEST_P(ServiceTest, MoreHotPagesThanAllowedDropTheSlot) {
  if (GetParam().open_supply != nullptr)
    GTEST_SKIP() << "has no retained pages";
  MakeService({.retained_pages_limit = 3});
  if (service_ == nullptr) return;
  const ImageRef image = PatternImage("limit", 32);
  for (int cycle = 0; cycle < 5; ++cycle) {
    Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
    ASSERT_EQ(FirstDifference(memory, InitialBytes(image, kMax)), std::nullopt);
    for (uint64_t page = 0; page < 40; ++page) {
      Store(memory, page * kPageBytes, 1);
    }
  }
  EXPECT_GE(service_->Stats().pages_dropped, 5u * 40);
}

TEST_P(ServiceTest, APageThatNoLongerChangesIsGivenBack) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "nothing is learned";
  MakeService({.retained_cycles = 5});
  if (service_ == nullptr) return;
  if (GetParam().tracking == Tracking::kAsync) {
    GTEST_SKIP() << "pages are protected instead";
  }
  const ImageRef image = PatternImage("demoted", 32);
  const auto cycle = [&](std::initializer_list<uint64_t> pages) {
    Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
    EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kMax)), std::nullopt);
    for (uint64_t page : pages) Store(memory, page * kPageBytes, 1);
  };
  const auto demoted = [&] { return service_->Stats().pages_demoted; };
  for (int i = 0; i < 3; ++i) {
    cycle({1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 34, 36});
  }
  for (int i = 0; i < 40; ++i) cycle({1, 3});
  // Without PAGEMAP_SCAN a release drops the zero pages, 34 and 36, so that
  // they never become retained.
  EXPECT_GE(demoted(), HasPagemapScan() ? 10u : 8u);
  const ServiceStats before = service_->Stats();
  for (int i = 0; i < 10; ++i) cycle({1, 3});
  EXPECT_EQ(service_->Stats().pages_restored - before.pages_restored, 20u);
}

TEST_P(ServiceTest, ANewSlotHasThePagesReadyThatItsImagesTenantsWrite) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "nothing is learned";
  const ImageRef image = PatternImage("known", 32);
  const auto touch = [](const Memory& memory) {
    for (uint64_t page : {1, 5, 9, 10, 33}) {
      Store(memory, page * kPageBytes, 1);
    }
  };
  Memory first = MustAcquire({.image = image, .size_bytes = kMax});
  EXPECT_FALSE(image->working_set().known());
  touch(first);
  EXPECT_EQ(first.Release(), absl::OkStatus());
  EXPECT_TRUE(image->working_set().known());
  const WorkingSet::Words written = image->working_set().written();
  ASSERT_EQ(written.size(), 1u);
  constexpr uint64_t kPages =
      1ull << 1 | 1ull << 5 | 1ull << 9 | 1ull << 10 | 1ull << 33;
  // The copied backing makes neighbours private, too.
  EXPECT_EQ(written[0] & kPages, kPages);
  first = MustAcquire({.image = image, .size_bytes = kMax});
  const ServiceStats before = service_->Stats();
  Memory second = MustAcquire({.image = image, .size_bytes = kMax});
  EXPECT_NE(second.instance(), first.instance());
  touch(second);
  EXPECT_EQ(second.Release(), absl::OkStatus());
  EXPECT_EQ(service_->Stats().faults(), before.faults());
  if (GetParam().tracking != Tracking::kAsync) {
    EXPECT_GE(service_->Stats().pages_prefilled, before.pages_prefilled + 5);
  }
}

TEST_P(ServiceTest, AGuestThatGrowsByTheSameEachTimeFindsItsPagesThere) {
  MakeService({.layout = {.max_memory_bytes = 64 * kPageBytes}});
  if (service_ == nullptr) return;
  const auto cycle = [&] {
    Memory memory = MustAcquire({.size_bytes = 8 * kPageBytes});
    EXPECT_EQ(memory.Grow(28 * kPageBytes), absl::OkStatus());
    for (uint64_t page = 8; page < 28; ++page) {
      EXPECT_EQ(Load(memory, page * kPageBytes), 0);
      Store(memory, page * kPageBytes, 1);
    }
    EXPECT_TRUE(TrapOf([&] { Load(memory, 28 * kPageBytes); }).has_value());
  };
  cycle();
  cycle();
  const ServiceStats before = service_->Stats();
  cycle();
  EXPECT_EQ(service_->Stats().faults(), before.faults());
  // Nothing is present behind the bounds of a lease that stays small.
  Memory small = MustAcquire({.size_bytes = 8 * kPageBytes});
  EXPECT_TRUE(TrapOf([&] { Load(small, 8 * kPageBytes); }).has_value());
}

TEST_P(ServiceTest, ChurningGuestsAreTrackedByTheKernelUntilTheySettle) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "nothing is learned";
  MakeService({.layout = {.max_memory_bytes = 1024 * kPageBytes},
               .retained_cycles = 20});
  if (service_ == nullptr) return;
  if (GetParam().tracking.has_value() ||
      GetParam().backing != Backing::kShared) {
    GTEST_SKIP() << "always the same tracking";
  }
  const ImageRef image = PatternImage("churn", 256);
  const std::vector<uint8_t> initial = InitialBytes(image, 1024 * kPageBytes);
  uint64_t next = 0;
  const auto cycle = [&](bool churn) {
    Memory memory = MustAcquire({.image = image, .size_bytes = initial.size()});
    for (uint64_t i = 0; i < 4; ++i) {
      next = churn ? (next + 61) % 256 : i;
      ASSERT_EQ(Load(memory, next * kPageBytes), initial[next * kPageBytes]);
      Store(memory, next * kPageBytes, 0);
    }
  };
  for (int i = 0; i < 200; ++i) cycle(true);
  EXPECT_EQ(service_->Stats().tracking_changes, 1u);
  const uint64_t faults = service_->Stats().faults();
  for (int i = 0; i < 50; ++i) cycle(true);
  EXPECT_EQ(service_->Stats().faults(), faults) << "none by signal";
  for (int i = 0; i < 200; ++i) cycle(false);
  EXPECT_EQ(service_->Stats().tracking_changes, 2u);
  const uint64_t calls = service_->Stats().kernel_calls;
  for (int i = 0; i < 20; ++i) cycle(false);
  EXPECT_EQ(service_->Stats().kernel_calls, calls);
  Memory memory = MustAcquire({.image = image, .size_bytes = initial.size()});
  EXPECT_EQ(FirstDifference(memory, initial), std::nullopt);
}

TEST_P(ServiceTest, ChurnAllOverASmallMemoryEndsWithAllOfItRetained) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "nothing is learned";
  MakeService({.layout = {.max_memory_bytes = 512 * kPageBytes}});
  if (service_ == nullptr) return;
  if (GetParam().tracking.has_value() ||
      GetParam().backing != Backing::kShared) {
    GTEST_SKIP() << "always the same tracking";
  }
  const ImageRef image = PatternImage("churn", 256);
  const std::vector<uint8_t> initial = InitialBytes(image, 512 * kPageBytes);
  std::mt19937 random(1);
  const auto cycle = [&] {
    const Memory memory =
        MustAcquire({.image = image, .size_bytes = initial.size()});
    for (int i = 0; i < 48; ++i) Store(memory, random() % 512 * kPageBytes, 7);
  };
  for (int i = 0; i < 400; ++i) cycle();
  const ServiceStats before = service_->Stats();
  EXPECT_GT(before.pages_found, 0u) << "not before the kernel was tried";
  EXPECT_EQ(before.tracking_changes % 2, 0u);
  for (int i = 0; i < 120; ++i) cycle();
  EXPECT_EQ(service_->Stats().tracking_changes, before.tracking_changes);
  EXPECT_EQ(service_->Stats().pages_found, before.pages_found);
  const Memory memory =
      MustAcquire({.image = image, .size_bytes = initial.size()});
  EXPECT_EQ(FirstDifference(memory, initial), std::nullopt);
}

TEST_P(ServiceTest, ChurnBehindTheImageComesToBeTrackedByTheKernelToo) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "nothing is learned";
  MakeService({.layout = {.max_memory_bytes = 1024 * kPageBytes},
               .retained_cycles = 20});
  if (service_ == nullptr) return;
  if (GetParam().tracking.has_value() ||
      GetParam().backing != Backing::kShared) {
    GTEST_SKIP() << "always the same tracking";
  }
  const ImageRef image = PatternImage("churn", 256);
  const std::vector<uint8_t> initial = InitialBytes(image, 1024 * kPageBytes);
  uint64_t next = 0;
  const auto cycle = [&](uint64_t first_page, uint64_t pages) {
    Memory memory = MustAcquire({.image = image, .size_bytes = initial.size()});
    for (uint64_t i = 0; i < 4; ++i) {
      next += 61;
      const uint64_t at = (first_page + next % pages) * kPageBytes;
      ASSERT_EQ(Load(memory, at), initial[at]);
      Store(memory, at, 0xaa);
    }
  };
  const auto faults_of_50_cycles = [&](uint64_t first_page, uint64_t pages) {
    const uint64_t before = service_->Stats().faults();
    for (int i = 0; i < 50; ++i) cycle(first_page, pages);
    return service_->Stats().faults() - before;
  };
  for (int i = 0; i < 200; ++i) cycle(0, 256);
  EXPECT_EQ(faults_of_50_cycles(0, 256), 0u);
  EXPECT_GT(faults_of_50_cycles(256, 768), 10u) << "behind the image: signals";
  for (int i = 0; i < 50; ++i) cycle(0, 1024);
  EXPECT_EQ(faults_of_50_cycles(0, 1024), 0u);
  EXPECT_EQ(service_->Stats().tracking_changes, 1u);
  const Memory memory =
      MustAcquire({.image = image, .size_bytes = initial.size()});
  EXPECT_EQ(FirstDifference(memory, initial), std::nullopt);
}

TEST_P(ServiceTest, ASlotThatItsThreadKeepsIsThereForOthersWhenTheyNeedIt) {
  std::vector<Memory> held;
  std::thread([&] {
    for (int i = 0; i < 3; ++i) {
      held.push_back(MustAcquire({.size_bytes = kPageBytes}));
    }
    held.clear();
  }).join();
  EXPECT_EQ(service_->Stats().slots_in_use, 0u);
  for (int i = 0; i < 3; ++i) {
    held.push_back(MustAcquire({.size_bytes = kPageBytes}));
  }
  EXPECT_EQ(service_->Stats().slots_in_use, 3u);
}

TEST_P(ServiceTest, AnImageFromAFileIsThereAtFirstTouch) {
  const ImageRef built = PatternImage("from a file", 32, {7});
  const ImageRef image = FromFile(built);
  ASSERT_NE(image, nullptr);
  const std::vector<uint8_t> initial = InitialBytes(built, kMax);
  for (int i = 0; i < 3; ++i) {
    Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
    // Touches the middle, by a write and by a read, then everything.
    Store(memory, 20 * kPageBytes + 9, 1);
    EXPECT_EQ(Load(memory, 20 * kPageBytes), initial[20 * kPageBytes]);
    EXPECT_EQ(Load(memory, 25 * kPageBytes), initial[25 * kPageBytes]);
    EXPECT_EQ(memory.Reset(), absl::OkStatus());
    EXPECT_EQ(FirstDifference(memory, initial), std::nullopt);
  }
}

// The number of threads of this process with this name.
int ThreadsNamed(const std::string& name) {
  int count = 0;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/self/task")) {
    std::string comm;
    std::getline(std::ifstream(task.path() / "comm"), comm);
    count += comm == name;
  }
  return count;
}

TEST_P(ServiceTest, HandlerThreadsHaveTheirPoolsNameAndEndWithIt) {
  const bool handlers = GetParam().resolve == Resolve::kHandlerThread;
  MakeService({}, /*handler_threads=*/3);
  ASSERT_NE(service_, nullptr);
  EXPECT_EQ(ThreadsNamed("ft:test"), handlers ? 3 : 0);
  // Several of them serve one pool.
  const ImageRef image = PatternImage("several", 32);
  Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kMax)), std::nullopt);
  service_.reset();
  EXPECT_EQ(ThreadsNamed("ft:test"), handlers ? 3 : 0) << "still needed";
  EXPECT_EQ(memory.Release(), absl::OkStatus());
  EXPECT_EQ(ThreadsNamed("ft:test"), 0);
}

TEST_P(ServiceTest, HolesThatWereProtectedAndDroppedAreZeroPagesAgain) {
  // Dropping a page of a private file mapping leaves its write-protect marker,
  // which some calls take for a page.
  MakeService({.retained_pages_limit = 3});
  ASSERT_NE(service_, nullptr);
  std::vector<uint64_t> holes(31);
  for (uint64_t i = 0; i < holes.size(); ++i) holes[i] = i + 1;
  const ImageRef image = PatternImage("holes", 32, holes);
  const std::vector<uint8_t> initial = InitialBytes(image, kMax);
  for (int cycle = 0; cycle < 4; ++cycle) {
    Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
    EXPECT_EQ(Load(memory, 20 * kPageBytes), 0);
    if (cycle % 2 == 0) {
      // Writes more pages than may be retained.
      for (uint64_t page = 40; page < 60; ++page) {
        Store(memory, page * kPageBytes, 1);
      }
    } else {
      // The kernel finds the neighbours of the page that was read present, too.
      int ends[2];
      ASSERT_EQ(pipe(ends), 0);
      ASSERT_EQ(
          memory.MakeReady(16 * kPageBytes, 16 * kPageBytes, Access::kRead),
          absl::OkStatus());
      EXPECT_EQ(write(ends[1], memory.base() + 18 * kPageBytes, kPageBytes),
                static_cast<ssize_t>(kPageBytes));
      close(ends[0]);
      close(ends[1]);
      ASSERT_EQ(memory.Reset(), absl::OkStatus());
      ASSERT_EQ(FirstDifference(memory, initial), std::nullopt) << cycle;
    }
    ASSERT_EQ(memory.Release(), absl::OkStatus());
  }
}

TEST_P(ServiceTest, AReaderAndAWriterInOneFaultAroundLeaveItRestorable) {
  const ImageRef image = PatternImage("around", 16);
  const ImageRef other_image = PatternImage("another", 16);
  const std::vector<uint8_t> initial = InitialBytes(image, kMax);
  // One slot is left, and each round begins with a cold one.
  const Memory others[] = {MustAcquire({}), MustAcquire({})};
  Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
  std::atomic<int> round{0};
  std::atomic<int> done{0};
  constexpr int kRounds = 2000;
  std::thread reader([&] {
    ASSERT_EQ(EnsureAlternateStack(), absl::OkStatus());
    for (int i = 1; i <= kRounds; ++i) {
      while (round.load() < i) std::this_thread::yield();
      Load(memory, 3 * kPageBytes);
      Load(memory, 20 * kPageBytes);
      done.store(i);
    }
  });
  for (int i = 1; i <= kRounds; ++i) {
    round.store(i);
    Store(memory, 5 * kPageBytes, 1);
    Store(memory, 21 * kPageBytes, 1);
    while (done.load() < i) std::this_thread::yield();
    ASSERT_EQ(memory.Release(), absl::OkStatus());
    memory = MustAcquire({.image = other_image, .size_bytes = kMax});
    ASSERT_EQ(memory.Release(), absl::OkStatus());
    memory = MustAcquire({.image = image, .size_bytes = kMax});
  }
  reader.join();
  EXPECT_EQ(FirstDifference(memory, initial), std::nullopt);
}

TEST_P(ServiceTest, ThreadsThatGrowToOneSizeGetThatSize) {
  for (int i = 0; i < 200; ++i) {
    Memory memory = MustAcquire({.size_bytes = kPageBytes});
    std::thread other(
        [&] { EXPECT_EQ(memory.Grow(2 * kPageBytes), absl::OkStatus()); });
    EXPECT_EQ(memory.Grow(2 * kPageBytes), absl::OkStatus());
    other.join();
    ASSERT_EQ(memory.size_bytes(), 2 * kPageBytes);
  }
}

TEST_P(ServiceTest, TheRestOfTheLastPageNeverHangs) {
  if (!TracksBySignal()) GTEST_SKIP() << "counts signals";
  const ImageRef image = PatternImage("tail", 2);
  Memory memory = MustAcquire({.image = image, .size_bytes = 2 * kPageBytes});
  absl::StatusOr<ImageRef> part = ImageFromBytes(
      {.name = "part", .size_bytes = 5000}, std::span(memory.base(), 5000));
  ASSERT_TRUE(part.ok()) << part.status();
  Memory tail = MustAcquire({.image = *part, .size_bytes = 5000});
  EXPECT_EQ(Load(tail, 4096), Load(memory, 4096));
  // The page is mapped and protected by now. In-thread a first write there is
  // seen, and is a trap; handler threads and mprotect work by whole pages.
  const bool trapped = TrapOf([&] { Store(tail, 6000, 1); }).has_value();
  EXPECT_EQ(trapped, GetParam().resolve == Resolve::kInThread &&
                         !GetParam().by_mappings());
  Store(tail, 4999, 7);
  EXPECT_EQ(Load(tail, 4999), 7);
}

TEST_P(ServiceTest, APoisonedPageIsATrapAlsoWhereItLooksLikeBadMemory) {
  const bool poisons =
      GetParam().resolve == Resolve::kHandlerThread && TrapsByPoison();
  Memory memory = MustAcquire({.size_bytes = kPageBytes});
  int calls = 0;
  memory = MustAcquire({.size_bytes = kPageBytes,
                        .trap_callback =
                            [](const TrapInfo& trap) {
                              EXPECT_EQ(trap.offset_bytes,
                                        static_cast<int64_t>(kPageBytes + 8));
                              *static_cast<int*>(trap.user) += 1;
                              return TrapAction::kResume;
                            },
                        .trap_user = &calls});
  // As a kernel with CONFIG_MEMORY_FAILURE sends it.
  siginfo_t info = {};
  info.si_signo = SIGBUS;
  info.si_code = BUS_MCEERR_AR;
  info.si_addr = memory.base() + kPageBytes + 8;
  ucontext_t context;
  ASSERT_EQ(getcontext(&context), 0);
  const FaultOutcome outcome = HandleFault(SIGBUS, &info, &context);
  if (poisons) {
    EXPECT_EQ(outcome, FaultOutcome::kResolved);
    EXPECT_EQ(calls, 1);
  } else {
    // Nothing poisons pages here: it is a hardware memory error, for the host
    // to handle.
    EXPECT_EQ(outcome, FaultOutcome::kNotMine);
    EXPECT_EQ(calls, 0);
  }
}

TEST_P(ServiceTest, DescribeSaysWhatWasPicked) {
  if (GetParam().open_supply != nullptr) GTEST_SKIP() << "nobody picks it";
  const std::string text = service_->Describe();
  EXPECT_THAT(text, HasSubstr("pool \"test\""));
  EXPECT_EQ(service_->supply(), GetParam().supply);
  EXPECT_THAT(
      text, HasSubstr(std::string("supply: ") + SupplyName(GetParam().supply) +
                      " (asked for by ServiceOptions::supply)"));
  if (GetParam().by_mappings()) {
    EXPECT_THAT(text, HasSubstr(GetParam().supply == Supply::kMappingsScan
                                    ? "found by one PAGEMAP_SCAN at release"
                                    : "dropped at release"));
    return;
  }
  EXPECT_THAT(text, HasSubstr(GetParam().backing == Backing::kShared
                                  ? "backing: shared (asked for)"
                                  : "backing: copied (asked for)"));
  EXPECT_THAT(text, HasSubstr(GetParam().resolve == Resolve::kInThread
                                  ? "resolved in-thread"
                                  : "resolved handler-thread by 1 threads"));
}

class InstanceTest : public testing::TestWithParam<Way> {};

INSTANTIATE_TEST_SUITE_P(AllWays, InstanceTest, AllWays(), WayName);
INSTANTIATE_TEST_SUITE_P(TestsOwn, InstanceTest, testing::Values(kPlainWay),
                         WayName);

TEST_P(InstanceTest, MemoriesOfOneInstanceComeAndGoTogether) {
  ServiceOptions options;
  options.name = "multi";
  options.layout = {.instances = 2,
                    .memories_per_instance = 3,
                    .max_memory_bytes = kMax,
                    .guard_after_bytes = kGuard};
  options.supply = Asking(GetParam());
  options.trap_callback = JumpOutOfTrap;
  if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
    GTEST_SKIP() << "this machine has no " << missing;
  }
  absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService(GetParam(), std::move(options));
  ASSERT_TRUE(service.ok()) << service.status();
  const ImageRef image = PatternImage("one", 4);
  const MemoryOptions wanted[] = {{.image = image, .size_bytes = kMax},
                                  {.size_bytes = kPageBytes},
                                  {.size_bytes = 0}};
  EXPECT_EQ((*service)->Acquire(wanted[0]).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string((*service)
                              ->AcquireInstance(std::span(wanted).first(2))
                              .status()
                              .message()),
              HasSubstr("2 memories asked for in pool \"multi\", whose "
                        "memories_per_instance is 3"));
  for (int cycle = 0; cycle < 5; ++cycle) {
    absl::StatusOr<std::vector<Memory>> first =
        (*service)->AcquireInstance(wanted);
    absl::StatusOr<std::vector<Memory>> second =
        (*service)->AcquireInstance(wanted);
    ASSERT_TRUE(first.ok() && second.ok());
    EXPECT_NE((*first)[0].instance(), (*second)[0].instance());
    for (uint32_t i = 0; i < 3; ++i) {
      EXPECT_EQ((*first)[i].memory_index(), i);
      EXPECT_EQ((*first)[i].instance(), (*first)[0].instance());
    }
    EXPECT_EQ(FirstDifference((*first)[0], InitialBytes(image, kMax)),
              std::nullopt);
    Store((*first)[0], 3 * kPageBytes, 9);
    Store((*first)[1], 100, 9);
    std::optional<TrapInfo> trap = TrapOf([&] { Load((*first)[2], 5); });
    ASSERT_TRUE(trap.has_value());
    EXPECT_EQ(trap->memory, 2u);
    EXPECT_EQ(trap->instance, (*first)[0].instance());
    // Two of three memories are released: the instance is still in use.
    first->erase(first->begin());
    first->erase(first->begin());
    EXPECT_EQ((*service)->AcquireInstance(wanted).status().code(),
              absl::StatusCode::kResourceExhausted);
    first->clear();
    EXPECT_TRUE((*service)->AcquireInstance(wanted).ok());
  }
}

}  // namespace
}  // namespace firsttouch
