// How handler threads make a page trap: by UFFDIO_POISON, or by making it
// inaccessible. Neither may let a guest that goes on after its traps use up
// what is shared: the process's mappings, or the kernel's log.

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/proc.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

constexpr uint64_t kSize = 16 * kPageBytes;
constexpr uint64_t kMax = 4096 * kPageBytes;
constexpr uint64_t kGuard = 65536;
// The most pages of a slot that are inaccessible at once.
constexpr uint64_t kMostPages = 8;

struct Param {
  Backing backing;
  // Whether to make traps as a pool does on this kernel, instead of as before
  // POISON.
  bool as_here = false;
};

std::string ParamName(const testing::TestParamInfo<Param>& info) {
  return std::string(info.param.backing == Backing::kShared ? "Shared"
                                                            : "Copied") +
         (info.param.as_here ? "AsHere" : "BeforePoison");
}

class TrappingPagesTest : public testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    const Way way{GetParam().backing, Resolve::kHandlerThread};
    if (const std::string missing = MissingFor(way); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    if (!GetParam().as_here) {
      kernel_.SetApiReply(
          kUffdFeaturePagefaultFlagWp | kUffdFeatureMissingShmem |
              kUffdFeatureMinorShmem | kUffdFeatureWpHugetlbfsShmem |
              kUffdFeatureExactAddress | kUffdFeatureWpUnpopulated,
          ~uint64_t{0});
    }
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService({.name = "trapping",
                       .layout = {.instances = 2,
                                  .max_memory_bytes = kMax,
                                  .guard_after_bytes = kGuard},
                       .supply = Asking(way, 2),
                       .trap_callback = JumpOutOfTrap},
                      kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  static bool poisons() { return GetParam().as_here && TrapsByPoison(); }

  Memory MustAcquire(const MemoryOptions& options) {
    absl::StatusOr<Memory> memory = service_->Acquire(options);
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  // Mappings in the whole range that offsets of the memory can reach.
  static size_t MappingsAround(const void* base) {
    const auto start = reinterpret_cast<uintptr_t>(base);
    return MappingsOf(start, start + kMax + kGuard).size();
  }

  // Touches the memory out of its bounds.
  static void ExpectTrap(const Memory& memory, uint64_t offset) {
    const std::optional<TrapInfo> trap = TrapOf([&] { Load(memory, offset); });
    ASSERT_TRUE(trap.has_value()) << offset;
    ASSERT_EQ(trap->offset_bytes, static_cast<int64_t>(offset));
    ASSERT_EQ(trap->instance, memory.instance());
  }

  FakeKernel kernel_;
  std::unique_ptr<Service> service_;
};

INSTANTIATE_TEST_SUITE_P(Ways, TrappingPagesTest,
                         testing::Values(Param{Backing::kShared},
                                         Param{Backing::kCopied},
                                         Param{Backing::kShared, true},
                                         Param{Backing::kCopied, true}),
                         ParamName);

TEST_P(TrappingPagesTest, AThousandTrapsInALeaseKeepMappingsFew) {
  const ImageRef image = PatternImage("small", 8);
  Memory memory = MustAcquire({.image = image, .size_bytes = kSize});
  const void* const base = memory.base();
  Store(memory, 0, 1);
  const size_t before = MappingsAround(base);
  kernel_.ResetCalls();
  constexpr uint64_t kTraps = 1000;
  // Takes every other page, so that no two are one mapping; the last pages lie
  // in the guard.
  const auto page_of = [](uint64_t i) {
    return i < kTraps - 4 ? 16 + 2 * i : 4096 + 2 * (i - (kTraps - 4));
  };
  for (uint64_t i = 0; i < kTraps; ++i) {
    ExpectTrap(memory, page_of(i) * kPageBytes + 5);
    if (i % 50 != 0 && i < kTraps - 10) continue;
    ASSERT_LE(MappingsAround(base), before + 2 * kMostPages) << i;
  }
  EXPECT_LE(kernel_.Calls(Op::kMprotect), poisons() ? 0 : 2 * kTraps);
  // A touch of a page that traps already makes no call.
  const uint64_t calls = kernel_.TotalCalls();
  for (int i = 0; i < 10; ++i) {
    ExpectTrap(memory, page_of(kTraps - 1) * kPageBytes + 9);
  }
  EXPECT_EQ(kernel_.TotalCalls(), calls);
  // Pages that trapped before trap again.
  for (uint64_t i = 0; i < 20; ++i) ExpectTrap(memory, page_of(i) * kPageBytes);

  ASSERT_EQ(memory.Release(), absl::OkStatus());
  memory = MustAcquire({.image = image, .size_bytes = kSize});
  ASSERT_EQ(memory.base(), base);
  EXPECT_EQ(MappingsAround(base), before);
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kSize)), std::nullopt);
  ExpectTrap(memory, kSize);
  ExpectTrap(memory, kMax + 8 * kPageBytes);
  ASSERT_EQ(memory.Release(), absl::OkStatus());
  // The largest lease has all of its pages, too.
  memory = MustAcquire({.image = image, .size_bytes = kMax});
  ASSERT_EQ(memory.base(), base);
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, kMax)), std::nullopt);
  ExpectTrap(memory, kMax);
}

