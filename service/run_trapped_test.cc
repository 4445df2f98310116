// RunTrapped(): traps as absl::Status, over every way of supplying memory.

#include "firsttouch/service/run_trapped.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr uint64_t kSize = 4 * kPageBytes;
constexpr uint64_t kMax = 16 * kPageBytes;
constexpr uint64_t kGuard = 1 << 20;

void Write(std::byte* at) {
  *const_cast<volatile std::byte*>(at) = std::byte{1};
}
std::byte Read(const std::byte* at) {
  return *const_cast<const volatile std::byte*>(at);
}

std::string Message(const absl::Status& status) {
  return std::string(status.message());
}

// Counts the traps that reach the service's callback.
int g_callbacks = 0;
TrapAction CountTrap(const TrapInfo& trap) {
  ++g_callbacks;
  return JumpOutOfTrap(trap);
}

class RunTrappedTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    g_callbacks = 0;
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create({.name = "trapped",
                         .layout = {.instances = 2,
                                    .max_memory_bytes = kMax,
                                    .guard_before_bytes = kGuard,
                                    .guard_after_bytes = 2 * kGuard},
                         .supply = Asking(GetParam()),
                         .strategy = SlotStrategy::kNextAvailable,
                         .trap_callback = CountTrap});
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  Memory Acquire() {
    absl::StatusOr<Memory> memory = service_->Acquire({.size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  std::unique_ptr<Service> service_;
};

INSTANTIATE_TEST_SUITE_P(AllWays, RunTrappedTest, AllWays(), WayName);

TEST_P(RunTrappedTest, CodeThatStaysInBoundsRunsToItsEnd) {
  const Memory memory = Acquire();
  bool ran = false;
  TrapInfo trap = {.pool_id = 77};
  const absl::Status ended = RunTrapped(
      memory,
      [&] {
        Write(memory.base() + kSize - 1);
        ran = true;
      },
      &trap);
  EXPECT_TRUE(ended.ok()) << ended;
  EXPECT_TRUE(ran);
  EXPECT_EQ(trap.pool_id, 77u);
}

TEST_P(RunTrappedTest, ATrapNamesAccessOffsetAndMemory) {
  const Memory memory = Acquire();
  TrapInfo trap = {};
  absl::Status ended = RunTrapped(
      memory, [&] { Write(memory.base() + kSize + 5); }, &trap);
  EXPECT_EQ(ended.code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Message(ended),
            "out of bounds write at offset 16389 of pool \"trapped\", "
            "instance 0, memory 0, which has 16384 bytes");
  EXPECT_EQ(trap.offset_bytes, static_cast<int64_t>(kSize + 5));
  EXPECT_EQ(trap.access, Access::kWrite);
  EXPECT_EQ(trap.size_bytes, kSize);
  EXPECT_EQ(trap.address,
            reinterpret_cast<uintptr_t>(memory.base()) + kSize + 5);
  EXPECT_EQ(trap.ucontext, nullptr);
  ended = RunTrapped(memory, [&] { Read(memory.base() + kMax + kPageBytes); });
  EXPECT_THAT(Message(ended),
              StartsWith("out of bounds read at offset 69632 "));
  EXPECT_EQ(g_callbacks, 0);
}

TEST_P(RunTrappedTest, TheMemoryGoesOnAfterManyTraps) {
  Memory memory = Acquire();
  Write(memory.base());
  for (int i = 0; i < 1000; ++i) {
    ASSERT_FALSE(RunTrapped(memory, [&] { Read(memory.base() + kSize); }).ok());
  }
  EXPECT_EQ(Read(memory.base()), std::byte{1});
  ASSERT_TRUE(memory.Grow(2 * kSize).ok());
  EXPECT_TRUE(RunTrapped(memory, [&] { Write(memory.base() + kSize); }).ok());
  EXPECT_TRUE(memory.Release().ok());
}

// The upper end of the guard between two memories belongs to neither, but the
// code that runs belongs to one of them.
TEST_P(RunTrappedTest, AGuardThatTwoMemoriesReachBelongsToTheOneThatRuns) {
  const Memory first = Acquire();
  const Memory second = Acquire();
  ASSERT_GT(second.base(), first.base());
  std::byte* const between = second.base() - 8;
  TrapInfo trap = {};
  EXPECT_THAT(Message(RunTrapped(
                  second, [&] { Read(between); }, &trap)),
              StartsWith("out of bounds read at offset -8 of pool \"trapped\", "
                         "instance 1, memory 0,"));
  EXPECT_EQ(trap.instance, 1u);
  EXPECT_EQ(trap.offset_bytes, -8);
  EXPECT_TRUE(trap.leased);
  EXPECT_THAT(Message(RunTrapped(
                  first, [&] { Read(between); }, &trap)),
              HasSubstr("instance 0, memory 0,"));
  EXPECT_EQ(trap.offset_bytes, between - first.base());
  EXPECT_EQ(g_callbacks, 0);
}

TEST_P(RunTrappedTest, ATrapOfAnOuterMemoryEndsTheOuterRun) {
  const Memory outer = Acquire();
  const Memory inner = Acquire();
  bool inner_returned = false;
  const absl::Status ended = RunTrapped(outer, [&] {
    RunTrapped(inner, [&] { Read(outer.base() + kSize); }).IgnoreError();
    inner_returned = true;
  });
  EXPECT_THAT(Message(ended), HasSubstr("instance 0, memory 0,"));
  EXPECT_FALSE(inner_returned);
  // The inner run is off the list, too: its frame is gone.
  EXPECT_THAT(Message(RunTrapped(inner, [&] { Read(inner.base() + kSize); })),
              HasSubstr("instance 1, memory 0,"));
}

TEST_P(RunTrappedTest, ATrapOfAnotherMemoryGoesToTheCallbacks) {
  const Memory mine = Acquire();
  const Memory others = Acquire();
  std::optional<TrapInfo> trap;
  const absl::Status ended = RunTrapped(
      mine, [&] { trap = TrapOf([&] { Read(others.base() + kSize); }); });
  EXPECT_TRUE(ended.ok()) << ended;
  ASSERT_TRUE(trap.has_value());
  EXPECT_EQ(trap->instance, 1u);
  EXPECT_EQ(g_callbacks, 1);
}

TEST_P(RunTrappedTest, ThreadsOfOneMemoryEachHaveTheirOwnTrap) {
  const Memory memory = Acquire();
  std::vector<std::thread> threads;
  std::vector<TrapInfo> traps(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 100; ++round) {
        RunTrapped(
            memory, [&] { Read(memory.base() + kSize + i); }, &traps[i])
            .IgnoreError();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(traps[i].offset_bytes, static_cast<int64_t>(kSize + i));
  }
  EXPECT_EQ(memory.stats().traps, 400u);
}

TEST_P(RunTrappedTest, AReleasedMemoryRunsNothing) {
  Memory memory = Acquire();
  ASSERT_TRUE(memory.Release().ok());
  bool ran = false;
  const absl::Status ended = RunTrapped(memory, [&] { ran = true; });
  EXPECT_EQ(ended.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Message(ended),
            "RunTrapped: the memory was released (or moved from): nothing is "
            "held");
  EXPECT_FALSE(ran);
}

class BrokenSource : public PageSource {
 public:
  absl::Status Fetch(PageIndex, std::span<std::byte>) override {
    return absl::UnavailableError("the network is down");
  }
};

TEST_P(RunTrappedTest, APageThatCannotBeHadIsAnErrorOfItsOwn) {
  absl::StatusOr<ImageRef> image =
      ImageFromSource({.name = "broken", .size_bytes = kSize},
                      std::make_shared<BrokenSource>());
  ASSERT_TRUE(image.ok()) << image.status();
  absl::StatusOr<Memory> memory = service_->Acquire({.image = *image});
  if (IsMappings(GetParam().supply)) {
    // With mappings, acquiring needs every page beforehand.
    EXPECT_EQ(memory.status().code(), absl::StatusCode::kUnavailable);
    return;
  }
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->size_bytes(), kSize);
  const absl::Status ended =
      RunTrapped(*memory, [&] { Read(memory->base() + kPageBytes); });
  EXPECT_NE(ended.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(
      Message(ended),
      HasSubstr("the contents of the page cannot be had: read at offset "
                "4096 of pool \"trapped\", instance 0, memory 0, which "
                "has 16384 bytes"));
}

}  // namespace
}  // namespace firsttouch
