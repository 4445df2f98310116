// Counts the system calls of a program by running it under ptrace: all of
// them, whoever makes them, those of signal handlers and of other threads
// included.

#ifndef FIRSTTOUCH_EXAMPLES_SYSTEM_CALLS_H_
#define FIRSTTOUCH_EXAMPLES_SYSTEM_CALLS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace firsttouch::examples {

// For the program that is counted: what lies between the two is counted, the
// rest is not. Both are system calls themselves, which do nothing.
void BeginCountedPart();
void EndCountedPart();

struct SystemCalls {
  uint64_t total = 0;
  std::map<std::string, uint64_t> by_name;
  // The program's exit status.
  int exit_status = 0;
};

// Runs `arguments[0]` with the others, its output thrown away, and counts.
// PermissionDenied or another error where ptrace is refused; Aborted when a
// signal ends the program. Must not be called while this process has other
// children.
absl::StatusOr<SystemCalls> CountSystemCalls(
    const std::vector<std::string>& arguments);

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_SYSTEM_CALLS_H_