TEST_P(TrappingPagesTest, WithoutAMappingLeftAPageTakesThoseOfOthers) {
  if (poisons()) GTEST_SKIP() << "makes no mapping";
  Memory memory = MustAcquire({.size_bytes = kSize});
  const size_t before = MappingsAround(memory.base());
  for (uint64_t page = 16; page < 24; page += 2) {
    ExpectTrap(memory, page * kPageBytes);
  }
  // As at vm.max_map_count.
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  ExpectTrap(memory, 40 * kPageBytes);
  EXPECT_EQ(MappingsAround(memory.base()), before + 2);
  for (uint64_t page = 16; page < 24; page += 2) {
    ExpectTrap(memory, page * kPageBytes);
  }
  ASSERT_EQ(memory.Release(), absl::OkStatus());
}

TEST_P(TrappingPagesTest, WhatWasGrownIntoIsTheKernelsToTouch) {
  if (!service_->serves_kernel_faults()) {
    GTEST_SKIP() << "userfaultfd may not serve the kernel's own accesses";
  }
  Memory memory = MustAcquire({.size_bytes = kSize});
  const size_t before = MappingsAround(memory.base());
  for (uint64_t page = 16; page < 16 + kMostPages; ++page) {
    ExpectTrap(memory, page * kPageBytes);
  }
  ASSERT_EQ(memory.Grow(20 * kPageBytes), absl::OkStatus());
  absl::StatusOr<uint64_t> grown = memory.GrowBy(kPageBytes);
  ASSERT_TRUE(grown.ok()) << grown.status();
  const int zeroes = open("/dev/zero", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(zeroes, 0);
  for (uint64_t page = 16; page < 21; ++page) {
    EXPECT_EQ(read(zeroes, memory.base() + page * kPageBytes, 10), 10)
        << "errno " << errno << ", page " << page;
  }
  close(zeroes);
  // Pages that are still out of bounds trap.
  for (uint64_t page = 21; page < 16 + kMostPages; ++page) {
    ExpectTrap(memory, page * kPageBytes + 1);
  }
  ASSERT_EQ(memory.Grow(32 * kPageBytes), absl::OkStatus());
  EXPECT_EQ(FirstDifference(memory, InitialBytes(nullptr, 32 * kPageBytes)),
            std::nullopt);
  EXPECT_LE(MappingsAround(memory.base()), before);
}

TEST_P(TrappingPagesTest, ASnapshotLeavesTheBoundsAsTheyAre) {
  Memory memory = MustAcquire({.size_bytes = kSize});
  const size_t before = MappingsAround(memory.base());
  for (uint64_t page = 16; page < 40; page += 2) {
    ExpectTrap(memory, page * kPageBytes);
  }
  Store(memory, 5, 7);
  absl::StatusOr<ImageRef> snapshot = memory.Snapshot("trapped");
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ((*snapshot)->stored_pages(), 1u);
  for (uint64_t page = 16; page < 40; page += 2) {
    ExpectTrap(memory, page * kPageBytes);
  }
  // Some kernels do not merge pages that were read-only for the snapshot with
  // the guard.
  ASSERT_LE(MappingsAround(memory.base()), before + 2 * kMostPages + 1);
  ASSERT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_LE(MappingsAround(memory.base()), before + 1);
}

TEST_P(TrappingPagesTest, PagesInBoundsThatCannotBeHadKeepMappingsFew) {
  if (GetParam().backing != Backing::kCopied) {
    GTEST_SKIP() << "fails copies of image pages";
  }
  const ImageRef image = PatternImage("cut short", 64);
  Memory memory = MustAcquire({.size_bytes = kSize});
  ASSERT_EQ(memory.Release(), absl::OkStatus());
  memory = MustAcquire({.image = image, .size_bytes = 64 * kPageBytes});
  const size_t before = MappingsAround(memory.base());
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EFAULT});
  const auto expect_trap = [&](uint64_t page) {
    const std::optional<TrapInfo> trap =
        TrapOf([&] { Load(memory, page * kPageBytes); });
    ASSERT_TRUE(trap.has_value()) << page;
    ASSERT_EQ(trap->error, EFAULT);
    ASSERT_EQ(trap->offset_bytes, static_cast<int64_t>(page * kPageBytes));
  };
  for (int i = 0; i < 40; ++i) expect_trap(3);
  for (uint64_t page = 0; page < 64; page += 2) expect_trap(page);
  if (service_->serves_kernel_faults()) {
    // The kernel's access fails, and no signal of ours follows.
    const int zeroes = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    ASSERT_GE(zeroes, 0);
    for (uint64_t page = 1; page < 64; page += 2) {
      EXPECT_EQ(read(zeroes, memory.base() + page * kPageBytes, 10), -1);
      ASSERT_LE(MappingsAround(memory.base()), before + 2 * kMostPages);
    }
    close(zeroes);
  }
  kernel_.Clear(Op::kCopy);
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, 64 * kPageBytes)),
            std::nullopt);
  ASSERT_EQ(memory.Release(), absl::OkStatus());
  memory = MustAcquire({.image = image, .size_bytes = 64 * kPageBytes});
  EXPECT_EQ(MappingsAround(memory.base()), before);
  EXPECT_EQ(FirstDifference(memory, InitialBytes(image, 64 * kPageBytes)),
            std::nullopt);
}

