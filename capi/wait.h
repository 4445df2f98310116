// How long to wait, as the interface has it.
//
// Threads: any.

#ifndef FIRSTTOUCH_CAPI_WAIT_H_
#define FIRSTTOUCH_CAPI_WAIT_H_

#include <cstdint>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace firsttouch::capi {

// In ns from now. 0: past already. Below 0: never.
inline absl::Time DeadlineAfter(int64_t wait_ns) {
  if (wait_ns == 0) return absl::InfinitePast();
  if (wait_ns < 0) return absl::InfiniteFuture();
  return absl::Now() + absl::Nanoseconds(wait_ns);
}

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_WAIT_H_
