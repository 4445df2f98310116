// Counts the system calls of a program, or of a function, by running it under
// ptrace: all of them, in whatever code, signal handlers and other threads
// included.

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
// that serve what was done before a counted part may still be working, and a
// thread that was just made may not have begun: their calls would be counted.
// Only for threads that then only wait; otherwise this may never return.
void WaitUntilOtherThreadsSleep();

// Called by the counted program: system calls between the two are counted, in
// all threads, and no others. Both are themselves system calls that do nothing.
void BeginCountedPart();
void EndCountedPart();

struct SystemCalls {
  uint64_t total = 0;
  std::map<std::string, uint64_t> by_name;
  // The number of SIGBUS and SIGSEGV signals delivered.
  uint64_t signals = 0;
  // The number of counted parts that have ended.
  uint32_t parts = 0;
  // The program's exit status.
  int exit_status = 0;
};

// Runs `arguments[0]` with the other arguments, discards its output, and
// counts. PermissionDenied or another error where ptrace is refused; Aborted
// when a signal ends the program. Must not be called while this process has
// other children.
absl::StatusOr<SystemCalls> CountSystemCalls(
    const std::vector<std::string>& arguments);

// Counts likewise for `body`, which runs in a child of fork(2): its effects end
// with the child, and the exit status is 0. Must be called while this process
// has only one thread.
absl::StatusOr<SystemCalls> CountSystemCallsOf(absl::FunctionRef<void()> body);

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_SYSTEM_CALLS_H_
