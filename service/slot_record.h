// Changes to a slot's record that each supply makes (memory_supply.h), and
// waits on it.
//
// By the slot's owner (the thread that acquires, resets or releases it), while
// no guest code runs in it; the waits by any thread. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_SLOT_RECORD_H_
#define FIRSTTOUCH_SERVICE_SLOT_RECORD_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// Notes in the record that the slot's memory is that of `image` (null: zeroes).
void SetImage(SlotState& slot, const ImageRef& image);

// Forgets what the slot was bound to and what is known of its pages, so that
// nothing refers to it: after a step that has failed half-way. The supply maps
// all of it anew before the next lease (MemorySupply::Bind).
void Abandon(SlotState& slot);

// The initial bytes of any page of the slot, as Image::PageBytes() gives them:
// waits for the image's PageSource.
const std::byte* InitialPage(const SlotState& slot, uint64_t page);

// Where a page of the slot is.
inline uintptr_t AddressOf(const SlotState& slot, uint64_t page) {
  return slot.base + page * kPageBytes;
}

// Calls visit(index, bits) for each group that has pages of the region, which a
// scan of the slot found, with the bits of those.
template <typename Visit>
void ForEachGroupIn(const SlotState& slot, const PageRegion& region,
                    Visit visit) {
  ForEachGroupOf((region.start - slot.base) / kPageBytes,
                 (region.end - slot.base) / kPageBytes, visit);
}

// What the error of a system call on pages of a slot says where there is no
// memory (ENOMEM).
struct PagesShortage {
  // Bytes that the call wants of RLIMIT_DATA.
  uint64_t data_bytes = 0;
  // Behind the limits: what the slot needs of them.
  const char* mappings = "";
};
absl::Status PagesCallFailed(const FaultPool& fault_pool, const SlotState& slot,
                             int error, const char* call, uint64_t first_page,
                             uint64_t pages, const PagesShortage& shortage);

// Begins a new sampling window: nothing is counted in it yet.
void BeginSamplingWindow(SlotState& slot);

// Returns at a moment at which no snapshot keeps threads from writing.
void WaitUntilThawed(const SlotState& slot);

// Waits until no fill is under way in the slot. Spins, then yields: a fill is a
// system call of some microseconds.
void WaitForFills(const SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SLOT_RECORD_H_
