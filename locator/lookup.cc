// FAULT PATH: everything in this file runs in signal handlers. No lock, no
// allocation, no system call, no logging, no thread-local storage, no function
// outside this file; lookup_symbols_test checks the last on the object file.

#include "firsttouch/locator/lookup.h"

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "firsttouch/locator/table.h"

namespace firsttouch {
namespace locator_internal {

// Zero-initialized, so in .bss: of its 256 KiB only the pages that are looked
// at ever exist.
constinit std::atomic<const PoolEntry*> g_chunks[kChunks];

}  // namespace locator_internal

namespace {

constexpr uint64_t kPageShift = 12;

struct Division {
  uint64_t quotient;
  uint64_t remainder;
};

// With reciprocal = floor((2^64 - 1) / divisor), the high half of the product
// is the quotient or one less: reciprocal >= 2^64 / divisor - 1, so the error
// is below value / 2^64 < 1 before rounding down.
inline Division Divide(uint64_t value, uint64_t divisor, uint64_t reciprocal) {
  __extension__ typedef unsigned __int128 Uint128;
  uint64_t quotient =
      static_cast<uint64_t>((Uint128{value} * reciprocal) >> 64);
  uint64_t remainder = value - quotient * divisor;
  if (remainder >= divisor) {
    ++quotient;
    remainder -= divisor;
  }
  return {quotient, remainder};
}

inline const PoolEntry* Find(uintptr_t address) {
  const uintptr_t chunk = address / kLocatorChunkBytes;
  if (chunk >= locator_internal::kChunks) return nullptr;
  const PoolEntry* pool =
      locator_internal::g_chunks[chunk].load(std::memory_order_acquire);
  // The last chunk of a pool is its own only in part.
  if (pool == nullptr || address - pool->base >= pool->bytes) return nullptr;
  return pool;
}

inline uint64_t SizeOf(const PoolEntry& pool, uint32_t slot) {
  const char* first = reinterpret_cast<const char*>(pool.first_size_bytes);
  return reinterpret_cast<const std::atomic<uint64_t>*>(
             first + slot * pool.size_stride_bytes)
      ->load(std::memory_order_acquire);
}

// `address` is in the pool.
inline Location Describe(const PoolEntry& pool, uintptr_t address) {
  Location at;
  at.pool = &pool;
  const uint64_t from_base = address - pool.base;
  if (from_base < pool.first_memory_offset_bytes) {
    at.place = Place::kGuardBefore;
    at.offset_bytes =
        static_cast<int64_t>(from_base - pool.first_memory_offset_bytes);
    at.size_bytes = SizeOf(pool, 0);
    return at;
  }
  const Division by_stride =
      Divide(from_base - pool.first_memory_offset_bytes, pool.slot_stride_bytes,
             pool.slot_stride_reciprocal);
  const Division by_instance =
      Divide(by_stride.quotient, pool.memories_per_instance,
             pool.memories_per_instance_reciprocal);
  const uint64_t offset = by_stride.remainder;
  at.place =
      offset < pool.max_memory_bytes ? Place::kMemory : Place::kGuardAfter;
  at.slot = static_cast<uint32_t>(by_stride.quotient);
  at.instance = static_cast<uint32_t>(by_instance.quotient);
  at.memory = static_cast<uint32_t>(by_instance.remainder);
  at.offset_bytes = static_cast<int64_t>(offset);
  at.page = offset >> kPageShift;
  at.size_bytes = SizeOf(pool, at.slot);
  at.in_bounds = offset < at.size_bytes;
  at.page_in_bounds = (at.page << kPageShift) < at.size_bytes;
  return at;
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
