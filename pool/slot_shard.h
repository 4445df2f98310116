// The free slots of one core, for slot_allocator.h, kept so that the slot which
// the strategy asks for is found at once.
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

// Stands for "no slot".
inline constexpr uint32_t kNoSlot = std::numeric_limits<uint32_t>::max();

// Maps numbers that are near each other to numbers that are far apart.
inline uint64_t MixBits(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93;
  x ^= x >> 32;
  return x;
}

// A shard's lock. Not Mutex: locking and unlocking that takes more than three
// times as long, which would be most of the cost of Acquire and Release. Held
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

// One slot, in a cache line of its own. While the slot is free, all fields but
// the atomics are guarded by the lock of the shard that holds it; while it is
// in use, nothing touches them.
struct alignas(64) SlotNode {
  uint64_t key = 0;
  // kFree, kReturning from Acquire to Release, or kQuarantined; changed by
  // compare-exchange, so that the second of two Releases is detected.
  LifecycleCell lifecycle;
  // The allocator's clock of takeovers at the release.
  uint32_t released_at = 0;
  // Neighbours in three lists; not for kRandom. In SlotShard::recent_
  // or recent_keyless_:
  uint32_t newer = kNoSlot;
  uint32_t older = kNoSlot;
  // Among the free slots of the same key and shard, newest first:
  uint32_t key_newer = kNoSlot;
  uint32_t key_older = kNoSlot;
  // Only in the newest slot of each key: its neighbours in the bucket's chain.
  uint32_t chain_previous = kNoSlot;
  uint32_t chain_next = kNoSlot;
  // ReturnMember: how many have come back, and whether one has failed.
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
// kRandom uses `random_` only: the free slots in arbitrary order.
class alignas(64) SlotShard {
 public:
  // Called before first use, with what the strategy needs. `nodes` are those of
  // all slots. kAffinity: `buckets` is a power of two. kRandom: `slots` has
  // room for all slots of the shard; the first `count` entries are its free
  // slots.
  void Init(SlotNode* nodes) { nodes_ = nodes; }
  void InitBuckets(uint32_t buckets);
  void InitRandom(uint32_t* slots, uint32_t count, uint64_t seed);

  // Each takes a slot out, whose node belongs to the caller from then on;
  // kNoSlot where there is no such slot. All but TakeOldest and TakeRandom lock
  // only where a slot is visible.
  //
  // The slot released last (kNextAvailable).
  uint32_t TakeNewest();
  // The slot released last of those with a key, or with key 0; the slot
  // released first of those with any key (kAffinity).
  uint32_t TakeWithKey(uint64_t key);
  uint32_t TakeKeyless();
  uint32_t TakeOldest();
  // kRandom.
  uint32_t TakeRandom(uint64_t random);
  // A slot with the key if there is one, as the strategy has it; else any slot.
  uint32_t TakeAny(SlotStrategy strategy, uint64_t key);

  // Puts in a slot whose node has its key. `takeovers` is the allocator's
  // clock, for SlotNode::released_at. Returns whether a waiter wants to be
  // told.
  bool Put(SlotStrategy strategy, uint32_t slot,
           const std::atomic<uint32_t>& takeovers);

  // The number of times that a slot was put in.
  uint64_t releases();
  void ChangeWaiters(int change);

  // Momentary, without the lock; outdated for a moment at worst.
  uint32_t free() const { return free_.load(std::memory_order_relaxed); }
  // SlotNode::released_at of the slot that was put in first of those with a
  // key.
  uint32_t oldest_released_at() const {
    return oldest_released_at_.load(std::memory_order_relaxed);
  }
  // kRandom: the next number of this core's generator. Two threads that take
  // turns on the core may draw the same number; they still get different slots.
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

  // Changes one of the counts; only the lock's holder does that.
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
  // The newest free slot of the key, or kNoSlot.
  uint32_t Find(uint64_t key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PublishOldest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ShardMutex mutex_;
  // The waiters that want to be told of the next release. Set in all shards or
  // none.
  uint32_t waiters_ ABSL_GUARDED_BY(mutex_) = 0;
  // Counts releases, so that a look at all shards sees whether it missed one.
  uint64_t releases_ ABSL_GUARDED_BY(mutex_) = 0;
  Stack recent_ ABSL_GUARDED_BY(mutex_);
  Stack recent_keyless_ ABSL_GUARDED_BY(mutex_);
  uint32_t* random_ ABSL_GUARDED_BY(mutex_) = nullptr;
  SlotNode* nodes_ = nullptr;

  // The rest is written under the lock and read without it, to decide whether
  // locking is worth it. Outdated for a moment at worst.
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
