#include "firsttouch/pool/slot_allocator.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace {
// The number of allocations of this program so far.
std::atomic<uint64_t> g_allocations{0};
}  // namespace

// Not inlined: otherwise gcc sees memory from `new` passed to free().
[[gnu::noinline]] void* operator new(size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace firsttouch {
namespace {

constexpr SlotStrategy kStrategies[] = {SlotStrategy::kNextAvailable,
                                        SlotStrategy::kRandom,
                                        SlotStrategy::kAffinity};
constexpr uint64_t kSeed = SlotAllocator::kDefaultSeed;

std::string Text(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

SlotAllocator::Pick Take(SlotAllocator& allocator, uint64_t key = 0) {
  const absl::StatusOr<SlotAllocator::Pick> pick = allocator.Acquire(key);
  EXPECT_TRUE(pick.ok()) << pick.status();
  return pick.ok() ? *pick : SlotAllocator::Pick{~uint32_t{0}, 0};
}

// Keeps the thread on one core until destroyed. False where that core cannot be
// had.
class PinnedTo {
 public:
  explicit PinnedTo(int core) {
    sched_getaffinity(0, sizeof(before_), &before_);
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(core, &only);
    pinned_ = sched_setaffinity(0, sizeof(only), &only) == 0;
  }
  ~PinnedTo() { sched_setaffinity(0, sizeof(before_), &before_); }
  explicit operator bool() const { return pinned_; }

 private:
  cpu_set_t before_;
  bool pinned_;
};

TEST(SlotAllocatorTest, StrategiesHaveNames) {
  EXPECT_EQ(SlotStrategyName(SlotStrategy::kNextAvailable), "next-available");
  EXPECT_EQ(SlotStrategyName(SlotStrategy::kRandom), "random");
  EXPECT_EQ(SlotStrategyName(SlotStrategy::kAffinity), "affinity");
}

TEST(SlotAllocatorTest, NextAvailableTakesTheWarmestAndUsesFewSlots) {
  SlotAllocator allocator(8, SlotStrategy::kNextAvailable, kSeed, 1);
  EXPECT_EQ(allocator.capacity(), 8u);
  EXPECT_EQ(Take(allocator).slot, 0u);
  EXPECT_EQ(Take(allocator).slot, 1u);
  EXPECT_EQ(Take(allocator).slot, 2u);
  EXPECT_EQ(allocator.in_use(), 3u);
  allocator.Release(1, 11);
  allocator.Release(0, 10);
  EXPECT_EQ(allocator.in_use(), 1u);
  SlotAllocator::Pick pick = Take(allocator, 11);
  EXPECT_EQ(pick.slot, 0u);
  EXPECT_EQ(pick.last_key, 10u);
  pick = Take(allocator, 11);
  EXPECT_EQ(pick.slot, 1u);
  EXPECT_EQ(pick.last_key, 11u);
  pick = Take(allocator);
  EXPECT_EQ(pick.slot, 3u);
  EXPECT_EQ(pick.last_key, 0u);
  EXPECT_EQ(allocator.ever_used(), 4u);
}

TEST(SlotAllocatorTest, AffinityTakesTheSlotThatNeedsTheLeastWork) {
  SlotAllocator allocator(6, SlotStrategy::kAffinity, kSeed, 1);
  for (uint32_t slot = 0; slot < 5; ++slot) {
    EXPECT_EQ(Take(allocator).slot, slot);
  }
  allocator.Release(0, 100);
  allocator.Release(1, 200);
  allocator.Release(2, 100);
  allocator.Release(3, 0);
  allocator.Release(4, 300);

  // The newest slot of the key.
  SlotAllocator::Pick pick = Take(allocator, 100);
  EXPECT_EQ(pick.slot, 2u);
  EXPECT_EQ(pick.last_key, 100u);
  // A key without slots: first slots without a key, then slots never used,
  pick = Take(allocator, 400);
  EXPECT_EQ(pick.slot, 3u);
  EXPECT_EQ(pick.last_key, 0u);
  pick = Take(allocator, 400);
  EXPECT_EQ(pick.slot, 5u);
  EXPECT_EQ(pick.last_key, 0u);
  // then the slot that was released longest ago.
  pick = Take(allocator, 400);
  EXPECT_EQ(pick.slot, 0u);
  EXPECT_EQ(pick.last_key, 100u);
  // Without a key the order is the same.
  pick = Take(allocator, 0);
  EXPECT_EQ(pick.slot, 1u);
  EXPECT_EQ(pick.last_key, 200u);
  pick = Take(allocator, 300);
  EXPECT_EQ(pick.slot, 4u);
  EXPECT_EQ(pick.last_key, 300u);
  EXPECT_FALSE(allocator.Acquire(300).ok());
}

// The strategies in their simplest form, for one shard.
class Model {
 public:
  Model(uint32_t slots, SlotStrategy strategy)
      : strategy_(strategy), last_key_(slots) {
    for (uint32_t slot = 0; slot < slots; ++slot) fresh_.push_back(slot);
  }

  // The slot that must be taken next, or -1.
  int64_t Take(uint64_t key) {
    if (strategy_ == SlotStrategy::kAffinity) {
      for (size_t i = free_.size(); i-- > 0;) {
        if (key != 0 && last_key_[free_[i]] == key) return TakeFree(i);
      }
      for (size_t i = free_.size(); i-- > 0;) {
        if (last_key_[free_[i]] == 0) return TakeFree(i);
      }
      if (!fresh_.empty()) return TakeFresh();
      return free_.empty() ? -1 : TakeFree(0);
    }
    if (!free_.empty()) return TakeFree(free_.size() - 1);
    return fresh_.empty() ? -1 : TakeFresh();
  }
  void Release(uint32_t slot, uint64_t key) {
    last_key_[slot] = key;
    free_.push_back(slot);
  }
  uint64_t last_key(uint32_t slot) const { return last_key_[slot]; }

 private:
  int64_t TakeFree(size_t at) {
    const uint32_t slot = free_[at];
    free_.erase(free_.begin() + at);
    return slot;
  }
  int64_t TakeFresh() {
    const uint32_t slot = fresh_.front();
    fresh_.erase(fresh_.begin());
    return slot;
  }

  const SlotStrategy strategy_;
  std::vector<uint64_t> last_key_;
  std::vector<uint32_t> free_;  // oldest first
  std::vector<uint32_t> fresh_;
};

TEST(SlotAllocatorTest, AgreesWithAModelOfEachOrder) {
  std::mt19937_64 random(1);
  for (SlotStrategy strategy :
       {SlotStrategy::kNextAvailable, SlotStrategy::kAffinity}) {
    for (int round = 0; round < 300; ++round) {
      const uint32_t slots = 1 + random() % 40;
      // Few keys make long groups, many keys make long chains.
      const uint64_t keys = 1 + random() % (round % 2 == 0 ? 4 : 100);
      SlotAllocator allocator(slots, strategy, kSeed, 1);
      Model model(slots, strategy);
      std::vector<uint32_t> held;
      for (int step = 0; step < 300; ++step) {
        const uint64_t key = random() % keys;
        if (!held.empty() && random() % 2 == 0) {
          std::swap(held[random() % held.size()], held.back());
          allocator.Release(held.back(), key);
          model.Release(held.back(), key);
          held.pop_back();
        } else {
          const absl::StatusOr<SlotAllocator::Pick> pick =
              allocator.Acquire(key);
          const int64_t expected = model.Take(key);
          ASSERT_EQ(pick.ok(), expected >= 0);
          if (!pick.ok()) continue;
          ASSERT_EQ(pick->slot, expected)
              << SlotStrategyName(strategy) << " round " << round << " step "
              << step;
          ASSERT_EQ(pick->last_key, model.last_key(pick->slot));
          held.push_back(pick->slot);
        }
        ASSERT_EQ(allocator.in_use(), held.size());
      }
    }
  }
}

TEST(SlotAllocatorTest, AffinityFindsTheKeyOnOtherCores) {
  SlotAllocator allocator(8, SlotStrategy::kAffinity, kSeed, 2);
  PinnedTo first(0);
  if (!first || allocator.shards() < 2) GTEST_SKIP() << "needs core 0";
  for (uint32_t slot = 0; slot < 8; ++slot) Take(allocator);
  allocator.Release(0, 100);
  allocator.Release(1, 200);
  PinnedTo second(1);
  if (!second) GTEST_SKIP() << "needs cores 0 and 1";
  allocator.Release(2, 300);
  allocator.Release(3, 300);
  // From core 1: a slot with the key, wherever it is; then the oldest, first on
  // this core.
  EXPECT_EQ(Take(allocator, 200).slot, 1u);
  EXPECT_EQ(Take(allocator, 400).slot, 2u);
  EXPECT_EQ(Take(allocator, 400).slot, 3u);
  // The remaining slot lies on core 0.
  EXPECT_EQ(Take(allocator, 400).slot, 0u);
}

TEST(SlotAllocatorTest, AffinityComparesAgesBetweenCores) {
  SlotAllocator allocator(4, SlotStrategy::kAffinity, kSeed, 2);
  PinnedTo first(0);
  if (!first) GTEST_SKIP() << "needs core 0";
  for (uint32_t slot = 0; slot < 4; ++slot) Take(allocator);
  allocator.Release(0, 100);
  allocator.Release(1, 200);
  EXPECT_EQ(Take(allocator, 300).slot, 0u);  // from another key
  PinnedTo second(1);
  if (!second) GTEST_SKIP() << "needs cores 0 and 1";
  allocator.Release(2, 500);
  // Slot 1 was released before the last takeover, slot 2 after it.
  EXPECT_EQ(Take(allocator, 600).slot, 1u);
  EXPECT_EQ(Take(allocator, 600).slot, 2u);
}

TEST(SlotAllocatorTest, NextAvailableTakesFromOtherCoresBeforeUnusedSlots) {
  SlotAllocator allocator(8, SlotStrategy::kNextAvailable, kSeed, 2);
  PinnedTo first(0);
  if (!first) GTEST_SKIP() << "needs core 0";
  EXPECT_EQ(Take(allocator).slot, 0u);
  EXPECT_EQ(Take(allocator).slot, 1u);
  allocator.Release(0, 0);
  PinnedTo second(1);
  if (!second) GTEST_SKIP() << "needs cores 0 and 1";
  allocator.Release(1, 0);
  EXPECT_EQ(Take(allocator).slot, 1u);
  EXPECT_EQ(Take(allocator).slot, 0u);
  EXPECT_EQ(Take(allocator).slot, 2u);
}

TEST(SlotAllocatorTest, RandomTakesEachFreeSlotAboutAsOften) {
  constexpr uint32_t kSlots = 16;
  constexpr int kDraws = 16'000;
  for (uint32_t shards : {1, 3}) {
    SlotAllocator allocator(kSlots, SlotStrategy::kRandom, 42, shards);
    EXPECT_EQ(allocator.shards(), shards);
    // Some slots are always in use, unevenly distributed.
    std::vector<bool> held(kSlots);
    for (int i = 0; i < 6; ++i) held[Take(allocator).slot] = true;
    std::vector<int> count(kSlots);
    for (int i = 0; i < kDraws; ++i) {
      const SlotAllocator::Pick pick = Take(allocator, i % 5);
      ++count[pick.slot];
      allocator.Release(pick.slot, i % 5);
    }
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      if (held[slot]) {
        EXPECT_EQ(count[slot], 0) << slot;
      } else {
        EXPECT_NEAR(count[slot], kDraws / 10.0, kDraws / 50.0) << slot;
      }
    }
  }
}

TEST(SlotAllocatorTest, RandomFollowsItsSeed) {
  auto draw = [](uint64_t seed) {
    SlotAllocator allocator(1000, SlotStrategy::kRandom, seed, 1);
    std::vector<uint32_t> slots;
    for (int i = 0; i < 100; ++i) slots.push_back(Take(allocator).slot);
    return slots;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

TEST(SlotAllocatorTest, EveryStrategyHandsOutEverySlotOnce) {
  for (SlotStrategy strategy : kStrategies) {
    for (uint32_t slots : {1, 2, 63, 1000}) {
      SlotAllocator allocator(slots, strategy);
      std::vector<bool> seen(slots);
      for (uint32_t i = 0; i < slots; ++i) {
        const uint32_t slot = Take(allocator, i % 3).slot;
        ASSERT_LT(slot, slots);
        ASSERT_FALSE(seen[slot]);
        seen[slot] = true;
      }
      EXPECT_EQ(allocator.in_use(), slots);
      EXPECT_EQ(allocator.ever_used(), slots);
      EXPECT_FALSE(allocator.Acquire(0).ok());
      for (uint32_t i = 0; i < slots; ++i) allocator.Release(i, i % 3);
      EXPECT_EQ(allocator.in_use(), 0u);
    }
  }
}

TEST(SlotAllocatorTest, ExhaustionSaysWhatIsTaken) {
  for (SlotStrategy strategy : kStrategies) {
    SlotAllocator allocator(3, strategy);
    for (int i = 0; i < 3; ++i) Take(allocator);
    absl::StatusOr<SlotAllocator::Pick> pick = allocator.Acquire(7);
    EXPECT_EQ(pick.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(Text(pick.status()),
              "all 3 slots are taken: 3 in use, 0 quarantined; release one, "
              "wait for one with a deadline, or raise "
              "LayoutOptions::instances");
    allocator.Quarantine(1);
    EXPECT_EQ(allocator.quarantined(), 1u);
    EXPECT_EQ(allocator.in_use(), 2u);
    // The deadline passes during the wait.
    pick = allocator.Acquire(7, absl::Now() + absl::Milliseconds(1));
    EXPECT_EQ(pick.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(Text(pick.status()),
              "all 3 slots are taken: 2 in use, 1 quarantined because their "
              "reset failed; release one, wait for one with a deadline, or "
              "raise LayoutOptions::instances");
    // A quarantined slot never comes back.
    allocator.Release(0, 0);
    allocator.Release(2, 0);
    const uint32_t a = Take(allocator).slot;
    const uint32_t b = Take(allocator).slot;
    EXPECT_EQ(a + b, 2u);
    EXPECT_FALSE(allocator.Acquire(0).ok());
  }
}

TEST(SlotAllocatorTest, DoesNotWaitForSlotsThatAreAllQuarantined) {
  SlotAllocator allocator(2, SlotStrategy::kAffinity);
  Take(allocator);
  Take(allocator);
  allocator.Quarantine(0);
  // A thread waits already when the last slot goes.
  std::thread waiter([&] {
    const absl::StatusOr<SlotAllocator::Pick> pick =
        allocator.Acquire(0, absl::InfiniteFuture());
    EXPECT_EQ(Text(pick.status()),
              "all 2 slots are taken: 0 in use, 2 quarantined because their "
              "reset failed, so that none will become free; make a new pool");
  });
  allocator.Quarantine(1);
  waiter.join();
  EXPECT_FALSE(allocator.Acquire(0, absl::InfiniteFuture()).ok());
}

TEST(SlotAllocatorTest, ReleaseWakesWaiters) {
  constexpr int kThreads = 4;
  for (SlotStrategy strategy : kStrategies) {
    // All threads share one slot, so that nearly every Acquire waits.
    SlotAllocator allocator(1, strategy);
    std::atomic<int> owners{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 500; ++i) {
          const absl::StatusOr<SlotAllocator::Pick> pick =
              allocator.Acquire(t, absl::InfiniteFuture());
          ASSERT_TRUE(pick.ok()) << pick.status();
          EXPECT_EQ(owners.fetch_add(1), 0);
          owners.fetch_sub(1);
          allocator.Release(pick->slot, t);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(allocator.in_use(), 0u);
  }
}

TEST(SlotAllocatorTest, NoSlotIsHandedOutTwice) {
  constexpr uint32_t kSlots = 6;
  constexpr int kThreads = 4;
  for (SlotStrategy strategy : kStrategies) {
    for (uint32_t shards : {1, 2, 3}) {
      SlotAllocator allocator(kSlots, strategy, kSeed, shards);
      std::atomic<int> owner[kSlots] = {};
      // The key of the last owner; protected only by the ownership of the slot.
      uint64_t key_of[kSlots] = {};
      std::vector<std::thread> threads;
      for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
          std::mt19937_64 random(t);
          std::vector<uint32_t> held;
          for (int i = 0; i < 4000; ++i) {
            if (!held.empty() && random() % 2 == 0) {
              const uint32_t slot = held.back();
              held.pop_back();
              const uint64_t key = random() % 4;
              key_of[slot] = key;
              ASSERT_EQ(owner[slot].exchange(0), t + 1);
              allocator.Release(slot, key);
              continue;
            }
            const absl::StatusOr<SlotAllocator::Pick> pick =
                allocator.Acquire(random() % 4);
            if (!pick.ok()) continue;
            ASSERT_EQ(owner[pick->slot].exchange(t + 1), 0);
            ASSERT_EQ(pick->last_key, key_of[pick->slot]);
            held.push_back(pick->slot);
          }
          for (uint32_t slot : held) {
            key_of[slot] = 0;
            owner[slot] = 0;
            allocator.Release(slot, 0);
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
      EXPECT_EQ(allocator.in_use(), 0u);
      for (uint32_t i = 0; i < kSlots; ++i) Take(allocator, i);
      EXPECT_FALSE(allocator.Acquire(0).ok());
    }
  }
}

// There are as many slots as threads, and each thread holds at most one slot:
// Acquire never fails, however the slots move between the shards during a look.
TEST(SlotAllocatorTest, ExhaustionIsNeverFalse) {
  constexpr int kThreads = 4;
  for (SlotStrategy strategy : kStrategies) {
    SlotAllocator allocator(kThreads, strategy, kSeed, kThreads);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937_64 random(t);
        for (int i = 0; i < 20'000; ++i) {
          const absl::StatusOr<SlotAllocator::Pick> pick =
              allocator.Acquire(random() % 3);
          ASSERT_TRUE(pick.ok()) << pick.status();
          allocator.Release(pick->slot, random() % 3);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST(SlotAllocatorTest, AcquireAndReleaseAllocateNothing) {
  for (SlotStrategy strategy : kStrategies) {
    SlotAllocator allocator(100, strategy);
    uint32_t held[10];
    const uint64_t before = g_allocations.load();
    for (int i = 0; i < 1000; ++i) {
      for (uint32_t& slot : held) slot = allocator.Acquire(i % 7)->slot;
      for (uint32_t slot : held) allocator.Release(slot, slot % 7);
    }
    EXPECT_EQ(g_allocations.load(), before) << SlotStrategyName(strategy);
  }
}

using SlotAllocatorDeathTest = testing::Test;

TEST(SlotAllocatorDeathTest, GivingBackTwiceEndsTheProcess) {
  for (SlotStrategy strategy : kStrategies) {
    SlotAllocator allocator(3, strategy);
    const uint32_t slot = Take(allocator).slot;
    allocator.Release(slot, 1);
    EXPECT_DEATH(allocator.Release(slot, 1),
                 "firsttouch: SlotAllocator::Release\\([0-2]\\): the slot is "
                 "not in use \\(of 3 slots\\); it was given back twice or "
                 "never acquired");
    EXPECT_DEATH(allocator.Quarantine(slot),
                 "SlotAllocator::Quarantine\\([0-2]\\): the slot is not in "
                 "use");
    EXPECT_DEATH(allocator.Release(3, 1),
                 "SlotAllocator::Release\\(3\\): the slot is not in use");
    const uint32_t bad = Take(allocator).slot;
    allocator.Quarantine(bad);
    EXPECT_DEATH(allocator.Release(bad, 1), "the slot is not in use");
    EXPECT_DEATH(allocator.Quarantine(bad), "the slot is not in use");
  }
}

TEST(SlotAllocatorTest, ASlotOfSeveralMembersComesBackWithTheLastOfThem) {
  for (SlotStrategy strategy : kStrategies) {
    SlotAllocator allocator(1, strategy);
    for (int lease = 0; lease < 2; ++lease) {
      const uint32_t slot = Take(allocator).slot;
      allocator.ReturnMember(slot, 3, 7, /*failed=*/false);
      allocator.ReturnMember(slot, 3, 8, /*failed=*/false);
      EXPECT_EQ(allocator.in_use(), 1u);
      EXPECT_FALSE(allocator.Acquire(0).ok());
      allocator.ReturnMember(slot, 3, 9, /*failed=*/false);
      EXPECT_EQ(allocator.in_use(), 0u);
    }
    EXPECT_EQ(Take(allocator).last_key, 9u);
  }
}

TEST(SlotAllocatorTest, ASlotOneOfWhoseMembersFailedIsQuarantinedAsAWhole) {
  SlotAllocator allocator(2, SlotStrategy::kAffinity);
  const uint32_t slot = Take(allocator).slot;
  allocator.ReturnMember(slot, 2, 1, /*failed=*/true);
  EXPECT_EQ(allocator.quarantined(), 0u);
  allocator.ReturnMember(slot, 2, 1, /*failed=*/false);
  EXPECT_EQ(allocator.quarantined(), 1u);
  EXPECT_NE(Take(allocator).slot, slot);
  EXPECT_FALSE(allocator.Acquire(1).ok());
}

TEST(SlotAllocatorTest, APoolWithoutSlotsIsExhausted) {
  SlotAllocator allocator(0, SlotStrategy::kAffinity);
  EXPECT_EQ(allocator.Acquire(0, absl::InfiniteFuture()).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace firsttouch
