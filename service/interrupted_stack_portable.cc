// On the fault path: see interrupted_stack.h.

#if !defined(__x86_64__)

#include <signal.h>

#include "firsttouch/service/interrupted_stack.h"

namespace firsttouch {

// The kernel's signal frame differs on each machine.
void CallOnInterruptedStack(SignalFunction, int, siginfo_t*, void*) {}

}  // namespace firsttouch

#endif  // !__x86_64__
