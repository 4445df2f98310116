#include "firsttouch/pool/slot_allocator.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/pool/slot_shard.h"
#include "firsttouch/pool/slot_strategy.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {
namespace {

constexpr uint32_t kMaxShards = 64;
constexpr uint32_t kMaxBuckets = 1024;

[[noreturn]] void Die(const char* what, uint32_t slot, uint32_t capacity) {
  std::fprintf(stderr,
               "firsttouch: SlotAllocator::%s(%u): the slot is not in use (of "
               "%u slots); it was given back twice or never acquired\n",
               what, slot, capacity);
  std::abort();
}

uint32_t ShardsFor(uint32_t slots, uint32_t wanted) {
  if (wanted == SlotAllocator::kShardPerCore) {
    const long cores = sysconf(_SC_NPROCESSORS_CONF);
    wanted = cores < 1 ? 1 : static_cast<uint32_t>(cores);
  }
  return std::clamp(wanted, uint32_t{1},
                    std::clamp(slots, uint32_t{1}, kMaxShards));
}

}  // namespace

SlotAllocator::SlotAllocator(uint32_t slots, SlotStrategy strategy,
                             uint64_t seed, uint32_t shards,
                             const char* capacity_option)
    : capacity_(slots),
      strategy_(strategy),
      shard_count_(ShardsFor(slots, shards)),
      capacity_option_(capacity_option),
      fresh_(strategy == SlotStrategy::kRandom ? slots : 0),
      nodes_(new SlotNode[slots]),
      shards_(new SlotShard[shard_count_]) {
  static_assert(sizeof(SlotNode) == kBytesPerSlot);
  for (uint32_t s = 0; s < shard_count_; ++s) shards_[s].Init(nodes_.get());
  if (strategy_ == SlotStrategy::kRandom) {
    // Slot s always belongs to shard s % shard_count_.
    random_slots_.reset(new uint32_t[capacity_]);
    uint32_t* next = random_slots_.get();
    for (uint32_t s = 0; s < shard_count_; ++s) {
      uint32_t count = 0;
      for (uint64_t slot = s; slot < capacity_; slot += shard_count_) {
        next[count++] = static_cast<uint32_t>(slot);
      }
      shards_[s].InitRandom(next, count, seed + s);
      next += count;
    }
  }
  if (strategy_ == SlotStrategy::kAffinity) {
    const uint32_t buckets =
        std::min(kMaxBuckets, std::bit_ceil(std::max(capacity_, uint32_t{16})));
    for (uint32_t s = 0; s < shard_count_; ++s) {
      shards_[s].InitBuckets(buckets);
    }
  }
}

SlotAllocator::~SlotAllocator() = default;

uint32_t SlotAllocator::CoreShard() const {
  if (shard_count_ == 1) return 0;
  const int core = sched_getcpu();
  return core < 0 ? 0 : static_cast<uint32_t>(core) % shard_count_;
}

std::optional<SlotAllocator::Pick> SlotAllocator::Hand(uint32_t slot) {
  if (slot == kNoSlot) return std::nullopt;
  nodes_[slot].lifecycle.Move(SlotLifecycle::kReturning,
                              std::memory_order_relaxed);
  return Pick{slot, nodes_[slot].key};
}

std::optional<SlotAllocator::Pick> SlotAllocator::TakeFresh() {
  uint32_t slot = fresh_.load(std::memory_order_relaxed);
  while (slot < capacity_) {
    if (fresh_.compare_exchange_weak(slot, slot + 1,
                                     std::memory_order_relaxed)) {
      return Hand(slot);
    }
  }
  return std::nullopt;
}

SlotShard& SlotAllocator::ShardFrom(uint32_t home, uint32_t distance) const {
  const uint32_t at = home + distance;
  return shards_[at < shard_count_ ? at : at - shard_count_];
}

std::optional<SlotAllocator::Pick> SlotAllocator::TryNextAvailable() {
  const uint32_t home = CoreShard();
  for (uint32_t i = 0; i < shard_count_; ++i) {
    std::optional<Pick> pick = Hand(ShardFrom(home, i).TakeNewest());
    if (pick.has_value()) return pick;
  }
  return TakeFresh();
}

