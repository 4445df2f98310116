// From an address to the pool, instance, memory and offset it belongs to, and
// whether that is inside the memory's current size. This is the first thing a
// fault handler asks.
//
// FAULT PATH: FindPool, Locate and LocateIn are async-signal-safe: no lock, no
// allocation, no system call, no logging, no thread-local storage, no call
// outside this file (a test looks at the object file). Constant time, a few
// nanoseconds: one table lookup and one multiplication by a reciprocal.
//
//   static PoolEntry entry = {...};                    // lives as long as
//   absl::Status status = RegisterPool(&entry);        // the pool
//   ...
//   void OnSigbus(int, siginfo_t* info, void*) {       // any thread
//     const Location at = Locate(reinterpret_cast<uintptr_t>(info->si_addr));
//     if (at.pool == nullptr) { /* not ours: chain */ }
//     else if (at.page_in_bounds) { /* fill at.page of memory at.slot */ }
//     else { /* trap: at.instance, at.memory, at.offset_bytes */ }
//   }
//   ...
//   UnregisterPool(&entry);                            // then unmap
//
// Any number of pools in a process. The table has one pointer for each 4 GiB of
// the 47-bit address space, so a pool begins at a multiple of 4 GiB and no
// other pool shares its last chunk: at most 32,767 pools.
//
// Addresses in guards are attributed to a memory: a guard behind a memory to
// that memory (offset_bytes >= max_memory_bytes), the guard in front of the
// first memory to the first memory (offset_bytes < 0). So an access just below
// a memory other than the first shows as one far above the memory in front.
#ifndef FIRSTTOUCH_LOCATOR_LOCATOR_H_
#define FIRSTTOUCH_LOCATOR_LOCATOR_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace firsttouch {

inline constexpr uint64_t kLocatorChunkBytes = uint64_t{1} << 32;
inline constexpr uint32_t kLocatorAddressBits = 47;

// What the locator needs to know of a pool; see pool/layout.h for a picture.
// All fields up to `pool_id` are the caller's, and stay unchanged while the
// entry is registered.
struct PoolEntry {
  // First address of the reservation; a multiple of kLocatorChunkBytes, not 0.
  uintptr_t base = 0;
  // PoolLayout::reservation_bytes(): first_memory_offset_bytes + slots *
  // slot_stride_bytes.
  uint64_t bytes = 0;
  uint64_t first_memory_offset_bytes = 0;
  uint64_t slot_stride_bytes = 0;
  // Not more than slot_stride_bytes.
  uint64_t max_memory_bytes = 0;
  uint32_t slots = 0;
  uint32_t memories_per_instance = 1;
  // The current size in bytes of the memory in slot i is read at
  //   (char*)first_size_bytes + i * size_stride_bytes
  // on each Locate (acquire), so it may change at any time.
  const std::atomic<uint64_t>* first_size_bytes = nullptr;
  size_t size_stride_bytes = 0;
  // The caller's; the locator does not look.
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
};

struct Location {
  // nullptr if and only if place is kNoPool; then the rest is zero.
  const PoolEntry* pool = nullptr;
  Place place = Place::kNoPool;
  // offset_bytes >= 0 and below the memory's current size.
  bool in_bounds = false;
  // The page contains at least one byte that is in bounds. Differs from
  // in_bounds in the last page of a memory whose size ends inside a page: that
  // page must be present for the bytes before the end, so what lies behind them
  // is not guarded.
  bool page_in_bounds = false;
  uint32_t slot = 0;  // flat: instance * memories_per_instance + memory
  uint32_t instance = 0;
  uint32_t memory = 0;
  // From the start of the memory in `slot`; negative in kGuardBefore only.
  int64_t offset_bytes = 0;
  // offset_bytes / 4096; 0 in kGuardBefore.
  uint64_t page = 0;
  // The memory's size when looked at.
  uint64_t size_bytes = 0;
};

// Checks the caller's fields against each other and fills in the reciprocals.
// InvalidArgument names the field, its value and the rule. RegisterPool calls
// it; call it yourself only to use LocateIn on an entry that is not registered.
absl::Status PreparePoolEntry(PoolEntry* entry);

// Makes the pool's addresses known to Locate in all threads before it returns.
// The entry must stay where it is until UnregisterPool. Thread-safe. Errors:
//   InvalidArgument: as PreparePoolEntry.
//   AlreadyExists: a registered pool has addresses in the same 4 GiB chunk; the
//     text names both pools and ranges. Nothing is registered then.
absl::Status RegisterPool(PoolEntry* entry);

// Forgets the pool; nothing happens if it is not registered. Thread-safe. A
// Locate that runs at the same time may still return the entry: make sure that
// no thread can fault in the pool any more before the entry dies.
void UnregisterPool(const PoolEntry* entry);

// Number of pools registered now. Thread-safe; takes the registration lock.
size_t RegisteredPools();

// The registered pool whose reservation, guards included, contains the address;
// nullptr if none. Async-signal-safe.
const PoolEntry* FindPool(uintptr_t address) noexcept;

// Where the address is, among all registered pools. Async-signal-safe.
Location Locate(uintptr_t address) noexcept;

// The same for a pool that is known already; kNoPool if the address is not in
// it. `pool` must be prepared. Async-signal-safe.
Location LocateIn(const PoolEntry& pool, uintptr_t address) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_LOCATOR_LOCATOR_H_
