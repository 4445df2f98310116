// The capacity of a pool does not shrink: a free slot is found, and a slot that
// nothing happened to is not lost.
//
// Longer runs:  ./bazelw test //service:capacity_test
//                   --test_env=FIRSTTOUCH_CAPACITY_SECONDS=60

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::AnyOf;
using testing::HasSubstr;
using Op = FakeKernel::Op;

constexpr uint64_t kSize = 16 * kPageBytes;

ServiceOptions Options(Way way, uint32_t slots) {
  return {.name = "capacity",
          .layout = {.instances = slots,
                     .max_memory_bytes = 32 * kPageBytes,
                     .guard_after_bytes = 65536},
          .supply = Asking(way),
          .trap_callback = JumpOutOfTrap};
}

class CapacityTest : public testing::TestWithParam<Way> {
 protected:
  // Returns null where this machine lacks what is needed.
  std::unique_ptr<Service> MakeService(uint32_t slots) {
    return MakeService(slots, kernel_);
  }
  std::unique_ptr<Service> MakeService(uint32_t slots, FakeKernel& kernel) {
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(Options(GetParam(), slots), kernel);
    if (!service.ok()) reason_ = service.status().ToString();
    return service.ok() ? *std::move(service) : nullptr;
  }

  FakeKernel kernel_;
  std::string reason_;
};

INSTANTIATE_TEST_SUITE_P(AllWays, CapacityTest, AllWays(), WayName);

// Each thread holds at most one memory, and there are as many slots as threads:
// at any time there is a slot for each.
TEST_P(CapacityTest, NoAcquireIsRefusedWhileThereIsAFreeSlot) {
  constexpr uint32_t kThreads = 4;
  constexpr int kCycles = 4000;
  const char* const seconds = std::getenv("FIRSTTOUCH_CAPACITY_SECONDS");
  const absl::Time end =
      absl::Now() + absl::Seconds(seconds == nullptr ? 0 : std::atoi(seconds));
  const ImageRef images[] = {PatternImage("one", 2), PatternImage("two", 3),
                             PatternImage("three", 1)};
  for (uint32_t spare : {0u, 1u}) {
    std::unique_ptr<Service> service = MakeService(kThreads + spare);
    if (service == nullptr) GTEST_SKIP() << "not to be had here: " << reason_;
    std::atomic<uint64_t> acquired{0};
    std::atomic<uint64_t> refused{0};
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        std::minstd_rand random(t + 1);
        for (int i = 0; i < kCycles || absl::Now() < end; ++i) {
          // Some threads stay with one image for a while, which is the steady
          // cycle.
          const size_t which = random() % 4 < 2 ? t % 3 : random() % 3;
          absl::StatusOr<Memory> memory =
              service->Acquire({.image = images[which],
                                .size_bytes = (3 + random() % 2) * kPageBytes});
          if (memory.ok()) {
            acquired.fetch_add(1);
            if (random() % 8 == 0) Store(*memory, 5, 1);
          } else {
            refused.fetch_add(1);
          }
        }
      });
    }
    if (spare != 0) {
      // Trimming takes slots for a moment, too.
      for (int i = 0; i < 50; ++i) EXPECT_TRUE(service->Trim().ok());
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_GE(acquired.load(), uint64_t{kThreads} * kCycles);
    EXPECT_EQ(refused.load(), 0u) << "of " << acquired.load();
  }
}

TEST_P(CapacityTest, WhereAllAreQuarantinedAnAcquireDoesNotWait) {
  std::unique_ptr<Service> service = MakeService(3);
  if (service == nullptr) GTEST_SKIP() << "not to be had here: " << reason_;
  std::vector<Memory> memories;
  for (int i = 0; i < 3; ++i) {
    memories.push_back(*service->Acquire({.size_bytes = kSize}));
    ASSERT_EQ(memories[i].Grow(kSize + kPageBytes), absl::OkStatus());
    Store(memories[i], kSize, 0x66);
  }
  // A thread that waits already is told, too.
  std::atomic<bool> waits{false};
  absl::Status waited;
  std::thread waiter([&] {
    waits.store(true);
    waited =
        service
            ->Acquire({.size_bytes = kSize, .deadline = absl::InfiniteFuture()})
            .status();
  });
  while (!waits.load()) std::this_thread::yield();
  kernel_.Fail(Op::kMadvise, FakeKernel::kEvery, CallResult{0, EIO});
  for (Memory& memory : memories) EXPECT_FALSE(memory.Release().ok());
  kernel_.Clear(Op::kMadvise);
  waiter.join();
  EXPECT_EQ(waited.code(), absl::StatusCode::kResourceExhausted);
  for (absl::Time deadline :
       {absl::InfinitePast(), absl::Now() + absl::Hours(1),
        absl::InfiniteFuture()}) {
    const absl::Status status =
        service->Acquire({.size_bytes = kSize, .deadline = deadline}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("pool \"capacity\": all 3 slots are taken: 0 in use, "
                          "3 quarantined because their reset failed, so that "
                          "none will become free; make a new pool"));
  }
}

