// The slot that a thread has released last in a pool, and acquires again before
// any other. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_PARKED_SLOT_H_
#define FIRSTTOUCH_SERVICE_PARKED_SLOT_H_

#include <cstddef>
#include <cstdint>

#include "firsttouch/init/image.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {

// Only valid for the pool whose number it carries; that pool lives, since every
// caller has a reference to it.
struct alignas(32) ParkedSlot {
  // Notes that the thread keeps `slot`, one of `pool`'s.
  void Keep(const ServicePool& in, SlotState& kept) {
    pool = in.steady.number;
    image = kept.image.get();
    slot = &kept;
  }

  uint64_t pool = 0;
  // Only for comparison: the slot may have been taken, and its image destroyed.
  const Image* image = nullptr;
  SlotState* slot = nullptr;
  // Whether this thread was made ready for guest code (NoteThreadReady()). It
  // may not be: it may have released a memory that another thread acquired.
  bool thread_is_ready = false;
};

namespace parked_slot_internal {

inline constexpr size_t kParkedSlots = 4;

// In the thread's own block from the start, also in a shared library, where
// each look at it would be a call otherwise.
// clang-format off
[[gnu::tls_model("initial-exec")]]
extern constinit thread_local ParkedSlot t_parked[kParkedSlots];
// clang-format on

}  // namespace parked_slot_internal

// What the calling thread keeps of `pool`, or of another pool in its place.
inline ParkedSlot& ParkedSlotFor(const ServicePool& pool) {
  using parked_slot_internal::kParkedSlots;
  return parked_slot_internal::t_parked[pool.steady.number % kParkedSlots];
}

// Notes that a check has found the calling thread ready for guest code.
void NoteThreadReady();

// Keeps `slot`, which is clean and kParking, for a thread that has parked
// `before`, which becomes free for every thread. The pool may be deleted when
// this returns.
void ParkInsteadOf(ServicePool& pool, SlotState& before, SlotState& slot);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_PARKED_SLOT_H_
