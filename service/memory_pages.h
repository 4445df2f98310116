// How many pages of a memory are in which state.

#ifndef FIRSTTOUCH_SERVICE_MEMORY_PAGES_H_
#define FIRSTTOUCH_SERVICE_MEMORY_PAGES_H_

#include <cstdint>

namespace firsttouch {

// A count of a memory's pages, by state.
struct MemoryPages {
  // Resident: mapped since some guest touched them. (Without userfaultfd and
  // PAGEMAP_SCAN only the changed ones are known.)
  uint64_t touched = 0;
  uint64_t writable = 0;  // of these, not write-protected
  uint64_t changed = 0;   // of these, with other bytes than at first
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_MEMORY_PAGES_H_