// Expects that every slot of the service can be acquired at once, starts as its
// image says, traps where it ends, and was not lost.
void ExpectWhole(Service& service, uint32_t slots, const ImageRef& image,
                 uint64_t size_bytes) {
  const std::vector<uint8_t> initial = InitialBytes(image, size_bytes);
  std::vector<Memory> memories;
  for (uint32_t i = 0; i < slots; ++i) {
    absl::StatusOr<Memory> memory =
        service.Acquire({.image = image, .size_bytes = size_bytes});
    ASSERT_TRUE(memory.ok()) << memory.status();
    ASSERT_EQ(FirstDifference(*memory, initial), std::nullopt);
    ASSERT_TRUE(TrapOf([&] { Load(*memory, size_bytes); }).has_value());
    ASSERT_EQ(memory->Grow(size_bytes + 2 * kPageBytes), absl::OkStatus());
    for (uint64_t page = 0; page <= size_bytes / kPageBytes; ++page) {
      Store(*memory, page * kPageBytes + 8, 0x77);
    }
    ASSERT_EQ(Load(*memory, size_bytes + kPageBytes), 0);
    memories.push_back(*std::move(memory));
  }
  for (Memory& memory : memories) {
    ASSERT_EQ(memory.Release(), absl::OkStatus());
  }
  ASSERT_EQ(service.Stats().slots_quarantined, 0u);
}

// One call that a host makes, and what has happened in the pool before.
struct Scenario {
  const char* name;
  // Whether every slot has had a guest that wrote to much of it.
  bool used;
  // Whether a memory is held.
  bool held;
};

constexpr Scenario kScenarios[] = {
    {"the first bind", false, false},    {"another image", true, false},
    {"no image any more", true, false},  {"a smaller memory", true, false},
    {"an image in a file", true, false}, {"growth", true, true},
    {"a snapshot", true, true},          {"a delta", true, true},
};
constexpr size_t kFirstBind = 0;
constexpr size_t kOtherImage = 1;
constexpr size_t kNoImage = 2;
constexpr size_t kSmaller = 3;
constexpr size_t kFromFile = 4;
constexpr size_t kGrowth = 5;
constexpr size_t kSnapshot = 6;

