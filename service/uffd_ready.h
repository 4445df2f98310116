// Having pages of a slot there before anybody touches them, for pools with a
// userfaultfd.
//
// By any thread that holds the memory; not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_UFFD_READY_H_
#define FIRSTTOUCH_SERVICE_UFFD_READY_H_

#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/service/uffd_mapping.h"

namespace firsttouch {

// Whether a page that may have changed, of a memory that is read-only, can be
// read: it is there, or this call has put it there. Where that fails, `failure`
// says why. Waits for no PageSource.
bool IsThere(const UffdContext& context, SlotState& slot, uint64_t page,
             absl::Status* failure);

// Memory::MakeReady, for pages [first_page, end_page), which are in bounds.
absl::Status MakePagesReady(const UffdContext& context, SlotState& slot,
                            uint64_t first_page, uint64_t end_page,
                            Access access);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_UFFD_READY_H_
