// The function that resolves a fault, for the code that owns the signal
// handler.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage. service/signals.h tells how to use it.

#ifndef FIRSTTOUCH_SERVICE_HANDLE_FAULT_H_
#define FIRSTTOUCH_SERVICE_HANDLE_FAULT_H_

#include <signal.h>

namespace firsttouch {

// What HandleFault() did.
enum class FaultOutcome {
  // Not an address of ours, or not a fault at all (a signal that was sent).
  kNotMine,
  // The page is there, or a trap callback took care: return from the handler.
  kResolved,
  // A touch outside a memory's bounds that no callback wanted, or a fault that
  // the kernel would not resolve; a line on stderr named it. The process must
  // not go on from here.
  kUnhandledTrap,
};

// Resolves a fault of any pool of this process, or tells that it is none.
// Async-signal-safe; keeps errno; takes no lock and allocates nothing. For use
// inside a SIGBUS or SIGSEGV handler only, on the thread that faulted, with
// asynchronous signals blocked (FillFaultHandlerMask() in signals.h, which says
// what happens where they are not). A trap callback may leave it by longjmp:
// the mask of the interrupted code is put back before it is called, whatever
// sa_mask the handler has, and stays so where kUnhandledTrap is returned. While
// a PageSource or the end of a snapshot is waited for, the interrupted code's
// mask is in force, too.
FaultOutcome HandleFault(int signal, siginfo_t* info, void* ucontext) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_HANDLE_FAULT_H_