TEST_P(CapacityTest, AfterAPassingShortageAllIsAsItWas) {
  constexpr uint32_t kSlots = 2;
  constexpr Op kOps[] = {Op::kRegister,     Op::kUnregister, Op::kCopy,
                         Op::kZeroPage,     Op::kContinue,   Op::kMmap,
                         Op::kWriteProtect, Op::kMunmap,     Op::kMprotect,
                         Op::kPagemapScan,  Op::kMadvise};
  const ImageRef large = PatternImage("large", 12, {4, 5});
  const ImageRef small = PatternImage("small", 3);
  const ImageRef in_file = PatternImage("in a file", 10, {2});

  // Runs a scenario in which the `nth` call of `op` fails. Returns how many
  // such calls there were, or nullopt where there is no such pool.
  const auto run = [&](size_t scenario, Op op, uint64_t nth,
                       int error) -> std::optional<uint64_t> {
    FakeKernel kernel;
    const std::unique_ptr<Service> service = MakeService(kSlots, kernel);
    if (service == nullptr) return std::nullopt;
    const ImageRef file = scenario == kFromFile ? FromFile(in_file) : nullptr;
    for (int cycle = 0; kScenarios[scenario].used && cycle < 3; ++cycle) {
      std::vector<Memory> memories;
      for (uint32_t i = 0; i < kSlots; ++i) {
        memories.push_back(
            *service->Acquire({.image = large, .size_bytes = kSize}));
        EXPECT_EQ(memories[i].Grow(kSize + 3 * kPageBytes), absl::OkStatus());
        for (uint64_t page : {0, 4, 7, 13, 16, 18}) {
          Store(memories[i], page * kPageBytes + page, 0x33);
        }
      }
    }
    Memory memory;
    if (kScenarios[scenario].held) {
      memory = *service->Acquire({.image = large, .size_bytes = kSize});
      Store(memory, kPageBytes, 0x44);
      Store(memory, 14 * kPageBytes, 0x44);
    }

    const auto act = [&]() -> absl::Status {
      const auto acquire = [&](const ImageRef& image,
                               uint64_t pages) -> absl::Status {
        absl::StatusOr<Memory> acquired = service->Acquire(
            {.image = image, .size_bytes = pages * kPageBytes});
        if (!acquired.ok()) return acquired.status();
        memory = *std::move(acquired);
        return absl::OkStatus();
      };
      switch (scenario) {
        case kFirstBind:
          return acquire(large, 16);
        case kOtherImage:
          return acquire(small, 5);
        case kNoImage:
          return acquire(nullptr, 2);
        case kSmaller:
          return acquire(large, 12);
        case kFromFile:
          return acquire(file, 16);
        case kGrowth:
          return memory.Grow(kSize + 5 * kPageBytes);
        case kSnapshot:
          return memory.Snapshot("short").status();
        default:
          return memory.SnapshotDelta("short").status();
      }
    };
    const uint64_t calls_before = kernel.Calls(op);
    if (nth != 0) {
      if (op == Op::kCopy || op == Op::kZeroPage || op == Op::kContinue ||
          op == Op::kWriteProtect) {
        kernel.Fail(op, nth, RangeResult{0, error});
      } else {
        kernel.Fail(op, nth, CallResult{0, error});
      }
    }
    const absl::Status status = act();
    kernel.Clear(op);
    const uint64_t calls = kernel.Calls(op) - calls_before;
    EXPECT_TRUE(nth != 0 || status.ok()) << status;
    if (!status.ok()) {
      EXPECT_THAT(
          std::string(status.message()),
          AnyOf(HasSubstr("pool \"capacity\""), HasSubstr("for a snapshot")));
    }
    EXPECT_EQ(service->Stats().slots_quarantined, 0u) << status;
    // Tries once more where that makes sense.
    if (!kScenarios[scenario].held && !status.ok()) {
      EXPECT_EQ(act(), absl::OkStatus());
    }
    if (kScenarios[scenario].held) {
      EXPECT_EQ(Load(memory, kPageBytes), 0x44);
      EXPECT_EQ(Load(memory, 14 * kPageBytes), 0x44);
    }
    if (memory) {
      EXPECT_EQ(memory.Release(), absl::OkStatus());
    }
    ExpectWhole(*service, kSlots, large, kSize);
    ExpectWhole(*service, kSlots, small, 4 * kPageBytes);
    return calls;
  };

  uint64_t shortages = 0;
  for (size_t scenario = 0; scenario < std::size(kScenarios); ++scenario) {
    for (Op op : kOps) {
      const std::optional<uint64_t> calls = run(scenario, op, 0, 0);
      if (!calls.has_value()) GTEST_SKIP() << "not to be had here: " << reason_;
      for (uint64_t nth = 1; nth <= *calls; ++nth) {
        for (int error : {ENOMEM, EMFILE, ENFILE, EAGAIN}) {
          SCOPED_TRACE(std::string(kScenarios[scenario].name) + ", call " +
                       std::to_string(nth) + " of operation " +
                       std::to_string(static_cast<int>(op)) + " with errno " +
                       std::to_string(error));
          run(scenario, op, nth, error);
          ++shortages;
          if (HasFailure()) return;
        }
      }
    }
  }
  EXPECT_GE(shortages, 4u * 10u);
}

// Limits of the machine apply. The image needs a descriptor when it is first
// bound.
TEST_P(CapacityTest, WithoutDescriptorsForAWhileNoSlotIsLost) {
  constexpr uint32_t kSlots = 8;
  const std::unique_ptr<Service> service = MakeService(kSlots);
  if (service == nullptr) GTEST_SKIP() << "not to be had here: " << reason_;
  const ImageRef image = FromFile(PatternImage("in a file", 6));
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int next = dup(0);
  ASSERT_GE(next, 0);
  close(next);
  rlimit none = before;
  none.rlim_cur = next;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  std::vector<absl::Status> refusals;
  for (int i = 0; i < 20; ++i) {
    absl::StatusOr<Memory> memory =
        service->Acquire({.image = image, .size_bytes = kSize});
    if (!memory.ok()) refusals.push_back(memory.status());
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  if (service->supply() == Supply::kUserfaultfd &&
      service->backing() == Backing::kShared) {
    EXPECT_EQ(refusals.size(), 20u);
  }
  for (const absl::Status& refusal : refusals) {
    EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted) << refusal;
    EXPECT_THAT(std::string(refusal.message()), HasSubstr("in a file"));
  }
  EXPECT_EQ(service->Stats().slots_quarantined, 0u);
  ExpectWhole(*service, kSlots, image, kSize);
}

