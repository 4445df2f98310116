// System calls and signals of a piece of code, counted from outside.

#ifndef FIRSTTOUCH_BENCH_COUNT_CALLS_H_
#define FIRSTTOUCH_BENCH_COUNT_CALLS_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace firsttouch::bench {

struct CallCounts {
  // Of all threads; rt_sigreturn included.
  uint64_t system_calls = 0;
  // Deliveries of SIGBUS and SIGSEGV.
  uint64_t signals = 0;
};

// Runs `body` in a child of fork(2), which this process traces by ptrace(2),
// and counts between body's two calls of the given function, from whichever
// thread. Threads that the child starts are counted too. Call it while this
// process has one thread and no other child. The child ends after `body`: what
// it made is gone.
//
// Nothing is assumed of `body`; it is slowed down by some us a system call.
// Errors: PermissionDenied where ptrace is refused (as containers may do), or
// the errno of fork; Aborted when the child ended otherwise than by returning
// from `body` after two marks.
absl::StatusOr<CallCounts> CountCalls(
    absl::FunctionRef<void(absl::FunctionRef<void()> mark)> body);

// Returns when every other thread of this process sleeps in the kernel. Threads
// that serve what was done before a first mark may still be at it, and one that
// was just made may not have begun: their calls would be counted. For threads
// that have nothing to do then but to wait; otherwise it may never return.
void WaitUntilOtherThreadsSleep();

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_COUNT_CALLS_H_
