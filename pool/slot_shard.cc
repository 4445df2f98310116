#include "firsttouch/pool/slot_shard.h"

#include <atomic>
#include <cstdint>

#include "firsttouch/pool/slot_strategy.h"

namespace firsttouch {

void SlotShard::Push(Stack& stack, uint32_t slot) {
  SlotNode& node = nodes_[slot];
  node.newer = kNoSlot;
  node.older = stack.newest;
  if (stack.newest != kNoSlot) {
    nodes_[stack.newest].newer = slot;
  } else {
    stack.oldest = slot;
  }
  stack.newest = slot;
}

void SlotShard::Remove(Stack& stack, uint32_t slot) {
  const SlotNode& node = nodes_[slot];
  if (node.newer != kNoSlot) {
    nodes_[node.newer].older = node.older;
  } else {
    stack.newest = node.older;
  }
  if (node.older != kNoSlot) {
    nodes_[node.older].newer = node.newer;
  } else {
    stack.oldest = node.newer;
  }
}

void SlotShard::PublishOldest() {
  if (recent_.oldest != kNoSlot) {
    oldest_released_at_.store(nodes_[recent_.oldest].released_at,
                              std::memory_order_relaxed);
  }
}

uint32_t SlotShard::Find(uint64_t key) const {
  uint32_t slot = BucketOf(key).load(std::memory_order_relaxed);
  while (slot != kNoSlot && nodes_[slot].key != key) {
    slot = nodes_[slot].chain_next;
  }
  return slot;
}

void SlotShard::Insert(uint32_t slot) {
  SlotNode& node = nodes_[slot];
  const bool was_empty = recent_.oldest == kNoSlot;
  Push(recent_, slot);
  if (was_empty) PublishOldest();

  std::atomic<uint32_t>& bucket = BucketOf(node.key);
  const uint32_t first = Find(node.key);
  node.key_newer = kNoSlot;
  node.key_older = first;
  // Takes the place of the key's newest slot in the chain, or goes to the front
  // of the chain.
  if (first != kNoSlot) {
    nodes_[first].key_newer = slot;
    node.chain_previous = nodes_[first].chain_previous;
    node.chain_next = nodes_[first].chain_next;
  } else {
    node.chain_previous = kNoSlot;
    node.chain_next = bucket.load(std::memory_order_relaxed);
  }
  if (node.chain_previous != kNoSlot) {
    nodes_[node.chain_previous].chain_next = slot;
  } else {
    bucket.store(slot, std::memory_order_relaxed);
  }
  if (node.chain_next != kNoSlot) nodes_[node.chain_next].chain_previous = slot;
}

void SlotShard::Erase(uint32_t slot) {
  const SlotNode& node = nodes_[slot];
  const bool was_oldest = recent_.oldest == slot;
  Remove(recent_, slot);
  if (was_oldest) PublishOldest();

  if (node.key_older != kNoSlot)
    nodes_[node.key_older].key_newer = node.key_newer;
  if (node.key_newer != kNoSlot) {
    nodes_[node.key_newer].key_older = node.key_older;
    return;  // not the newest of its key: not in the chain
  }
  // The next slot of the key, if there is one, takes its place in the chain.
  const uint32_t heir = node.key_older;
  const uint32_t behind = heir != kNoSlot ? heir : node.chain_next;
  const uint32_t before = heir != kNoSlot ? heir : node.chain_previous;
  if (heir != kNoSlot) {
    nodes_[heir].chain_previous = node.chain_previous;
    nodes_[heir].chain_next = node.chain_next;
  }
  if (node.chain_previous != kNoSlot) {
    nodes_[node.chain_previous].chain_next = behind;
  } else {
    BucketOf(node.key).store(behind, std::memory_order_relaxed);
  }
  if (node.chain_next != kNoSlot)
    nodes_[node.chain_next].chain_previous = before;
}

void SlotShard::InitBuckets(uint32_t buckets) {
  bucket_count_ = buckets;
  buckets_.reset(new std::atomic<uint32_t>[buckets]);
  for (uint32_t b = 0; b < buckets; ++b) {
    buckets_[b].store(kNoSlot, std::memory_order_relaxed);
  }
}

void SlotShard::InitRandom(uint32_t* slots, uint32_t count, uint64_t seed) {
  ShardLock lock(&mutex_);
  random_ = slots;
  free_.store(count, std::memory_order_relaxed);
  random_state_.store(MixBits(seed), std::memory_order_relaxed);
}

uint32_t SlotShard::TakeNewest() {
  if (free() == 0) return kNoSlot;
  ShardLock lock(&mutex_);
  const uint32_t slot = recent_.newest;
  if (slot == kNoSlot) return kNoSlot;
  Remove(recent_, slot);
  Adjust(free_, -1);
  return slot;
}

uint32_t SlotShard::TakeWithKey(uint64_t key) {
  if (BucketOf(key).load(std::memory_order_relaxed) == kNoSlot) return kNoSlot;
  ShardLock lock(&mutex_);
  const uint32_t slot = Find(key);
  if (slot == kNoSlot) return kNoSlot;
  Erase(slot);
  Adjust(free_, -1);
  return slot;
}

uint32_t SlotShard::TakeKeyless() {
  if (free_keyless_.load(std::memory_order_relaxed) == 0) return kNoSlot;
  ShardLock lock(&mutex_);
  const uint32_t slot = recent_keyless_.newest;
  if (slot == kNoSlot) return kNoSlot;
  Remove(recent_keyless_, slot);
  Adjust(free_keyless_, -1);
  Adjust(free_, -1);
  return slot;
}

uint32_t SlotShard::TakeOldest() {
  ShardLock lock(&mutex_);
  const uint32_t slot = recent_.oldest;
  if (slot == kNoSlot) return kNoSlot;
  Erase(slot);
  Adjust(free_, -1);
  return slot;
}

uint32_t SlotShard::TakeRandom(uint64_t random) {
  ShardLock lock(&mutex_);
  const uint32_t count = free();
  if (count == 0) return kNoSlot;
  // The high half of the product: uniform to within count / 2^32.
  const uint32_t at = static_cast<uint32_t>(
      (uint64_t{static_cast<uint32_t>(random)} * count) >> 32);
  const uint32_t slot = random_[at];
  random_[at] = random_[count - 1];
  Adjust(free_, -1);
  return slot;
}

uint32_t SlotShard::TakeAny(SlotStrategy strategy, uint64_t key) {
  switch (strategy) {
    case SlotStrategy::kNextAvailable:
      return TakeNewest();
    case SlotStrategy::kRandom:
      return TakeRandom(MixBits(key));
    case SlotStrategy::kAffinity: {
      uint32_t slot = kNoSlot;
      if (key != 0) slot = TakeWithKey(key);
      if (slot == kNoSlot) slot = TakeKeyless();
      if (slot == kNoSlot) slot = TakeOldest();
      return slot;
    }
  }
  return kNoSlot;
}

bool SlotShard::Put(SlotStrategy strategy, uint32_t slot,
                    const std::atomic<uint32_t>& takeovers) {
  ShardLock lock(&mutex_);
  switch (strategy) {
    case SlotStrategy::kNextAvailable:
      Push(recent_, slot);
      break;
    case SlotStrategy::kRandom:
      random_[free()] = slot;
      break;
    case SlotStrategy::kAffinity:
      if (nodes_[slot].key == 0) {
        Push(recent_keyless_, slot);
        Adjust(free_keyless_, 1);
      } else {
        nodes_[slot].released_at = takeovers.load(std::memory_order_relaxed);
        Insert(slot);
      }
      break;
  }
  Adjust(free_, 1);
  ++releases_;
  return waiters_ != 0;
}

uint64_t SlotShard::releases() {
  ShardLock lock(&mutex_);
  return releases_;
}

void SlotShard::ChangeWaiters(int change) {
  ShardLock lock(&mutex_);
  waiters_ += static_cast<uint32_t>(change);
}

}  // namespace firsttouch
