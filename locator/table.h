// The locator's table, between the code that writes it (registry.cc, under a
// lock) and the code that reads it (lookup.cc, in signal handlers).
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

// For each 4 GiB of the address space the pool that has addresses there; at
// most one, since pools begin at a multiple of 4 GiB.
extern std::atomic<const PoolEntry*> g_chunks[kChunks];
static_assert(std::atomic<const PoolEntry*>::is_always_lock_free);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace locator_internal
}  // namespace firsttouch

#endif  // FIRSTTOUCH_LOCATOR_TABLE_H_
