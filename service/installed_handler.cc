// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/service/installed_handler.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>

#include "firsttouch/service/handle_fault.h"
#include "firsttouch/service/interrupted_stack.h"

namespace firsttouch {

std::atomic<PreviousAction*> g_previous_actions[2];
std::atomic<PreviousAction*> g_actions_in_front[2];

bool IsFunction(const struct sigaction& action) {
  // The handler's value decides, not the flag: SIG_DFL and SIG_IGN keep their
  // meaning with SA_SIGINFO, which the Go runtime sets, for instance.
  // (sa_handler and sa_sigaction share their storage.)
  return action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
}

namespace {

// Sets the mask of the calling thread without touching errno.
void SetMask(const sigset_t& mask) {
  constexpr size_t kKernelSigsetBytes = 8;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, kKernelSigsetBytes);
}

// Whether the kernel raised the signal for what the thread just did. The kernel
// does not let such a signal be ignored, since it would be repeated forever.
bool IsForced(int signal, const siginfo_t& info) {
  return info.si_code > 0 &&
         !(signal == SIGBUS && info.si_code == BUS_MCEERR_AO);
}

// Makes the process die of the default action of `signal`, with the siginfo and
// the registers of the interrupted code: the signal is sent once more, and is
// delivered when the handler returns. Most faults would happen again by
// themselves, but not where another thread has made the touch legal meanwhile,
// and not for a signal that reports no fault.
void DieByDefault(int signal, siginfo_t* info, ucontext_t* context) {
  struct sigaction default_action = {};
  default_action.sa_handler = SIG_DFL;
  sigaction(signal, &default_action, nullptr);
  // The signal must not come before the return, where the registers would be
  // those of this function; and no other signal may come before it.
  sigset_t all;
  sigfillset(&all);
  SetMask(all);
  sigdelset(&context->uc_sigmask, signal);
  const long thread = syscall(SYS_gettid);
  if (syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, signal, info) != 0) {
    syscall(SYS_tgkill, getpid(), thread, signal);
  }
}

// Calls the previous action as the kernel would have. `direct`: our handler was
// called by the kernel itself.
void Chain(int signal, siginfo_t* info, void* ucontext, bool direct) {
  const int slot = SlotOfSignal(signal);
  PreviousAction* previous =
      direct ? g_actions_in_front[slot].load(std::memory_order_acquire)
             : nullptr;
  if (previous == nullptr) {
    previous = g_previous_actions[slot].load(std::memory_order_acquire);
  }
  auto* const context = static_cast<ucontext_t*>(ucontext);
  const struct sigaction& action = previous->action;
  if (!IsFunction(action) || previous->spent.load(std::memory_order_relaxed)) {
    if (action.sa_handler == SIG_IGN && !IsForced(signal, *info)) return;
    DieByDefault(signal, info, context);
    return;
  }
  if ((action.sa_flags & SA_RESETHAND) != 0) {
    previous->spent.store(true, std::memory_order_relaxed);
  }
  sigset_t mask;
  sigorset(&mask, &context->uc_sigmask, &action.sa_mask);
  if ((action.sa_flags & (SA_NODEFER | SA_RESETHAND)) == 0) {
    sigaddset(&mask, signal);
  }
  SetMask(mask);
  // The kernel passes all three arguments to a handler without SA_SIGINFO, too.
  if (direct && (action.sa_flags & SA_ONSTACK) == 0) {
    CallOnInterruptedStack(action.sa_sigaction, signal, info, ucontext);
  }
  if ((action.sa_flags & SA_SIGINFO) != 0) {
    action.sa_sigaction(signal, info, ucontext);
  } else {
    action.sa_handler(signal);
  }
}

}  // namespace

void OnSignal(int signal, siginfo_t* info, void* ucontext) {
  // The kernel puts the return address right below the ucontext. A handler in
  // front of ours that passes a signal on to ours has a frame of its own in
  // between.
  const bool direct =
      static_cast<char*>(__builtin_frame_address(0)) + 2 * sizeof(void*) ==
      ucontext;
  const int saved_errno = errno;
  if (HandleFault(signal, info, ucontext) != FaultOutcome::kResolved) {
    errno = saved_errno;
    Chain(signal, info, ucontext, direct);
  }
  errno = saved_errno;
}

}  // namespace firsttouch
