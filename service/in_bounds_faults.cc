// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/service/in_bounds_faults.h"

#include <errno.h>
#include <signal.h>

#include "firsttouch/service/accessible.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/filler.h"
#include "firsttouch/service/trapping_pages.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

FaultResult ResolveSignalByFilling(FaultPool& fault_pool,
                                   const SignalFault& fault) noexcept {
  if (fault.signal == SIGSEGV) {
    // The memory has grown into the page since it was made to trap, or the
    // handler thread could not supply the page: resolving it in this thread
    // finds out which.
    if (fault_pool.resolve != Resolve::kHandlerThread || fault_pool.poison ||
        !MakeAccessible(fault_pool, RoundDownToPage(fault.address))) {
      return {.kind = FaultResult::Kind::kNotOurs};
    }
  }
  Fault touch = fault.touch;
  if (touch.access == Access::kExecute) touch.access = Access::kRead;
  return ResolveFault(fault_pool, touch);
}

FaultResult ResolveSignalOfKernelsPage(FaultPool&,
                                       const SignalFault& fault) noexcept {
  if (fault.signal == SIGBUS) {
    return {FaultResult::Kind::kNoContents, EFAULT,
            "the kernel's own page fault"};
  }
  const Access access = fault.touch.access;
  const bool accessible =
      access != Access::kExecute && IsAccessible(fault.address, access);
  return {.kind = accessible ? FaultResult::Kind::kGone
                             : FaultResult::Kind::kNotOurs};
}

}  // namespace firsttouch
