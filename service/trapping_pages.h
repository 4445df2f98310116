// Pages outside the bounds that handler threads make trap one by one, for the
// thread that waits for them.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage; //service:fault_path_symbols_test holds the object
// files to that.

#ifndef FIRSTTOUCH_SERVICE_TRAPPING_PAGES_H_
#define FIRSTTOUCH_SERVICE_TRAPPING_PAGES_H_

#include <cstdint>

#include "firsttouch/service/fault_pool.h"

namespace firsttouch {

// Makes a page outside the bounds trap for the thread that waits for it
// (handler threads), within a FillForOther. `page_address` lies in slot
// `slot`'s reach. `*placed` says whether this call did it; it did not where the
// page traps already, or is there.
//
// By mprotect(2), only the last PoisonedPages::kCapacity pages of a slot stay
// inaccessible, so that no guest can use up vm.max_map_count: adding one more
// makes the oldest of them accessible again. That page is still missing, and
// its next touch comes here again.
FaultResult MakeTrapping(FaultPool& fault_pool, uint32_t slot,
                         uintptr_t page_address, bool* placed) noexcept;

// For pages of [first_page, end_page) that have come into the bounds of a held
// memory: those that MakeTrapping() has noted trap no more, also for the
// kernel's own accesses. Where the kernel refuses, or more pages were poisoned
// than noted, a page goes on trapping until a guest touches it.
void SupplyPoisonedPages(FaultPool& fault_pool, uint32_t slot,
                         uint64_t first_page, uint64_t end_page) noexcept;

// Undoes what MakeTrapping() did by mprotect(2) (no POISON), for a page that
// has come into the bounds since. Returns false where the kernel refused.
bool MakeAccessible(FaultPool& fault_pool, uintptr_t page_address) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_TRAPPING_PAGES_H_