// Mappings and descriptors of this process that belong to images whose name
// begins with "turnover".
int LeftOfImages() {
  int left = 0;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    left += line.find("firsttouch:turnover") != std::string::npos;
  }
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    left += std::filesystem::read_symlink(entry.path(), gone)
                .string()
                .find("firsttouch:turnover") != std::string::npos;
  }
  return left;
}

TEST_P(CapacityTest, AnImageEndsWithItsLastUser) {
  constexpr uint32_t kSlots = 4;
  const std::unique_ptr<Service> service = MakeService(kSlots);
  if (service == nullptr) GTEST_SKIP() << "not to be had here: " << reason_;
  for (int version = 0; version < 24; ++version) {
    ImageRef image = PatternImage("turnover " + std::to_string(version), 9);
    const std::vector<uint8_t> initial = InitialBytes(image, kSize);
    std::vector<Memory> memories;
    // In slots that this thread keeps, that others keep, and that no thread
    // keeps.
    for (int i = 0; i < 1 + version % 3; ++i) {
      memories.push_back(
          *service->Acquire({.image = image, .size_bytes = kSize}));
      ASSERT_EQ(FirstDifference(memories[i], initial), std::nullopt);
      Store(memories[i], 3 * kPageBytes, 0x55);
      Store(memories[i], 12 * kPageBytes, 0x55);
    }
    EXPECT_GT(LeftOfImages(), 0);
    if (version % 2 == 0) {
      std::thread([&] { memories.clear(); }).join();
      image.reset();
    } else {
      // The memory is held longer than any other reference to the image.
      image.reset();
      ASSERT_EQ(Load(memories[0], kPageBytes), initial[kPageBytes]);
      ASSERT_EQ(Load(memories[0], 7 * kPageBytes), initial[7 * kPageBytes]);
      ASSERT_EQ(memories[0].Reset(), absl::OkStatus());
      ASSERT_EQ(FirstDifference(memories[0], initial), std::nullopt);
      memories.clear();
    }
    EXPECT_EQ(LeftOfImages(), 0) << version;
  }
  EXPECT_EQ(service->Stats().slots_quarantined, 0u);
  ExpectWhole(*service, kSlots, PatternImage("next", 6), kSize);
}

TEST_P(CapacityTest, AParentEndsWithTheLastUserOfItsDeltas) {
  const std::unique_ptr<Service> service = MakeService(2);
  if (service == nullptr) GTEST_SKIP() << "not to be had here: " << reason_;
  ImageRef delta;
  {
    Memory memory = *service->Acquire(
        {.image = PatternImage("turnover parent", 6), .size_bytes = kSize});
    Store(memory, 2 * kPageBytes, 0x2d);
    delta = *memory.SnapshotDelta("turnover delta");
  }
  Memory memory = *service->Acquire({.image = delta, .size_bytes = kSize});
  EXPECT_EQ(Load(memory, 2 * kPageBytes), 0x2d);
  ImageRef parent = delta->parent();
  delta.reset();
  Memory of_parent = *service->Acquire({.image = parent, .size_bytes = kSize});
  EXPECT_EQ(FirstDifference(of_parent, InitialBytes(parent, kSize)),
            std::nullopt);
  EXPECT_EQ(Load(memory, 2 * kPageBytes + 1),
            InitialBytes(parent, kSize)[2 * kPageBytes + 1]);
  EXPECT_EQ(memory.Release(), absl::OkStatus());
  parent.reset();
  EXPECT_GT(LeftOfImages(), 0);
  EXPECT_EQ(of_parent.Release(), absl::OkStatus());
  EXPECT_EQ(LeftOfImages(), 0);
}

