// The handler that is installed for SIGBUS and SIGSEGV (signals.h), and how it
// passes on signals that are not ours.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage; //service:fault_path_symbols_test holds the object file
// to that. (A handler of the host that a signal is passed on to keeps its own
// rules.)

#ifndef FIRSTTOUCH_SERVICE_INSTALLED_HANDLER_H_
#define FIRSTTOUCH_SERVICE_INSTALLED_HANDLER_H_

#include <signal.h>

#include <atomic>

namespace firsttouch {

// The index of what is kept for each of the two signals.
constexpr int SlotOfSignal(int signal) { return signal == SIGBUS ? 0 : 1; }

// An action that our handler stands in front of. Constant once published, and
// never freed: a handler may still be reading one that was replaced.
struct PreviousAction {
  struct sigaction action;
  // Set once a handler with SA_RESETHAND has been called.
  std::atomic<bool> spent{false};
  PreviousAction* older = nullptr;  // for leak checkers
};

// The action before our first install, for each signal; null before that.
extern std::atomic<PreviousAction*> g_previous_actions[2];

// The action that other code put in front of ours, and that our handler stands
// in front of since a later install; null where there is none. It may pass a
// signal on to our handler, which then goes on to g_previous_actions.
extern std::atomic<PreviousAction*> g_actions_in_front[2];

// Whether the action calls a function, that is, is not SIG_DFL or SIG_IGN.
bool IsFunction(const struct sigaction& action);

// The handler: resolves a fault of ours, and passes everything else on to the
// previous action as the kernel would have called it.
void OnSignal(int signal, siginfo_t* info, void* ucontext);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_INSTALLED_HANDLER_H_