std::optional<SlotAllocator::Pick> SlotAllocator::TryAffinity(uint64_t key) {
  const uint32_t home = CoreShard();
  if (key != 0) {
    for (uint32_t i = 0; i < shard_count_; ++i) {
      std::optional<Pick> pick = Hand(ShardFrom(home, i).TakeWithKey(key));
      if (pick.has_value()) return pick;
    }
  }
  for (uint32_t i = 0; i < shard_count_; ++i) {
    std::optional<Pick> pick = Hand(ShardFrom(home, i).TakeKeyless());
    if (pick.has_value()) return pick;
  }
  if (std::optional<Pick> pick = TakeFresh(); pick.has_value()) return pick;

  // A slot of another key has to go. Ages are distances, since the clock wraps
  // around.
  const uint32_t now = takeovers_.load(std::memory_order_relaxed);
  SlotShard* oldest = nullptr;
  uint32_t oldest_age = 0;
  for (uint32_t i = 0; i < shard_count_; ++i) {
    SlotShard& shard = ShardFrom(home, i);
    if (shard.free() == 0) continue;
    const uint32_t age = now - shard.oldest_released_at();
    if (oldest == nullptr || age > oldest_age) {
      oldest = &shard;
      oldest_age = age;
    }
  }
  if (oldest == nullptr) return std::nullopt;
  std::optional<Pick> pick = Hand(oldest->TakeOldest());
  if (pick.has_value()) takeovers_.fetch_add(1, std::memory_order_relaxed);
  return pick;
}

std::optional<SlotAllocator::Pick> SlotAllocator::TryRandom() {
  const uint64_t random = shards_[CoreShard()].NextRandom(kDefaultSeed);
  uint64_t total = 0;
  for (uint32_t s = 0; s < shard_count_; ++s) {
    total += shards_[s].free();
  }
  // The high half of the number chooses the shard, in proportion to its free
  // slots; the low half chooses the slot in it.
  uint64_t at = ((random >> 32) * total) >> 32;
  for (uint32_t s = 0; s < shard_count_; ++s) {
    const uint32_t free = shards_[s].free();
    if (at < free) return Hand(shards_[s].TakeRandom(random));
    at -= free;
  }
  return std::nullopt;
}

std::optional<SlotAllocator::Pick> SlotAllocator::TryAcquire(uint64_t key) {
  switch (strategy_) {
    case SlotStrategy::kNextAvailable:
      return TryNextAvailable();
    case SlotStrategy::kRandom:
      return TryRandom();
    case SlotStrategy::kAffinity:
      return TryAffinity(key);
  }
  return std::nullopt;
}

// If no shard saw a release between two looks, and each was empty at the first
// look, then all were empty at once: between the looks.
std::optional<SlotAllocator::Pick> SlotAllocator::TryExhaustively(
    uint64_t key) {
  const uint32_t home = CoreShard();
  while (true) {
    // Fresh slots never come back, so one look at the beginning is enough.
    if (std::optional<Pick> pick = TakeFresh(); pick.has_value()) return pick;
    uint64_t before = 0;
    for (uint32_t i = 0; i < shard_count_; ++i) {
      before += ShardFrom(home, i).releases();
    }
    for (uint32_t i = 0; i < shard_count_; ++i) {
      std::optional<Pick> pick =
          Hand(ShardFrom(home, i).TakeAny(strategy_, key));
      if (pick.has_value()) return pick;
    }
    uint64_t after = 0;
    for (uint32_t i = 0; i < shard_count_; ++i) {
      after += ShardFrom(home, i).releases();
    }
    if (before == after) return std::nullopt;
  }
}

void SlotAllocator::WakeOne() {
  MutexLock lock(&wait_mutex_);
  ++wait_epoch_;
  wait_changed_.Signal();
}

