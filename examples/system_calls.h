// Counts the system calls of a program, or of a function, by running it under
// ptrace: all of them, whoever makes them, those of signal handlers and of
// other threads included.

#ifndef FIRSTTOUCH_EXAMPLES_SYSTEM_CALLS_H_
#define FIRSTTOUCH_EXAMPLES_SYSTEM_CALLS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace firsttouch::examples {

// Returns when every other thread of this process sleeps in the kernel. Threads
// that serve what was done before a counted part may still be at it, and one
// that was just made may not have begun: their calls would be counted. For
// threads that have nothing to do then but to wait; otherwise it may never
// return.
void WaitUntilOtherThreadsSleep();

// For what is counted: what lies between the two is counted, the rest is not;
// from whichever thread. Both are system calls themselves, which do nothing.
void BeginCountedPart();
void EndCountedPart();

struct SystemCalls {
  uint64_t total = 0;
  std::map<std::string, uint64_t> by_name;
  // Deliveries of SIGBUS and SIGSEGV.
  uint64_t signals = 0;
  // How often a counted part ended.
  uint32_t parts = 0;
  // The program's exit status.
  int exit_status = 0;
};

// Runs `arguments[0]` with the others, its output thrown away, and counts.
// PermissionDenied or another error where ptrace is refused; Aborted when a
// signal ends the program. Must not be called while this process has other
// children.
absl::StatusOr<SystemCalls> CountSystemCalls(
    const std::vector<std::string>& arguments);

// The same for `body`, which runs in a child of fork(2): what it makes is gone
// afterwards, and the exit status is 0. Must be called while this process has
// one thread only.
absl::StatusOr<SystemCalls> CountSystemCallsOf(absl::FunctionRef<void()> body);

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_SYSTEM_CALLS_H_
