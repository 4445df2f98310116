// The handler that is installed for SIGBUS and SIGSEGV (signals.h), and what it
// passes a signal on to that is none of ours.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage; //service:fault_path_symbols_test holds the object file
// to that. (What was there before us, and is passed on to, does what it does.)

#ifndef FIRSTTOUCH_SERVICE_INSTALLED_HANDLER_H_
#define FIRSTTOUCH_SERVICE_INSTALLED_HANDLER_H_

#include <signal.h>

#include <atomic>

namespace firsttouch {

// An index for what is kept for each of the two signals.
constexpr int SlotOfSignal(int signal) { return signal == SIGBUS ? 0 : 1; }

// An action that ours stands in front of. Constant once it is published, and
// never freed: a handler may still be reading one that was replaced.
struct PreviousAction {
  struct sigaction action;
  // Set when a handler with SA_RESETHAND was called once.
  std::atomic<bool> spent{false};
  PreviousAction* older = nullptr;  // for leak checkers
};

// What was there before us, for each signal; null before the first install.
extern std::atomic<PreviousAction*> g_previous_actions[2];

// What somebody put in front of ours, and we then went in front of again; null
// where there is none. It may pass on to ours, and then goes on to
// g_previous_actions.
extern std::atomic<PreviousAction*> g_actions_in_front[2];

// Whether the action calls a function, and is not SIG_DFL or SIG_IGN.
bool IsFunction(const struct sigaction& action);

// The handler: resolves a fault of ours, and passes everything else on, as the
// kernel would have called what was there before us.
void OnSignal(int signal, siginfo_t* info, void* ucontext);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_INSTALLED_HANDLER_H_
