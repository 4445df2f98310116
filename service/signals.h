// Who owns SIGBUS and SIGSEGV, and how a fault reaches the pool it belongs to.
//
// A process has one action per signal. There are three ways to share it:
//
//  1. We install and chain (the default of Service): InstallFaultHandler() puts
//     our handler in front of the present action. A fault that is not ours goes
//     to the previous action exactly as before: same siginfo, same context, the
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
//  3. Nobody does: even a memory without faults to resolve in-thread needs one
//     of the first two for its traps.
//
// LEAVING BY LONGJMP. A signal handler of the host (a timer's, for example) may
// leave guest code by siglongjmp at any instruction, and a trap callback may
// leave a trap in the same way. Between the steps of resolving a fault it must
// not: another thread may wait for the next step. So our handler blocks every
// asynchronous signal while it works (by sa_mask: the kernel does that at the
// signal's delivery and return, without a call), some microseconds in which
// such a signal stays pending. Signals that an instruction raises stay
// unblocked, since blocking them would kill the process: SIGSEGV, SIGBUS,
// SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS. Before anything that may take long
// (a callback, the wait for a PageSource or for a snapshot's end) the mask of
// the interrupted code is put back; such a wait may be left.
//
// A host's own handler that calls HandleFault() must block the same signals.
// Where it does not, and another handler leaves HandleFault() by longjmp, the
// memory stays safe: the next lease sees its initial bytes, and bounds hold.
// But other threads may wait forever for a page of a PageSource that was being
// asked for. Nothing detects that: checking the mask would be a system call at
// every fault.
//
// Calls of this library must not be left by longjmp: not Acquire, Release,
// Grow, MakeReady, Snapshot, and so on.
//
// THE ALTERNATE STACK. A handler without one runs on the stack of the code that
// faulted, which may be the stack that overflowed, or may itself lie in a pool.
// EnsureAlternateStack() gives the calling thread an alternate stack;
// Service::Acquire calls it for the thread that acquires, and every other
// thread that runs guest code must call it, or PrepareGuestThread(), once. A
// handler of the host that did not ask for the alternate stack is called on the
// stack of the interrupted code, as before (in place, on the alternate stack,
// where that one is used up).

#ifndef FIRSTTOUCH_SERVICE_SIGNALS_H_
#define FIRSTTOUCH_SERVICE_SIGNALS_H_

#include <signal.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/service/handle_fault.h"

namespace firsttouch {

// Installs our handler for SIGBUS and SIGSEGV in front of the present actions
// (SA_SIGINFO | SA_ONSTACK | SA_NODEFER, and FillFaultHandlerMask()). Counted:
// each call needs an UninstallFaultHandler(). Thread-safe, not for signal
// handlers.
//
// A call that finds our handler replaced puts it back in front of the present
// action, whether or not that one passes signals on to ours.
//
// Errors: the errno of sigaction(2); FailedPrecondition where sigaction(2)
// reports success but has no effect (a sanitizer or a preloaded library that
// keeps these signals for itself).
absl::Status InstallFaultHandler();

// Makes `mask` the sa_mask for a handler that calls HandleFault(): all signals
// but those that an instruction raises. Any thread; async-signal-safe.
void FillFaultHandlerMask(sigset_t* mask);

// The last call restores the actions found at the first install, flags and mask
// included. FailedPrecondition, with nothing changed, when another handler was
// put in front of ours since (which may then still chain to ours), or when
// there is no install to undo.
absl::Status UninstallFaultHandler();

// Whether SIGBUS and SIGSEGV still reach our handler, as far as that can be
// told: a function that other code has installed since may pass signals on to
// ours. FailedPrecondition, naming the signal and its present action, where the
// action is SIG_DFL, SIG_IGN, or the one before InstallFaultHandler(). Two
// system calls. Thread-safe.
absl::Status CheckFaultHandler();

// Checks that the calling thread has SIGBUS and SIGSEGV unblocked. At a fault
// whose signal is blocked, the kernel ends the process and calls no handler.
// FailedPrecondition names the signal. One system call.
absl::Status CheckSignalsUnblocked();

// Makes sure that the calling thread has an alternate signal stack that is
// large enough for our handler (kAlternateStackBytes plus what the kernel's
// frame needs on this machine), with a guard page below; made on demand, freed
// when the thread ends. One system call where the thread has one. Puts ours
// back where other code has removed it since.
//
// Takes the place of one of the host's that is too small, as Rust's are on
// processors whose signal frames are large: it makes them of AT_MINSIGSTKSZ
// bytes, which the frame alone fills. Handlers of the host run on ours then.
// (Called in a signal handler, this lasts until that returns: the kernel puts
// back the stack of what was interrupted.)
//
// A stack of the host's with SS_AUTODISARM is fine, but after a trap callback
// that leaves by longjmp the stack is without that flag.
//
// FailedPrecondition when the thread runs on one that is too small, in a signal
// handler (names both sizes). ResourceExhausted when there is no memory.
absl::Status EnsureAlternateStack();

// Each thread that runs guest code has to call this once, unless it acquires
// memories itself: EnsureAlternateStack() and CheckSignalsUnblocked().
absl::Status PrepareGuestThread();

// The bytes of an alternate stack beyond the kernel's signal frame.
inline constexpr size_t kAlternateStackBytes = 32 * 1024;

// FailedPrecondition, saying how to get one, when the calling thread has no
// alternate stack.
absl::Status CheckAlternateStack();

// A number that changes with each install and uninstall: as long as it is the
// same, a check need not be repeated. Any thread.
uint32_t FaultHandlerChanges();

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SIGNALS_H_
