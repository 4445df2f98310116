#include "firsttouch/pool/slot_allocator.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {
namespace {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kMaxShards = 64;
constexpr uint32_t kMaxBuckets = 1024;

// A shard's lock. Not Mutex: locking and unlocking that takes more than three
// times as long, and it would be most of what Acquire and Release cost. Held
// for a few dozen instructions; ThreadSanitizer knows std::mutex by itself.
class ABSL_LOCKABLE ShardMutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE ShardLock {
 public:
  explicit ShardLock(ShardMutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex)
      : mutex_(mutex) {
    mutex_->Lock();
  }
  ~ShardLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  ShardLock(const ShardLock&) = delete;
  ShardLock& operator=(const ShardLock&) = delete;

 private:
  ShardMutex* const mutex_;
};

[[noreturn]] void Die(const char* what, uint32_t slot, uint32_t capacity) {
  std::fprintf(stderr,
               "firsttouch: SlotAllocator::%s(%u): the slot is not in use (of "
               "%u slots); it was given back twice or never acquired\n",
               what, slot, capacity);
  std::abort();
}

uint64_t Mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93;
  x ^= x >> 32;
  return x;
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

std::string_view SlotStrategyName(SlotStrategy strategy) {
  switch (strategy) {
    case SlotStrategy::kNextAvailable:
      return "next-available";
    case SlotStrategy::kRandom:
      return "random";
    case SlotStrategy::kAffinity:
      return "affinity";
  }
  return "unknown";
}

// One slot, in a cache line of its own. All but the atomics belongs to the lock
// of the shard that holds the slot while it is free, and to nobody else while
// it is in use.
struct alignas(64) SlotAllocator::Node {
  uint64_t key = 0;
  // kFree, kReturning from Acquire to Release, or kQuarantined; compared, so
  // that of two Releases one sees that it is the second.
  LifecycleCell lifecycle;
  // Value of takeovers_ at the release.
  uint32_t released_at = 0;
  // Neighbours in three lists; not for kRandom. In Shard::recent or
  // recent_keyless:
  uint32_t newer = kNone;
  uint32_t older = kNone;
  // Among the free slots of the same key and shard, newest first:
  uint32_t key_newer = kNone;
  uint32_t key_older = kNone;
  // The newest of each key only: its neighbours in the bucket's chain.
  uint32_t chain_previous = kNone;
  uint32_t chain_next = kNone;
  // ReturnMember: how many have come back, and whether one had failed.
  std::atomic<uint32_t> members_back{0};
  std::atomic<bool> member_failed{false};
};

// The free slots of one core.
//
// kNextAvailable uses `recent` only, as a stack. kAffinity puts slots with key
// 0 into `recent_keyless`, as a stack; the others are in `recent` (for the
// oldest) and, grouped by key, in the chain of the key's bucket (for the newest
// of a key):
//
//   buckets[h] -> newest of key A -> newest of key B     chain_next
//                      |                  |
//                 older of key A     older of key B      key_older
//                      |
//                 oldest of key A
//
// kRandom uses `random` only: the free slots in no order.
struct alignas(64) SlotAllocator::Shard {
  struct Stack {
    uint32_t newest = kNone;
    uint32_t oldest = kNone;
  };

  ShardMutex mutex;
  // Waiters that want to hear of the next release. Set in all shards or none.
  uint32_t waiters ABSL_GUARDED_BY(mutex) = 0;
  // Counts, so that TryExhaustively sees whether it missed one.
  uint64_t releases ABSL_GUARDED_BY(mutex) = 0;
  Stack recent ABSL_GUARDED_BY(mutex);
  Stack recent_keyless ABSL_GUARDED_BY(mutex);
  uint32_t* random ABSL_GUARDED_BY(mutex) = nullptr;

  // The rest is written under the lock and read without it, to decide whether
  // locking is worth it. Wrong for a moment at worst.
  std::atomic<uint32_t> free{0};
  std::atomic<uint32_t> free_keyless{0};
  // released_at of recent.oldest.
  std::atomic<uint32_t> oldest_released_at{0};
  // kRandom: the generator of this core. Two threads that take turns on the
  // core may draw the same number; they still get different slots.
  std::atomic<uint64_t> random_state{0};
  // The newest slot of a chain's first key, or kNone.
  uint32_t bucket_count = 0;
  std::unique_ptr<std::atomic<uint32_t>[]> buckets;

