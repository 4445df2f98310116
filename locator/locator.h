// Finds the pool, instance, memory and offset that an address belongs to, and
// whether it is inside the memory's current size. A fault handler asks this
// first.
//
// FindPool, Locate and LocateIn (declared in lookup.h) are the fault path:
// async-signal-safe, no lock, constant time, a few nanoseconds. What is
// declared here is for ordinary code.
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
// A process may have any number of pools up to 32,767. The table has one
// pointer for each 4 GiB of the 47-bit address space, so a pool begins at a
// multiple of 4 GiB and no other pool shares its last chunk.
//
// An address in a guard is attributed to a memory only where the access cannot
// have been meant for another: in the guard in front of the first memory
// (offset_bytes < 0) and in the one behind the last (offset_bytes >=
// max_memory_bytes), and in the lower part of a guard between two memories,
// which belongs to the memory in front. The upper part,
// PoolEntry::unowned_guard_bytes, can be reached from both sides and belongs to
// neither (Place::kGuardUnowned).
#ifndef FIRSTTOUCH_LOCATOR_LOCATOR_H_
#define FIRSTTOUCH_LOCATOR_LOCATOR_H_

#include <cstddef>

#include "absl/status/status.h"
#include "firsttouch/locator/lookup.h"

namespace firsttouch {

// Checks the caller's fields against each other and fills in the reciprocals.
// InvalidArgument names the field, its value and the rule. RegisterPool calls
// it; other callers need it only to use LocateIn on an entry that is not
// registered.
absl::Status PreparePoolEntry(PoolEntry* entry);

// Makes the pool's addresses known to Locate in all threads before it returns.
// The entry must stay where it is until UnregisterPool. Thread-safe. Errors:
//   InvalidArgument: as PreparePoolEntry.
//   AlreadyExists: a registered pool has addresses in the same 4 GiB chunk; the
//     text names both pools and ranges. Nothing is registered then.
absl::Status RegisterPool(PoolEntry* entry);

// Forgets the pool; does nothing if it is not registered. Thread-safe. A
// concurrent Locate of an address in the pool may still return the entry: make
// sure that no thread can fault in the pool any more before the entry is
// destroyed. A Locate of any other address never reads the entry, not even of
// an address in the pool's last 4 GiB.
void UnregisterPool(const PoolEntry* entry);

// The number of pools that are registered now. Thread-safe; takes the
// registration lock.
size_t RegisteredPools();

}  // namespace firsttouch

#endif  // FIRSTTOUCH_LOCATOR_LOCATOR_H_
