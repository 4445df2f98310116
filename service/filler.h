// The functions that make pages appear.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage; //service:fault_path_symbols_test holds the object
// files to that.

#ifndef FIRSTTOUCH_SERVICE_FILLER_H_
#define FIRSTTOUCH_SERVICE_FILLER_H_

#include <atomic>
#include <cstdint>

#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// Makes the touched page appear as the access needs it, together with
// neighbours that cost little: pages of its fault-around range, or pages ahead
// of a guest that touches ascending addresses. Any number of threads may
// resolve faults of one slot at once, also of one page: each step is
// idempotent, and the thread that comes second finds the page there and
// completes what is missing.
//
// ORDER: a page is put into the `dirty` or the `untracked` plane before it can
// be writable. So whatever interrupts this half-way leaves a slot that a
// release cleans: a call that failed after some pages, or a handler of the host
// that runs in between and leaves by longjmp. (Where asynchronous signals are
// blocked as signals.h says, such a longjmp is possible only during the wait
// for a PageSource.)
FaultResult ResolveFault(FaultPool& fault_pool, const Fault& fault) noexcept;

// Brackets what a thread that is not in the memory itself (a handler thread)
// does with one event. The event was read while the slot's `lease` had the
// value `lease`. Where is_current() is false, a release has begun since, the
// thread that faulted has left the memory, and nothing may be done to the slot.
// Where it is true, a release waits for the destructor.
class FillForOther {
 public:
  // Raises fills_in_flight before it reads the lease; a release changes the
  // lease before it reads fills_in_flight. Both are sequentially consistent:
  // either the release sees the fill, or the fill sees the release.
  FillForOther(SlotState& slot, uint32_t lease) noexcept : slot_(slot) {
    slot_.fills_in_flight.fetch_add(1, std::memory_order_seq_cst);
    is_current_ = slot_.lease.load(std::memory_order_seq_cst) == lease;
  }
  ~FillForOther() {
    slot_.fills_in_flight.fetch_sub(1, std::memory_order_release);
  }
  FillForOther(const FillForOther&) = delete;
  FillForOther& operator=(const FillForOther&) = delete;

  bool is_current() const { return is_current_; }

 private:
  SlotState& slot_;
  bool is_current_ = false;
};

// Makes missing pages of [first_page, first_page + pages), below the slot's
// size or above it, private and writable with their initial bytes before they
// are touched, as if each had been written to. For the slot's owner, or a
// thread in its memory, and only for pages that the kernel does not resolve by
// itself. After a failure the pages that were made are cleaned by a release,
// and the missing ones are filled at their first touch.
FaultResult FillPrivate(FaultPool& fault_pool, uint32_t slot,
                        uint64_t first_page, uint64_t pages) noexcept;

// Makes missing pages of [first_page, first_page + pages) as if each had been
// read. For the slot's owner, likewise.
FaultResult MapClean(FaultPool& fault_pool, uint32_t slot, uint64_t first_page,
                     uint64_t pages) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_FILLER_H_
