// The function that is asked first about a trap.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#ifndef FIRSTTOUCH_SERVICE_TRAP_GUARD_H_
#define FIRSTTOUCH_SERVICE_TRAP_GUARD_H_

#include "firsttouch/service/trap.h"

namespace firsttouch {

// Has `guard` called for each trap of this process, in signal context, with the
// signal mask of the interrupted code, before the trap callbacks. The guard
// leaves by longjmp where it takes the trap, and returns where it does not. The
// process has only one: service/run_trapped.cc's. Any thread, any number of
// times.
void SetTrapGuard(void (*guard)(const TrapInfo& trap)) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_TRAP_GUARD_H_
