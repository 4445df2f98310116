// Who owns SIGBUS and SIGSEGV, and how a fault reaches the pool it belongs to.
//
// A process has one action per signal. Three ways to share it:
//
//  1. We install and chain (the default of Service): InstallFaultHandler() puts
//     our handler in front of what was there. A fault that is not ours goes to
//     the previous action exactly as before: same siginfo, same context, the
//     mask it asked for; SIG_DFL and SIG_IGN keep their meaning.
//  2. The host owns the handler and calls HandleFault(), which answers kNotMine
//     for what is foreign:
//
//       void HostHandler(int signal, siginfo_t* info, void* context) {
//         switch (firsttouch::HandleFault(signal, info, context)) {
//           case FaultOutcome::kResolved:
//             return;                      // the instruction runs again
//           case FaultOutcome::kNotMine:
//           case FaultOutcome::kUnhandledTrap:
//             break;                       // as if we were not there
//         }
//         ...
//       }
//
//     The handler (handle_fault.h has the function) must be installed for
//     SIGBUS and SIGSEGV with SA_SIGINFO and SA_ONSTACK.
//  3. Nobody: a memory without faults to resolve in-thread still needs one of
//     the two for its traps.
//
// THE ALTERNATE STACK. A handler without one runs on the stack of the code that
// faulted, which may be the thing that overflowed, or itself lie in a pool.
// EnsureAlternateStack() gives the calling thread one; Service::Acquire calls
// it for the thread that acquires, every other thread that runs guest code must
// call it once.

#ifndef FIRSTTOUCH_SERVICE_SIGNALS_H_
#define FIRSTTOUCH_SERVICE_SIGNALS_H_

#include <signal.h>

#include "absl/status/status.h"
#include "firsttouch/service/handle_fault.h"

namespace firsttouch {

// Installs our handler for SIGBUS and SIGSEGV in front of the present actions
// (SA_SIGINFO | SA_ONSTACK | SA_NODEFER, no further signals blocked).
// Counted: each call needs an UninstallFaultHandler(). Thread-safe, not for
// signal handlers. Errors: the errno of sigaction(2).
absl::Status InstallFaultHandler();

// The last call restores the actions found at the first install, flags and mask
// included. FailedPrecondition, and nothing changes, when someone has put a
// handler in front of ours since (who then may still chain to it), or when
// there is no install to undo.
absl::Status UninstallFaultHandler();

// Makes sure that the calling thread has an alternate signal stack that is
// large enough for our handler (kAlternateStackBytes plus what the kernel's
// frame needs on this machine), with a guard page below; made on demand, given
// back when the thread ends. Idempotent, and a few ns once done.
//
// FailedPrecondition when the thread has one of its own that is too small
// (names both sizes). ResourceExhausted when there is
// no memory.
absl::Status EnsureAlternateStack();

// Bytes of an alternate stack beyond the kernel's signal frame.
inline constexpr size_t kAlternateStackBytes = 32 * 1024;

// FailedPrecondition, saying how to get one, when the calling thread has no
// alternate stack.
absl::Status CheckAlternateStack();

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SIGNALS_H_