TEST_P(CapacityTest, ThreadsThatReplaceImagesLeaveNothingOfThem) {
  constexpr uint32_t kThreads = 4;
  constexpr int kCycles = 60;
  const std::unique_ptr<Service> service = MakeService(kThreads);
  if (service == nullptr) GTEST_SKIP() << "not to be had here: " << reason_;
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kCycles; ++i) {
        ImageRef image = PatternImage(
            "turnover " + std::to_string(t) + "." + std::to_string(i), 3);
        const std::vector<uint8_t> initial =
            InitialBytes(image, 4 * kPageBytes);
        for (int cycle = 0; cycle < 3; ++cycle) {
          absl::StatusOr<Memory> memory =
              service->Acquire({.image = image, .size_bytes = 4 * kPageBytes});
          ASSERT_TRUE(memory.ok()) << memory.status();
          ASSERT_EQ(FirstDifference(*memory, initial), std::nullopt);
          Store(*memory, 2 * kPageBytes, 0x99);
          // Sometimes the last memory outlives the handle.
          if (cycle == 2 && i % 2 == 0) image.reset();
        }
      }
    });
  }
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(service->Trim().ok());
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(LeftOfImages(), 0);
  EXPECT_EQ(service->Stats().slots_quarantined, 0u);
  ExpectWhole(*service, kThreads, PatternImage("next", 6), kSize);
}

TEST_P(CapacityTest, AnImageThatCannotBeUnmappedGoesWithTrim) {
  const std::unique_ptr<Service> service = MakeService(2);
  if (service == nullptr) GTEST_SKIP() << "not to be had here: " << reason_;
  ImageRef image = PatternImage("turnover stuck", 6);
  EXPECT_EQ(service->Acquire({.image = image, .size_bytes = kSize})->Release(),
            absl::OkStatus());
  for (Op op : {Op::kMmap, Op::kMprotect}) {
    kernel_.Fail(op, FakeKernel::kEvery, CallResult{0, ENOMEM});
  }
  image.reset();
  kernel_.Clear(Op::kMmap);
  kernel_.Clear(Op::kMprotect);
  EXPECT_TRUE(service->Trim().ok());
  EXPECT_EQ(LeftOfImages(), 0);
  EXPECT_EQ(service->Stats().slots_quarantined, 0u);
  ExpectWhole(*service, 2, PatternImage("next", 6), kSize);
}

TEST_P(CapacityTest, AtTheMappingLimitForAWhileNoSlotIsLost) {
  constexpr uint32_t kSlots = 16;
  constexpr uint64_t kMostMappings = 1 << 17;
  const std::unique_ptr<Service> service = MakeService(kSlots);
  if (service == nullptr) GTEST_SKIP() << "not to be had here: " << reason_;
  const ImageRef image = PatternImage("mapped", 6);
  Memory held = *service->Acquire({.image = image, .size_bytes = kSize});
  Store(held, 3, 0x3c);
  // Every other page of this is a mapping of its own, and so is each page
  // between.
  const uint64_t bytes = kMostMappings * kPageBytes;
  void* const wall = mmap(nullptr, bytes, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(wall, MAP_FAILED);
  absl::Cleanup unmap = [&] { munmap(wall, bytes); };
  uint64_t page = 1;
  while (page < kMostMappings &&
         mprotect(static_cast<std::byte*>(wall) + page * kPageBytes, kPageBytes,
                  PROT_READ) == 0) {
    page += 2;
  }
  if (page >= kMostMappings) GTEST_SKIP() << "vm.max_map_count is higher";
  std::vector<absl::Status> refusals;
  refusals.reserve(2 * kSlots);
  for (uint32_t i = 0; i < 2 * kSlots; ++i) {
    absl::StatusOr<Memory> memory =
        service->Acquire({.image = image, .size_bytes = kSize});
    if (!memory.ok()) refusals.push_back(memory.status());
  }
  const absl::StatusOr<ImageRef> snapshot = held.Snapshot("at the limit");
  std::move(unmap).Invoke();
  if (GetParam().backing == Backing::kShared || GetParam().by_mappings()) {
    EXPECT_FALSE(refusals.empty());
  }
  for (const absl::Status& refusal : refusals) {
    EXPECT_THAT(std::string(refusal.message()), HasSubstr("vm.max_map_count"));
  }
  EXPECT_EQ(service->Stats().slots_quarantined, 0u);
  EXPECT_EQ(Load(held, 3), 0x3c);
  EXPECT_TRUE(snapshot.ok() || held.Snapshot("after it").ok());
  EXPECT_EQ(held.Release(), absl::OkStatus());
  ExpectWhole(*service, kSlots, image, kSize);
}

}  // namespace
}  // namespace firsttouch
