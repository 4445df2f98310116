// FAULT PATH: everything in this file runs in signal handlers. No lock, no
// allocation, no system call, no logging, no thread-local storage, no function
// outside this file; lookup_symbols_test checks the last on the object file.

#include "firsttouch/locator/lookup.h"

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "firsttouch/locator/table.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace locator_internal {

// Zero-initialized, so in .bss: only those of its 256 KiB exist whose pages are
// looked at.
constinit std::atomic<PoolRecord*> g_chunks[kChunks];

}  // namespace locator_internal

namespace {

__extension__ typedef unsigned __int128 Uint128;

struct Division {
  uint64_t quotient;
  uint64_t remainder;
};

// With reciprocal = floor((2^64 - 1) / divisor), the high half of the product
// is the quotient or one less: reciprocal >= 2^64 / divisor - 1, so the error
// is below value / 2^64 < 1 before rounding down. Corrected without a branch,
// which would be mispredicted.
inline Division Divide(uint64_t value, uint64_t divisor, uint64_t reciprocal) {
  const uint64_t estimate =
      static_cast<uint64_t>((Uint128{value} * reciprocal) >> 64);
  const uint64_t remainder = value - estimate * divisor;
  const uint64_t one_less = remainder >= divisor;
  return {estimate + one_less, remainder - (divisor & (0 - one_less))};
}

inline const PoolEntry* Find(uintptr_t address) {
  const uintptr_t chunk = address / kLocatorChunkBytes;
  if (chunk >= locator_internal::kChunks) return nullptr;
  while (true) {
    const locator_internal::PoolRecord* const record =
        locator_internal::g_chunks[chunk].load(std::memory_order_acquire);
    if (record == nullptr) return nullptr;
    const uint64_t version = record->version.load(std::memory_order_acquire);
    const uintptr_t base = record->base.load(std::memory_order_relaxed);
    const uint64_t bytes = record->bytes.load(std::memory_order_relaxed);
    const PoolEntry* const pool = record->entry.load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    // The record was given to another pool meanwhile: the pool that was meant
    // is gone. While the record is written it belongs to none (and the writer
    // may be what this handler interrupted, so waiting is no option).
    if (record->version.load(std::memory_order_relaxed) != version) continue;
    if (version % 2 != 0) return nullptr;
    // A pool's last chunk may also have addresses of other mappings.
    return address - base < bytes ? pool : nullptr;
  }
}

inline uint64_t SizeOf(const PoolEntry& pool, uint64_t slot) {
  const char* first = reinterpret_cast<const char*>(pool.first_size_bytes);
  return reinterpret_cast<const std::atomic<uint64_t>*>(
             first + slot * pool.size_stride_bytes)
      ->load(std::memory_order_acquire);
}

// `address` must be in the pool.
inline Location Describe(const PoolEntry& pool, uintptr_t address) {
  const uint64_t from_base = address - pool.base;
  const uint64_t from_first = from_base - pool.first_memory_offset_bytes;
  if (from_base < pool.first_memory_offset_bytes) {
    return {.pool = &pool,
            .place = Place::kGuardBefore,
            .offset_bytes = static_cast<int64_t>(from_first),
            .size_bytes = SizeOf(pool, 0)};
  }
  const auto [slot, offset] =
      Divide(from_first, pool.slot_stride_bytes, pool.slot_stride_reciprocal);
  // Both are below 2^32, where using slot + 1 in place of slot makes the
  // estimate exact: it then lies strictly between slot / divisor and (slot + 1)
  // / divisor.
  const uint64_t instance = static_cast<uint64_t>(
      (Uint128{slot + 1} * pool.memories_per_instance_reciprocal) >> 64);
  const uint64_t memory = slot - instance * pool.memories_per_instance;
  const uint64_t size_bytes = SizeOf(pool, slot);
  Place place = Place::kMemory;
  if (offset >= pool.max_memory_bytes) {
    const bool unowned =
        offset >= pool.slot_stride_bytes - pool.unowned_guard_bytes &&
        slot + 1 < pool.slots;
    place = unowned ? Place::kGuardUnowned : Place::kGuardAfter;
  }
  return {
      .pool = &pool,
      .place = place,
      .in_bounds = offset < size_bytes,
      .page_in_bounds = (offset & ~(kPageBytes - 1)) < size_bytes,
      .slot = static_cast<uint32_t>(slot),
      .instance = static_cast<uint32_t>(instance),
      .memory = static_cast<uint32_t>(memory),
      .offset_bytes = static_cast<int64_t>(offset),
      .page = offset / kPageBytes,
      .size_bytes = size_bytes,
  };
}

}  // namespace

const PoolEntry* FindPool(uintptr_t address) noexcept { return Find(address); }

Location Locate(uintptr_t address) noexcept {
  const PoolEntry* pool = Find(address);
  return pool == nullptr ? Location() : Describe(*pool, address);
}

Location LocateIn(const PoolEntry& pool, uintptr_t address) noexcept {
  return address - pool.base < pool.bytes ? Describe(pool, address)
                                          : Location();
}

}  // namespace firsttouch