// Announces the waiter in every shard before it looks: a release that the look
// misses finds the announcement, under the same lock, and changes the epoch.
std::optional<SlotAllocator::Pick> SlotAllocator::WaitUntil(
    uint64_t key, absl::Time deadline) {
  const auto change_waiters = [this](int change) {
    for (uint32_t s = 0; s < shard_count_; ++s) {
      shards_[s].ChangeWaiters(change);
    }
  };
  change_waiters(+1);
  std::optional<Pick> pick;
  bool expired = false;
  while (true) {
    uint64_t epoch;
    {
      MutexLock lock(&wait_mutex_);
      epoch = wait_epoch_;
    }
    pick = TryExhaustively(key);
    if (pick.has_value() || expired || quarantined() == capacity_) break;
    MutexLock lock(&wait_mutex_);
    while (wait_epoch_ == epoch && !expired) {
      expired = wait_changed_.WaitWithDeadline(&wait_mutex_, deadline);
    }
  }
  change_waiters(-1);
  return pick;
}

absl::Status SlotAllocator::ExhaustedError() const {
  const uint32_t quarantined_now = quarantined();
  std::string text = absl::StrCat(
      "all ", capacity_, " slots are taken: ", capacity_ - quarantined_now,
      " in use, ", quarantined_now, " quarantined");
  if (quarantined_now == capacity_) {
    absl::StrAppend(&text,
                    " because their reset failed, so that none will become "
                    "free; make a new pool");
  } else {
    if (quarantined_now != 0) {
      absl::StrAppend(&text, " because their reset failed");
    }
    absl::StrAppend(&text,
                    "; release one, wait for one with a deadline, or raise ",
                    capacity_option_);
  }
  return absl::ResourceExhaustedError(text);
}

absl::StatusOr<SlotAllocator::Pick> SlotAllocator::Acquire(
    uint64_t affinity_key, absl::Time deadline) {
  std::optional<Pick> pick = TryAcquire(affinity_key);
  if (!pick.has_value()) pick = TryExhaustively(affinity_key);
  if (!pick.has_value() && deadline != absl::InfinitePast() &&
      deadline > absl::Now()) {
    pick = WaitUntil(affinity_key, deadline);
  }
  if (!pick.has_value()) return ExhaustedError();
  return *pick;
}

void SlotAllocator::Release(uint32_t slot, uint64_t affinity_key) {
  if (slot >= capacity_ ||
      !nodes_[slot].lifecycle.TryMove(SlotLifecycle::kReturning,
                                      SlotLifecycle::kFree)) {
    Die("Release", slot, capacity_);
  }
  nodes_[slot].key = affinity_key;
  const uint32_t home =
      strategy_ == SlotStrategy::kRandom ? slot % shard_count_ : CoreShard();
  if (shards_[home].Put(strategy_, slot, takeovers_)) WakeOne();
}

void SlotAllocator::Quarantine(uint32_t slot) {
  if (slot >= capacity_ ||
      !nodes_[slot].lifecycle.TryMove(SlotLifecycle::kReturning,
                                      SlotLifecycle::kQuarantined)) {
    Die("Quarantine", slot, capacity_);
  }
  const uint32_t before = quarantined_.fetch_add(1, std::memory_order_acq_rel);
  if (before + 1 == capacity_) {
    // No slot will come back: tells waiters to give up.
    MutexLock lock(&wait_mutex_);
    ++wait_epoch_;
    wait_changed_.SignalAll();
  }
}

void SlotAllocator::ReturnMember(uint32_t slot, uint32_t members,
                                 uint64_t affinity_key, bool failed) {
  if (members > 1) {
    SlotNode& node = nodes_[slot];
    if (failed) node.member_failed.store(true, std::memory_order_relaxed);
    if (node.members_back.fetch_add(1, std::memory_order_acq_rel) + 1 !=
        members) {
      return;
    }
    node.members_back.store(0, std::memory_order_relaxed);
    failed = node.member_failed.load(std::memory_order_relaxed);
  }
  if (failed) {
    Quarantine(slot);
  } else {
    Release(slot, affinity_key);
  }
}

uint32_t SlotAllocator::in_use() const {
  uint64_t out = fresh_.load(std::memory_order_relaxed);
  uint64_t back = quarantined();
  for (uint32_t s = 0; s < shard_count_; ++s) {
    back += shards_[s].free();
  }
  // The two counts are from slightly different moments.
  return static_cast<uint32_t>(out > back ? out - back : 0);
}

uint32_t SlotAllocator::ever_used() const {
  return std::min(fresh_.load(std::memory_order_relaxed), capacity_);
}

}  // namespace firsttouch
