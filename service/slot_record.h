// Changes to a slot's record that every supply makes (memory_supply.h), and
// waits for states of it.
//
// By the slot's owner (the thread that acquires, resets or releases it), while
// no guest code runs in it; any thread may wait. Not for signal handlers.

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

// Which of the pool's slots this is.
inline uint32_t SlotNumber(const FaultPool& fault_pool, const SlotState& slot) {
  return static_cast<uint32_t>(&slot - fault_pool.slots);
}

// Notes in the record that the slot is bound to `image` (null: zeroes).
void SetImage(SlotState& slot, const ImageRef& image);

// Forgets what the slot was bound to and what is known of its pages, after a
// step that has failed half-way, so that nothing refers to the old state. The
// supply maps all of it anew before the next lease (MemorySupply::Bind).
void Abandon(SlotState& slot);

// The initial bytes of any page of the slot, as Image::PageBytes() returns
// them. Waits for the image's PageSource.
const std::byte* InitialPage(const SlotState& slot, uint64_t page);

// Calls visit(index, bits) for each group that has pages of the region, which a
// scan of the slot found; `bits` stand for those pages.
template <typename Visit>
void ForEachWordIn(const SlotState& slot, const PageRegion& region,
                   Visit visit) {
  ForEachWordOf((region.start - slot.base) / kPageBytes,
                (region.end - slot.base) / kPageBytes, visit);
}

// What the error of a system call on pages of a slot says about a shortage of
// memory (ENOMEM).
struct PagesShortage {
  // The bytes that the call needs of RLIMIT_DATA.
  uint64_t data_bytes = 0;
  // The text behind the limits: what the slot needs of them.
  const char* mappings = "";
};
absl::Status PagesCallFailed(const FaultPool& fault_pool, const SlotState& slot,
                             int error, const char* call, uint64_t first_page,
                             uint64_t pages, const PagesShortage& shortage);

// Begins a new sampling window, in which nothing is counted yet.
void BeginSamplingWindow(SlotState& slot);

// Returns once no snapshot keeps threads from writing.
void WaitUntilThawed(const SlotState& slot);

// Waits until no fill is under way in the slot. Spins, then yields: a fill is a
// system call of some microseconds.
void WaitForFills(const SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SLOT_RECORD_H_
