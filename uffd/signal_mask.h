// The calling thread's signal mask, for code that may be interrupted.
//
// On the fault path: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage, errno is kept.

#ifndef FIRSTTOUCH_UFFD_SIGNAL_MASK_H_
#define FIRSTTOUCH_UFFD_SIGNAL_MASK_H_

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace firsttouch {

// The kernel's signal set: bit n - 1 is signal n. The C library's sigset_t
// begins with it.
using SignalSet = uint64_t;

constexpr SignalSet SetOfSignal(int signal) {
  return SignalSet{1} << (signal - 1);
}

// Signals that a thread's own instruction raises. Where one of them is blocked
// the kernel ends the process instead of delivering it.
inline constexpr SignalSet kSynchronousSignals =
    SetOfSignal(SIGSEGV) | SetOfSignal(SIGBUS) | SetOfSignal(SIGILL) |
    SetOfSignal(SIGFPE) | SetOfSignal(SIGTRAP) | SetOfSignal(SIGABRT) |
    SetOfSignal(SIGSYS);

// All other signals, including those that the C library reserves: thread
// cancellation leaves the interrupted code, too.
inline constexpr SignalSet kAsynchronousSignals = ~kSynchronousSignals;

// Changes the calling thread's mask; `how` is SIG_BLOCK or SIG_SETMASK. Returns
// the previous mask.
inline SignalSet ChangeSignalMask(int how, SignalSet signals) noexcept {
  const int saved_errno = errno;
  SignalSet before = 0;
  syscall(SYS_rt_sigprocmask, how, &signals, &before, sizeof(SignalSet));
  errno = saved_errno;
  return before;
}

// The kernel's signal set at the beginning of the C library's `signals`.
inline SignalSet SignalSetOf(const sigset_t& signals) noexcept {
  return *reinterpret_cast<const SignalSet*>(&signals);
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_SIGNAL_MASK_H_
