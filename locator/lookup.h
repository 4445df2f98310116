// The locator's fault path: its data about a pool, and the lookup itself. See
// locator.h for its purpose, an example, and how a pool is registered.
//
// FAULT PATH: everything here is async-signal-safe: no lock, no allocation, no
// system call, no logging, no thread-local storage, no call outside lookup.cc
// (lookup_symbols_test looks at the object file). Constant time: one table
// lookup and two multiplications by a reciprocal.
#ifndef FIRSTTOUCH_LOCATOR_LOOKUP_H_
#define FIRSTTOUCH_LOCATOR_LOOKUP_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace firsttouch {

inline constexpr uint64_t kLocatorChunkBytes = uint64_t{1} << 32;
inline constexpr uint32_t kLocatorAddressBits = 47;

// A pool, as the locator needs to know it; pool/layout.h has a picture. The
// caller sets all fields up to `pool_id`, and does not change them while the
// entry is registered.
struct PoolEntry {
  // First address of the reservation; a multiple of kLocatorChunkBytes, not 0.
  uintptr_t base = 0;
  // PoolLayout::reservation_bytes(): first_memory_offset_bytes + slots *
  // slot_stride_bytes.
  uint64_t bytes = 0;
  uint64_t first_memory_offset_bytes = 0;
  uint64_t slot_stride_bytes = 0;
  // At most slot_stride_bytes.
  uint64_t max_memory_bytes = 0;
  // PoolLayout::unowned_guard_bytes(): how much of the guard between two
  // memories, at its upper end, belongs to neither. At most slot_stride_bytes -
  // max_memory_bytes.
  uint64_t unowned_guard_bytes = 0;
  uint32_t slots = 0;
  uint32_t memories_per_instance = 1;
  // The current size in bytes of the memory in slot i is read at
  //   (char*)first_size_bytes + i * size_stride_bytes
  // on each Locate (acquire), so it may change at any time.
  const std::atomic<uint64_t>* first_size_bytes = nullptr;
  size_t size_stride_bytes = 0;
  // For the caller; the locator does not use it.
  void* owner = nullptr;
  uint32_t pool_id = 0;

  // Filled in by PreparePoolEntry: floor((2^64 - 1) / divisor).
  uint64_t slot_stride_reciprocal = 0;
  uint64_t memories_per_instance_reciprocal = 0;
};

enum class Place : uint8_t {
  kNoPool,       // not in a registered pool
  kGuardBefore,  // in front of the first memory
  kMemory,       // inside a memory's maximum; see in_bounds
  kGuardAfter,   // behind a memory's maximum, before the next memory
  // Between two memories, where an access to either may have gone astray:
  // `slot` is the one in front, slot + 1 the one behind. The address belongs to
  // neither.
  kGuardUnowned,
};

struct Location {
  // nullptr if and only if place is kNoPool; then the rest is zero.
  const PoolEntry* pool = nullptr;
  Place place = Place::kNoPool;
  // offset_bytes >= 0 and below the memory's current size.
  bool in_bounds = false;
  // The page contains at least one byte that is in bounds. Differs from
  // in_bounds in the last page of a memory whose size ends inside a page: that
  // page must be present for the bytes before the end, so the bytes behind the
  // end are not guarded.
  bool page_in_bounds = false;
  uint32_t slot = 0;  // flat: instance * memories_per_instance + memory
  uint32_t instance = 0;
  uint32_t memory = 0;
  // Bytes from the start of the memory in `slot`; negative in kGuardBefore
  // only.
  int64_t offset_bytes = 0;
  // offset_bytes / kPageBytes; 0 in kGuardBefore.
  uint64_t page = 0;
  // The memory's size at the time of the lookup, in bytes.
  uint64_t size_bytes = 0;
};

// The registered pool whose reservation, guards included, contains the address;
// nullptr if none. Async-signal-safe.
const PoolEntry* FindPool(uintptr_t address) noexcept;

// Locates the address among all registered pools. Async-signal-safe.
Location Locate(uintptr_t address) noexcept;

// Locates the address in a known pool; kNoPool if the address is not in it.
// `pool` must be prepared. Async-signal-safe.
Location LocateIn(const PoolEntry& pool, uintptr_t address) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_LOCATOR_LOOKUP_H_