TEST_P(TrappingPagesTest, ThreadsThatTrapAtOnceAllGetTheirTraps) {
  Memory memory = MustAcquire({.size_bytes = kSize});
  const size_t before = MappingsAround(memory.base());
  std::vector<std::thread> guests;
  for (uint64_t guest = 0; guest < 12; ++guest) {
    guests.emplace_back([&memory, guest] {
      ASSERT_TRUE(EnsureAlternateStack().ok());
      for (uint64_t i = 0; i < 50; ++i) {
        ExpectTrap(memory, (16 + 2 * (i * 12 + guest)) * kPageBytes);
      }
    });
  }
  for (std::thread& guest : guests) guest.join();
  EXPECT_LE(MappingsAround(memory.base()), before + 2 * kMostPages);
  ASSERT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_EQ(MappingsAround(memory.base()), before);
}

TEST_P(TrappingPagesTest, NoPageIsPoisonedWhereTheKernelMayLogItsTouch) {
  Memory memory = MustAcquire({.size_bytes = kSize});
  for (uint64_t page = 16; page < 36; ++page) {
    ExpectTrap(memory, page * kPageBytes);
  }
  const bool may_poison = poisons() && !MayLogPoisonedPages();
  EXPECT_EQ(kernel_.Calls(Op::kPoison), may_poison ? 20u : 0u);
}

}  // namespace
}  // namespace firsttouch
