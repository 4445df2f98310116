// Knows which slots of a pool are free, and chooses one of them. Hands out
// numbers in [0, capacity()); the caller decides what a number stands for (an
// instance with its memories, a stack, a table).
//
//   SlotAllocator allocator(64, SlotStrategy::kAffinity);
//   absl::StatusOr<SlotAllocator::Pick> pick = allocator.Acquire(image->id());
//   if (!pick.ok()) return pick.status();        // ResourceExhausted
//   if (pick->last_key != image->id()) Bind(pick->slot, *image);
//   ... run ...
//   if (Reset(pick->slot).ok()) allocator.Release(pick->slot, image->id());
//   else allocator.Quarantine(pick->slot);
//
// SCALING. Free slots are kept in shards, one for each core. Acquire and
// Release lock only the shard of the core they run on, as long as it has what
// is asked for; otherwise Acquire looks into the other shards (without locking
// those that visibly have nothing) and takes from there. A released slot goes
// to the releasing core's shard, where it is warm. kRandom is the exception:
// its slots have a fixed shard, and every Acquire picks a random one, so that
// each free slot is as likely as any other.
//
// Only the constructor allocates memory: 64 bytes per slot and at most 5 KiB
// per shard. Acquire and Release allocate nothing unless Acquire fails (the
// error's text).
//
// Thread safety: all methods from any thread. Not async-signal-safe.
#ifndef FIRSTTOUCH_POOL_SLOT_ALLOCATOR_H_
#define FIRSTTOUCH_POOL_SLOT_ALLOCATOR_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/pool/slot_strategy.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {

struct SlotNode;  // slot_shard.h
class SlotShard;

class SlotAllocator {
 public:
  static constexpr uint64_t kDefaultSeed = 0x9e3779b97f4a7c15;
  // One shard for each configured core, at most 64.
  static constexpr uint32_t kShardPerCore = 0;
  // The bytes that the constructor allocates for each slot.
  static constexpr uint64_t kBytesPerSlot = 64;

  struct Pick {
    uint32_t slot;
    // The key of the slot's last Release; 0 if it was never released. Reported
    // for every strategy.
    uint64_t last_key;
  };

  // `seed` is for kRandom only. `shards` other than kShardPerCore is for tests
  // and measurements; with 1, the strategies' orders are exact.
  // `capacity_option` (static storage) is the option that an error says to
  // raise.
  SlotAllocator(uint32_t slots, SlotStrategy strategy,
                uint64_t seed = kDefaultSeed, uint32_t shards = kShardPerCore,
                const char* capacity_option = "LayoutOptions::instances");
  SlotAllocator(const SlotAllocator&) = delete;
  SlotAllocator& operator=(const SlotAllocator&) = delete;
  ~SlotAllocator();

  // Takes a free slot; it belongs to the caller until Release or Quarantine.
  // `affinity_key` says what the caller is going to put there; 0 for nothing in
  // particular. If no slot is free, waits for one until `deadline`; by default
  // it does not wait. Waiters are not served in any particular order.
  // ResourceExhausted if none became free: the text names the capacity, the
  // slots in use, those quarantined, and the option to raise. The same error
  // comes at once, whatever the deadline, when all slots are quarantined.
  absl::StatusOr<Pick> Acquire(uint64_t affinity_key,
                               absl::Time deadline = absl::InfinitePast());

  // Gives back a slot that is in use and clean, last used for `affinity_key`
  // (0: nothing worth finding again). Ends the process with a line on stderr if
  // the slot is not in use: giving one slot to two owners would be worse.
  void Release(uint32_t slot, uint64_t affinity_key);

  // Takes a slot that is in use out of circulation for good: its contents could
  // not be restored. Ends the process as Release does if it is not in use.
  void Quarantine(uint32_t slot);

  // For a slot of `members` parts that come back one by one, in any order and
  // from any threads: the last of them gives the slot back, as by Release with
  // that call's key, or by Quarantine where one had `failed`. Each part must
  // come back once; this is not checked.
  void ReturnMember(uint32_t slot, uint32_t members, uint64_t affinity_key,
                    bool failed);

  uint32_t capacity() const { return capacity_; }
  SlotStrategy strategy() const { return strategy_; }
  uint32_t shards() const { return shard_count_; }
  // Momentary counts; exact while no other thread acquires or releases.
  // capacity() = in_use() + quarantined() + free.
  uint32_t in_use() const;
  uint32_t quarantined() const {
    return quarantined_.load(std::memory_order_relaxed);
  }
  // The number of slots that were handed out at least once. Under kRandom,
  // capacity().
  uint32_t ever_used() const;

 private:
  uint32_t CoreShard() const;
  // The shards in the order of a walk that begins at `home`.
  SlotShard& ShardFrom(uint32_t home, uint32_t distance) const;

  // One attempt, following the strategy; nullopt: it found no free slot.
  std::optional<Pick> TryAcquire(uint64_t key);
  std::optional<Pick> TryNextAvailable();
  std::optional<Pick> TryAffinity(uint64_t key);
  std::optional<Pick> TryRandom();
  std::optional<Pick> TakeFresh();
  // Looks into every shard. Returns nullopt only if there was a moment at which
  // no slot was free.
  std::optional<Pick> TryExhaustively(uint64_t key);
  std::optional<Pick> WaitUntil(uint64_t key, absl::Time deadline);
  void WakeOne();
  // The Pick of a slot that was taken out of its shard; nullopt for kNoSlot.
  std::optional<Pick> Hand(uint32_t slot);
  absl::Status ExhaustedError() const;

  const uint32_t capacity_;
  const SlotStrategy strategy_;
  const uint32_t shard_count_;
  const char* const capacity_option_;
  // Slots from this number on were never handed out. Not for kRandom. Written
  // only while the pool still grows into never-used slots.
  alignas(64) std::atomic<uint32_t> fresh_;
  // Counts how often affinity took a slot from another key: the clock by which
  // shards compare their oldest slots.
  std::atomic<uint32_t> takeovers_{0};
  std::atomic<uint32_t> quarantined_{0};
  std::unique_ptr<SlotNode[]> nodes_;
  std::unique_ptr<SlotShard[]> shards_;
  // kRandom: the shards' arrays of free slots, one after the other.
  std::unique_ptr<uint32_t[]> random_slots_;

  // Lock order: a shard's lock and wait_mutex_ are never held together.
  Mutex wait_mutex_;
  CondVar wait_changed_;
  // Changes with every release or quarantine that a waiter should look at.
  uint64_t wait_epoch_ ABSL_GUARDED_BY(wait_mutex_) = 0;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_SLOT_ALLOCATOR_H_