  std::atomic<uint32_t>& BucketOf(uint64_t key) const {
    return buckets[Mix(key) & (bucket_count - 1)];
  }

  // A change of one of the counts, which only the lock's holder makes.
  static void Adjust(std::atomic<uint32_t>& count, uint32_t by) {
    count.store(count.load(std::memory_order_relaxed) + by,
                std::memory_order_relaxed);
  }

  // Puts a slot on top of a stack, and takes it out from anywhere in it.
  static void Push(Node* nodes, Stack& stack, uint32_t slot);
  static void Remove(Node* nodes, Stack& stack, uint32_t slot);

  // kAffinity, key != 0.
  void Insert(Node* nodes, uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  void Erase(Node* nodes, uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // The newest free slot of the key; kNone.
  uint32_t Find(const Node* nodes, uint64_t key) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  void PublishOldest(const Node* nodes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
};

void SlotAllocator::Shard::Push(Node* nodes, Stack& stack, uint32_t slot) {
  Node& node = nodes[slot];
  node.newer = kNone;
  node.older = stack.newest;
  if (stack.newest != kNone) {
    nodes[stack.newest].newer = slot;
  } else {
    stack.oldest = slot;
  }
  stack.newest = slot;
}

void SlotAllocator::Shard::Remove(Node* nodes, Stack& stack, uint32_t slot) {
  const Node& node = nodes[slot];
  if (node.newer != kNone) {
    nodes[node.newer].older = node.older;
  } else {
    stack.newest = node.older;
  }
  if (node.older != kNone) {
    nodes[node.older].newer = node.newer;
  } else {
    stack.oldest = node.newer;
  }
}

void SlotAllocator::Shard::PublishOldest(const Node* nodes) {
  if (recent.oldest != kNone) {
    oldest_released_at.store(nodes[recent.oldest].released_at,
                             std::memory_order_relaxed);
  }
}

uint32_t SlotAllocator::Shard::Find(const Node* nodes, uint64_t key) const {
  uint32_t slot = BucketOf(key).load(std::memory_order_relaxed);
  while (slot != kNone && nodes[slot].key != key) {
    slot = nodes[slot].chain_next;
  }
  return slot;
}

void SlotAllocator::Shard::Insert(Node* nodes, uint32_t slot) {
  Node& node = nodes[slot];
  const bool was_empty = recent.oldest == kNone;
  Push(nodes, recent, slot);
  if (was_empty) PublishOldest(nodes);

  std::atomic<uint32_t>& bucket = BucketOf(node.key);
  const uint32_t first = Find(nodes, node.key);
  node.key_newer = kNone;
  node.key_older = first;
  // Takes the place of the key's newest in the chain, or goes to its front.
  if (first != kNone) {
    nodes[first].key_newer = slot;
    node.chain_previous = nodes[first].chain_previous;
    node.chain_next = nodes[first].chain_next;
  } else {
    node.chain_previous = kNone;
    node.chain_next = bucket.load(std::memory_order_relaxed);
  }
  if (node.chain_previous != kNone) {
    nodes[node.chain_previous].chain_next = slot;
  } else {
    bucket.store(slot, std::memory_order_relaxed);
  }
  if (node.chain_next != kNone) nodes[node.chain_next].chain_previous = slot;
}

void SlotAllocator::Shard::Erase(Node* nodes, uint32_t slot) {
  const Node& node = nodes[slot];
  const bool was_oldest = recent.oldest == slot;
  Remove(nodes, recent, slot);
  if (was_oldest) PublishOldest(nodes);

  if (node.key_older != kNone) nodes[node.key_older].key_newer = node.key_newer;
  if (node.key_newer != kNone) {
    nodes[node.key_newer].key_older = node.key_older;
    return;  // not the newest of its key: not in the chain
  }
  // The next one of the key takes its place in the chain, if there is one.
  const uint32_t heir = node.key_older;
  const uint32_t behind = heir != kNone ? heir : node.chain_next;
  const uint32_t before = heir != kNone ? heir : node.chain_previous;
  if (heir != kNone) {
    nodes[heir].chain_previous = node.chain_previous;
    nodes[heir].chain_next = node.chain_next;
  }
  if (node.chain_previous != kNone) {
    nodes[node.chain_previous].chain_next = behind;
  } else {
    BucketOf(node.key).store(behind, std::memory_order_relaxed);
  }
  if (node.chain_next != kNone) nodes[node.chain_next].chain_previous = before;
}

SlotAllocator::SlotAllocator(uint32_t slots, SlotStrategy strategy,
                             uint64_t seed, uint32_t shards,
                             const char* capacity_option)
    : capacity_(slots),
      strategy_(strategy),
      shard_count_(ShardsFor(slots, shards)),
      capacity_option_(capacity_option),
      fresh_(strategy == SlotStrategy::kRandom ? slots : 0),
      nodes_(new Node[slots]),
      shards_(new Shard[shard_count_]) {
  static_assert(sizeof(Node) == kBytesPerSlot);
  if (strategy_ == SlotStrategy::kRandom) {
    // Slot s belongs to shard s % shard_count_ for good.
    random_slots_.reset(new uint32_t[capacity_]);
    uint32_t* next = random_slots_.get();
    for (uint32_t s = 0; s < shard_count_; ++s) {
      Shard& shard = shards_[s];
      ShardLock lock(&shard.mutex);
      shard.random = next;
      uint32_t count = 0;
      for (uint64_t slot = s; slot < capacity_; slot += shard_count_) {
        shard.random[count++] = static_cast<uint32_t>(slot);
      }
      shard.free.store(count, std::memory_order_relaxed);
      shard.random_state.store(Mix(seed + s), std::memory_order_relaxed);
      next += count;
    }
  }
  if (strategy_ == SlotStrategy::kAffinity) {
    const uint32_t buckets =
        std::min(kMaxBuckets, std::bit_ceil(std::max(capacity_, uint32_t{16})));
    for (uint32_t s = 0; s < shard_count_; ++s) {
      shards_[s].bucket_count = buckets;
      shards_[s].buckets.reset(new std::atomic<uint32_t>[buckets]);
      for (uint32_t b = 0; b < buckets; ++b) {
        shards_[s].buckets[b].store(kNone, std::memory_order_relaxed);
      }
    }
  }
}

SlotAllocator::~SlotAllocator() = default;

uint32_t SlotAllocator::CoreShard() const {
  if (shard_count_ == 1) return 0;
  const int core = sched_getcpu();
  return core < 0 ? 0 : static_cast<uint32_t>(core) % shard_count_;
}

SlotAllocator::Pick SlotAllocator::Hand(uint32_t slot) {
  nodes_[slot].lifecycle.Move(SlotLifecycle::kReturning,
                              std::memory_order_relaxed);
  return {slot, nodes_[slot].key};
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

std::optional<SlotAllocator::Pick> SlotAllocator::TakeNewest(Shard& shard) {
  if (shard.free.load(std::memory_order_relaxed) == 0) return std::nullopt;
  ShardLock lock(&shard.mutex);
  const uint32_t slot = shard.recent.newest;
  if (slot == kNone) return std::nullopt;
  Shard::Remove(nodes_.get(), shard.recent, slot);
  Shard::Adjust(shard.free, -1);
  return Hand(slot);
}

std::optional<SlotAllocator::Pick> SlotAllocator::TakeWithKey(Shard& shard,
                                                              uint64_t key) {
  if (shard.BucketOf(key).load(std::memory_order_relaxed) == kNone) {
    return std::nullopt;
  }
  ShardLock lock(&shard.mutex);
  const uint32_t slot = shard.Find(nodes_.get(), key);
  if (slot == kNone) return std::nullopt;
  shard.Erase(nodes_.get(), slot);
  Shard::Adjust(shard.free, -1);
  return Hand(slot);
}

std::optional<SlotAllocator::Pick> SlotAllocator::TakeKeyless(Shard& shard) {
  if (shard.free_keyless.load(std::memory_order_relaxed) == 0) {
    return std::nullopt;
  }
  ShardLock lock(&shard.mutex);
  const uint32_t slot = shard.recent_keyless.newest;
  if (slot == kNone) return std::nullopt;
  Shard::Remove(nodes_.get(), shard.recent_keyless, slot);
  Shard::Adjust(shard.free_keyless, -1);
  Shard::Adjust(shard.free, -1);
  return Hand(slot);
}

std::optional<SlotAllocator::Pick> SlotAllocator::TakeOldest(Shard& shard) {
  ShardLock lock(&shard.mutex);
  const uint32_t slot = shard.recent.oldest;
  if (slot == kNone) return std::nullopt;
  shard.Erase(nodes_.get(), slot);
  Shard::Adjust(shard.free, -1);
  return Hand(slot);
}

SlotAllocator::Shard& SlotAllocator::ShardFrom(uint32_t home,
                                               uint32_t distance) const {
  const uint32_t at = home + distance;
  return shards_[at < shard_count_ ? at : at - shard_count_];
}

uint64_t SlotAllocator::ReleasesOf(Shard& shard) {
  ShardLock lock(&shard.mutex);
  return shard.releases;
}

std::optional<SlotAllocator::Pick> SlotAllocator::TakeRandom(Shard& shard,
                                                             uint64_t random) {
  ShardLock lock(&shard.mutex);
  const uint32_t count = shard.free.load(std::memory_order_relaxed);
  if (count == 0) return std::nullopt;
  // The high half of the product: uniform to within count / 2^32.
  const uint32_t at = static_cast<uint32_t>(
      (uint64_t{static_cast<uint32_t>(random)} * count) >> 32);
  const uint32_t slot = shard.random[at];
  shard.random[at] = shard.random[count - 1];
  Shard::Adjust(shard.free, -1);
  return Hand(slot);
}

std::optional<SlotAllocator::Pick> SlotAllocator::TryNextAvailable() {
  const uint32_t home = CoreShard();
  for (uint32_t i = 0; i < shard_count_; ++i) {
    std::optional<Pick> pick = TakeNewest(ShardFrom(home, i));
    if (pick.has_value()) return pick;
  }
  return TakeFresh();
}

std::optional<SlotAllocator::Pick> SlotAllocator::TryAffinity(uint64_t key) {
  const uint32_t home = CoreShard();
  if (key != 0) {
    for (uint32_t i = 0; i < shard_count_; ++i) {
      std::optional<Pick> pick = TakeWithKey(ShardFrom(home, i), key);
      if (pick.has_value()) return pick;
    }
  }
  for (uint32_t i = 0; i < shard_count_; ++i) {
    std::optional<Pick> pick = TakeKeyless(ShardFrom(home, i));
    if (pick.has_value()) return pick;
  }
  if (std::optional<Pick> pick = TakeFresh(); pick.has_value()) return pick;

  // Another key has to go. Ages are distances, since the clock wraps around.
  const uint32_t now = takeovers_.load(std::memory_order_relaxed);
  Shard* oldest = nullptr;
  uint32_t oldest_age = 0;
  for (uint32_t i = 0; i < shard_count_; ++i) {
    Shard& shard = ShardFrom(home, i);
    if (shard.free.load(std::memory_order_relaxed) == 0) continue;
    const uint32_t age =
        now - shard.oldest_released_at.load(std::memory_order_relaxed);
    if (oldest == nullptr || age > oldest_age) {
      oldest = &shard;
      oldest_age = age;
    }
  }
  if (oldest == nullptr) return std::nullopt;
  std::optional<Pick> pick = TakeOldest(*oldest);
  if (pick.has_value()) takeovers_.fetch_add(1, std::memory_order_relaxed);
  return pick;
}

std::optional<SlotAllocator::Pick> SlotAllocator::TryRandom() {
  std::atomic<uint64_t>& state = shards_[CoreShard()].random_state;
  const uint64_t drawn = state.load(std::memory_order_relaxed) + kDefaultSeed;
  state.store(drawn, std::memory_order_relaxed);
  const uint64_t random = Mix(drawn);
  uint64_t total = 0;
  for (uint32_t s = 0; s < shard_count_; ++s) {
    total += shards_[s].free.load(std::memory_order_relaxed);
  }
  // The shard by the high half of the number, in proportion to its free slots;
  // the slot in it by the low half.
  uint64_t at = ((random >> 32) * total) >> 32;
  for (uint32_t s = 0; s < shard_count_; ++s) {
    const uint32_t free = shards_[s].free.load(std::memory_order_relaxed);
    if (at < free) return TakeRandom(shards_[s], random);
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

std::optional<SlotAllocator::Pick> SlotAllocator::TakeAny(Shard& shard,
                                                          uint64_t key) {
  switch (strategy_) {
    case SlotStrategy::kNextAvailable:
      return TakeNewest(shard);
    case SlotStrategy::kRandom:
      return TakeRandom(shard, Mix(key));
    case SlotStrategy::kAffinity: {
      std::optional<Pick> pick;
      if (key != 0) pick = TakeWithKey(shard, key);
      if (!pick.has_value()) pick = TakeKeyless(shard);
      if (!pick.has_value()) pick = TakeOldest(shard);
      return pick;
    }
  }
  return std::nullopt;
}

// If no shard saw a release between two looks, and each was empty at its first,
// then all were empty at once: between the looks.
std::optional<SlotAllocator::Pick> SlotAllocator::TryExhaustively(
    uint64_t key) {
  const uint32_t home = CoreShard();
  while (true) {
    // Fresh slots never come back, so a look at the beginning is enough.
    if (std::optional<Pick> pick = TakeFresh(); pick.has_value()) return pick;
    uint64_t before = 0;
    for (uint32_t i = 0; i < shard_count_; ++i) {
      before += ReleasesOf(ShardFrom(home, i));
    }
    for (uint32_t i = 0; i < shard_count_; ++i) {
      std::optional<Pick> pick = TakeAny(ShardFrom(home, i), key);
      if (pick.has_value()) return pick;
    }
    uint64_t after = 0;
    for (uint32_t i = 0; i < shard_count_; ++i) {
      after += ReleasesOf(ShardFrom(home, i));
    }
    if (before == after) return std::nullopt;
  }
}

void SlotAllocator::ChangeWaiters(int change) {
  for (uint32_t s = 0; s < shard_count_; ++s) {
    ShardLock lock(&shards_[s].mutex);
    shards_[s].waiters += static_cast<uint32_t>(change);
  }
}

void SlotAllocator::WakeOne() {
  MutexLock lock(&wait_mutex_);
  ++wait_epoch_;
  wait_changed_.Signal();
}

// Announces itself in every shard before it looks: a release that the look
// misses finds the announcement, under the same lock, and moves the epoch.
std::optional<SlotAllocator::Pick> SlotAllocator::WaitUntil(
    uint64_t key, absl::Time deadline) {
  ChangeWaiters(+1);
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
  ChangeWaiters(-1);
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
  Node& node = nodes_[slot];
  node.key = affinity_key;
  const uint32_t home =
      strategy_ == SlotStrategy::kRandom ? slot % shard_count_ : CoreShard();
  Shard& shard = shards_[home];
  bool somebody_waits;
  {
    ShardLock lock(&shard.mutex);
    switch (strategy_) {
      case SlotStrategy::kNextAvailable:
        Shard::Push(nodes_.get(), shard.recent, slot);
        break;
      case SlotStrategy::kRandom:
        shard.random[shard.free.load(std::memory_order_relaxed)] = slot;
        break;
      case SlotStrategy::kAffinity:
        if (affinity_key == 0) {
          Shard::Push(nodes_.get(), shard.recent_keyless, slot);
          Shard::Adjust(shard.free_keyless, 1);
        } else {
          node.released_at = takeovers_.load(std::memory_order_relaxed);
          shard.Insert(nodes_.get(), slot);
        }
        break;
    }
    Shard::Adjust(shard.free, 1);
    ++shard.releases;
    somebody_waits = shard.waiters != 0;
  }
  if (somebody_waits) WakeOne();
}

void SlotAllocator::Quarantine(uint32_t slot) {
  if (slot >= capacity_ ||
      !nodes_[slot].lifecycle.TryMove(SlotLifecycle::kReturning,
                                      SlotLifecycle::kQuarantined)) {
    Die("Quarantine", slot, capacity_);
  }
  const uint32_t before = quarantined_.fetch_add(1, std::memory_order_acq_rel);
  if (before + 1 == capacity_) {
    // No slot will come back: those that wait are to give up.
    MutexLock lock(&wait_mutex_);
    ++wait_epoch_;
    wait_changed_.SignalAll();
  }
}

void SlotAllocator::ReturnMember(uint32_t slot, uint32_t members,
                                 uint64_t affinity_key, bool failed) {
  if (members > 1) {
    Node& node = nodes_[slot];
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
    back += shards_[s].free.load(std::memory_order_relaxed);
  }
  // The counts are of slightly different moments.
  return static_cast<uint32_t>(out > back ? out - back : 0);
}

uint32_t SlotAllocator::ever_used() const {
  return std::min(fresh_.load(std::memory_order_relaxed), capacity_);
}

}  // namespace firsttouch
