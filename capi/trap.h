// Traps on their way to callbacks in C.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation.

#ifndef FIRSTTOUCH_CAPI_TRAP_H_
#define FIRSTTOUCH_CAPI_TRAP_H_

#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/service/trap.h"

namespace firsttouch::capi {

ft_trap ToC(const TrapInfo& trap);

// Asks a callback, which may be null.
TrapAction CallTrapCallback(ft_trap_callback callback, void* user,
                            const TrapInfo& trap);

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_TRAP_H_
