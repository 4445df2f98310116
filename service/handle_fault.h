// The function that resolves a fault, for hosts that own the signal handler.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage. service/signals.h says how to use it.

#ifndef FIRSTTOUCH_SERVICE_HANDLE_FAULT_H_
#define FIRSTTOUCH_SERVICE_HANDLE_FAULT_H_

#include <signal.h>

namespace firsttouch {

// What HandleFault() did.
enum class FaultOutcome {
  // The address is not ours, or the signal is not a fault (it was sent).
  kNotMine,
  // The page is there, or a trap callback handled it: return from the handler.
  kResolved,
  // The touch was outside a memory's bounds and no callback took it, or the
  // kernel would not resolve the fault; a line on stderr names it. The process
  // must not go on from here.
  kUnhandledTrap,
};

// Resolves a fault of any pool of this process, or says that it is not one.
// Async-signal-safe; keeps errno; takes no lock and allocates nothing. For use
// inside a SIGBUS or SIGSEGV handler only, on the thread that faulted, with
// asynchronous signals blocked (FillFaultHandlerMask() in signals.h, which says
// what happens where they are not). A trap callback may leave it by longjmp:
// the mask of the interrupted code is put back before the callback is called,
// whatever sa_mask the handler has, and stays so where kUnhandledTrap is
// returned. While a fault waits for a PageSource or for the end of a snapshot,
// the interrupted code's mask is in force, too.
FaultOutcome HandleFault(int signal, siginfo_t* info, void* ucontext) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_HANDLE_FAULT_H_
