// The locator's table, which registry.cc writes under a lock and lookup.cc
// reads in signal handlers.
#ifndef FIRSTTOUCH_LOCATOR_TABLE_H_
#define FIRSTTOUCH_LOCATOR_TABLE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "firsttouch/locator/lookup.h"

namespace firsttouch {
namespace locator_internal {

inline constexpr size_t kChunks =
    (uint64_t{1} << kLocatorAddressBits) / kLocatorChunkBytes;

// What a lookup reads before it knows that an address belongs to a pool. The
// last 4 GiB of a pool contain addresses of other mappings, where a thread may
// fault while the pool ends. So records are reused for other pools, but never
// freed, and a reader detects reuse by `version`. A pool's own entry is read
// only for an address in that pool; the pool's owner must keep the entry alive
// for that.
struct PoolRecord {
  // Even while the record is constant; odd while it is written.
  std::atomic<uint64_t> version{0};
  std::atomic<uintptr_t> base{0};
  std::atomic<uint64_t> bytes{0};
  std::atomic<const PoolEntry*> entry{nullptr};
  // The next in a list of all records, for leak checkers. Used by the registry.
  PoolRecord* older = nullptr;
  bool in_use = false;
};

// For each 4 GiB of the address space, the pool that has addresses there; at
// most one, since pools begin at a multiple of 4 GiB.
extern std::atomic<PoolRecord*> g_chunks[kChunks];
static_assert(std::atomic<PoolRecord*>::is_always_lock_free);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace locator_internal
}  // namespace firsttouch

#endif  // FIRSTTOUCH_LOCATOR_TABLE_H_
