// Calling a signal handler of the host on the stack that it expects.
//
// Our handler asks for the alternate stack (SA_ONSTACK). A handler that was
// installed before ours and did not ask for it used to run on the stack of the
// interrupted code, which may be far larger.
//
// IN SIGNAL CONTEXT: async-signal-safe, no lock, no allocation, no logging.

#ifndef FIRSTTOUCH_SERVICE_INTERRUPTED_STACK_H_
#define FIRSTTOUCH_SERVICE_INTERRUPTED_STACK_H_

#include <signal.h>

namespace firsttouch {

// A signal handler with three arguments, as SA_SIGINFO has it.
using SignalFunction = void (*)(int signal, siginfo_t* info, void* ucontext);

// Calls `handler` on the stack of the interrupted code, as the kernel does
// without SA_ONSTACK: the kernel's frame is copied there, and returning from
// `handler` returns from the signal. In that case this function does not
// return.
//
// Returns, with nothing done, where the handler has to be called in place: the
// interrupted code was on the same stack, or its stack is used up or not
// writable (a stack overflow), or a shadow stack is in use, or the machine is
// not an x86-64.
//
// `info` and `ucontext` must be the kernel's own, as given to the handler that
// the kernel called, and the signal mask must already be the one that `handler`
// expects.
void CallOnInterruptedStack(SignalFunction handler, int signal, siginfo_t* info,
                            void* ucontext);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_INTERRUPTED_STACK_H_
