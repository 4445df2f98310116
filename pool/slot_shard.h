// The free slots of one core, for slot_allocator.h: how they are kept so that
// the one that the strategy asks for is at hand.
//
// Internal to this folder. Threads: any. Not async-signal-safe.

#ifndef FIRSTTOUCH_POOL_SLOT_SHARD_H_
#define FIRSTTOUCH_POOL_SLOT_SHARD_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/pool/slot_strategy.h"

namespace firsttouch {

// Instead of a slot's number.
inline constexpr uint32_t kNoSlot = std::numeric_limits<uint32_t>::max();

// Numbers that are near each other become far apart.
inline uint64_t MixBits(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93;
  x ^= x >> 32;
  return x;
}

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

// One slot, in a cache line of its own. All but the atomics belongs to the lock
// of the shard that holds the slot while it is free, and to nobody else while
// it is in use.
struct alignas(64) SlotNode {
  uint64_t key = 0;
  // kFree, kReturning from Acquire to Release, or kQuarantined; compared, so
  // that of two Releases one sees that it is the second.
  LifecycleCell lifecycle;
  // What the allocator's clock of takeovers was at the release.
  uint32_t released_at = 0;
  // Neighbours in three lists; not for kRandom. In SlotShard::recent_
  // or recent_keyless_:
  uint32_t newer = kNoSlot;
  uint32_t older = kNoSlot;
  // Among the free slots of the same key and shard, newest first:
  uint32_t key_newer = kNoSlot;
  uint32_t key_older = kNoSlot;
  // The newest of each key only: its neighbours in the bucket's chain.
  uint32_t chain_previous = kNoSlot;
  uint32_t chain_next = kNoSlot;
  // ReturnMember: how many have come back, and whether one had failed.
  std::atomic<uint32_t> members_back{0};
  std::atomic<bool> member_failed{false};
};

// The free slots of one core.
//
// kNextAvailable uses `recent_` only, as a stack. kAffinity puts slots with key
// 0 into `recent_keyless_`, as a stack; the others are in `recent_` (for the
// oldest) and, grouped by key, in the chain of the key's bucket (for the newest
// of a key):
//
//   buckets_[h] -> newest of key A -> newest of key B     chain_next
//                      |                  |
//                 older of key A     older of key B      key_older
//                      |
//                 oldest of key A
//
// kRandom uses `random_` only: the free slots in no order.
class alignas(64) SlotShard {
 public:
  // Before it is used: what the strategy needs. `nodes` are those of all slots.
  // kAffinity: `buckets` is a power of two. kRandom: `slots` has room for all
  // slots of the shard, of which `count` are there, and are free.
  void Init(SlotNode* nodes) { nodes_ = nodes; }
  void InitBuckets(uint32_t buckets);
  void InitRandom(uint32_t* slots, uint32_t count, uint64_t seed);

  // Take a slot out, whose node is the caller's from then on; kNoSlot where
  // there is no such one. Those but TakeOldest and TakeRandom lock only where
  // one is to be seen.
  //
  // The one released last (kNextAvailable).
  uint32_t TakeNewest();
  // The one released last of those with a key, or with key 0; the one released
  // first of those with any key (kAffinity).
  uint32_t TakeWithKey(uint64_t key);
  uint32_t TakeKeyless();
  uint32_t TakeOldest();
  // kRandom.
  uint32_t TakeRandom(uint64_t random);
  // One with the key if there is one, as the strategy has it; else any.
  uint32_t TakeAny(SlotStrategy strategy, uint64_t key);

  // Puts a slot in whose node has its key. `takeovers` is the allocator's
  // clock, for SlotNode::released_at. Whether a waiter wants to hear of it.
  bool Put(SlotStrategy strategy, uint32_t slot,
           const std::atomic<uint32_t>& takeovers);

  // How often a slot was put in.
  uint64_t releases();
  void ChangeWaiters(int change);

  // Of the moment, without the lock; wrong for a moment at worst.
  uint32_t free() const { return free_.load(std::memory_order_relaxed); }
  // SlotNode::released_at of the one that was put in first of those with a key.
  uint32_t oldest_released_at() const {
    return oldest_released_at_.load(std::memory_order_relaxed);
  }
  // kRandom: the next number of this core's generator. Two threads that take
  // turns on the core may draw the same one; they still get different slots.
  uint64_t NextRandom(uint64_t step) {
    const uint64_t drawn = random_state_.load(std::memory_order_relaxed) + step;
    random_state_.store(drawn, std::memory_order_relaxed);
    return MixBits(drawn);
  }

 private:
  struct Stack {
    uint32_t newest = kNoSlot;
    uint32_t oldest = kNoSlot;
  };

  std::atomic<uint32_t>& BucketOf(uint64_t key) const {
    return buckets_[MixBits(key) & (bucket_count_ - 1)];
  }

  // A change of one of the counts, which only the lock's holder makes.
  static void Adjust(std::atomic<uint32_t>& count, uint32_t by) {
    count.store(count.load(std::memory_order_relaxed) + by,
                std::memory_order_relaxed);
  }

  // Puts a slot on top of a stack, and takes it out from anywhere in it.
  void Push(Stack& stack, uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remove(Stack& stack, uint32_t slot)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // kAffinity, key != 0.
  void Insert(uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Erase(uint32_t slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The newest free slot of the key; kNoSlot.
  uint32_t Find(uint64_t key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PublishOldest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ShardMutex mutex_;
  // Waiters that want to hear of the next release. Set in all shards or none.
  uint32_t waiters_ ABSL_GUARDED_BY(mutex_) = 0;
  // Counts, so that a look at all shards sees whether it missed one.
  uint64_t releases_ ABSL_GUARDED_BY(mutex_) = 0;
  Stack recent_ ABSL_GUARDED_BY(mutex_);
  Stack recent_keyless_ ABSL_GUARDED_BY(mutex_);
  uint32_t* random_ ABSL_GUARDED_BY(mutex_) = nullptr;
  SlotNode* nodes_ = nullptr;

  // The rest is written under the lock and read without it, to decide whether
  // locking is worth it. Wrong for a moment at worst.
  std::atomic<uint32_t> free_{0};
  std::atomic<uint32_t> free_keyless_{0};
  // released_at of recent_.oldest.
  std::atomic<uint32_t> oldest_released_at_{0};
  std::atomic<uint64_t> random_state_{0};
  // The newest slot of a chain's first key, or kNoSlot.
  uint32_t bucket_count_ = 0;
  std::unique_ptr<std::atomic<uint32_t>[]> buckets_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_SLOT_SHARD_H_
