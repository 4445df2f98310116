// What a pool has to give stays what it was: a slot that is free is found, and
// one that nothing happened to is not lost.
//
// Longer runs:  ./bazelw test //service:capacity_test
//                   --test_env=FIRSTTOUCH_CAPACITY_SECONDS=60

#include <errno.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/service_test_util.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;
using Op = FakeKernel::Op;

constexpr uint64_t kSize = 16 * kPageBytes;

ServiceOptions Options(Way way, uint32_t slots) {
  return {.name = "capacity",
          .layout = {.instances = slots,
                     .max_memory_bytes = 32 * kPageBytes,
                     .guard_after_bytes = 65536},
          .supply = way.supply,
          .backing = way.backing,
          .resolve = way.resolve,
          .trap_callback = JumpOutOfTrap,
          .tracking = way.tracking};
}

class CapacityTest : public testing::TestWithParam<Way> {
 protected:
  // Null where this machine does not have what it takes.
  std::unique_ptr<Service> MakeService(uint32_t slots) {
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create(Options(GetParam(), slots), kernel_);
    if (!service.ok()) reason_ = std::string(service.status().message());
    return service.ok() ? *std::move(service) : nullptr;
  }

  FakeKernel kernel_;
  std::string reason_;
};

INSTANTIATE_TEST_SUITE_P(AllWays, CapacityTest, AllWays(), WayName);

// Threads that each hold at most one memory, as many as there are slots: there
// is a slot for each at any time.
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
          // Some stay with one image for a while, which is the steady cycle.
          const size_t which = random() % 4 < 2 ? t % 3 : random() % 3;
          absl::StatusOr<Memory> memory = service->Acquire(
              {.image = images[which],
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
      // Who trims has slots for a moment, too.
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
  // One that waits already is told, too.
  std::atomic<bool> waits{false};
  absl::Status waited;
  std::thread waiter([&] {
    waits.store(true);
    waited = service
                 ->Acquire({.size_bytes = kSize,
                            .deadline = absl::InfiniteFuture()})
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

}  // namespace
}  // namespace firsttouch
