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
//     SIGBUS and SIGSEGV with SA_SIGINFO, SA_ONSTACK and SA_NODEFER, and with
//     an sa_mask from FillFaultHandlerMask(); see LEAVING BY LONGJMP.
//  3. Nobody: a memory without faults to resolve in-thread still needs one of
//     the two for its traps.
//
// LEAVING BY LONGJMP. A signal handler of the host (a timer's, say) may leave
// guest code by siglongjmp at any instruction, and a trap callback may leave a
// trap so. Between the steps of resolving a fault it may not: another thread
// may wait for the next one. So our handler blocks every asynchronous signal
// while it works (by sa_mask: the kernel does that at the signal's delivery and
// return, without a call), some microseconds in which such a signal stays
// pending. Signals that an instruction raises stay open, or they would kill:
// SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS. Before anything
// that may take long (a callback, the wait for a PageSource or for a snapshot's
// end) the mask of the interrupted code is put back; such a wait may be left.
//
// A host's own handler that calls HandleFault() must block the same. Where it
// does not, and another handler leaves HandleFault() by longjmp, the memory
// stays safe: the next lease sees its initial bytes, and bounds hold. But a page
// of a PageSource that was being asked for may be waited for without end by
// others, and a staged copy be lost. Nothing detects that: to look at the mask
// would be a system call at every fault.
//
// Calls of this library must not be left by longjmp: no Acquire, Release, Grow,
// MakeReady, Snapshot, and so on.
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
// (SA_SIGINFO | SA_ONSTACK | SA_NODEFER, and FillFaultHandlerMask()).
// Counted: each call needs an UninstallFaultHandler(). Thread-safe, not for
// signal handlers. Errors: the errno of sigaction(2).
absl::Status InstallFaultHandler();

// Makes `mask` what a handler that calls HandleFault() has for its sa_mask: all
// signals but those that an instruction raises. Any thread; async-signal-safe.
void FillFaultHandlerMask(sigset_t* mask);

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
