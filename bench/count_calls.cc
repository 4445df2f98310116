#include "firsttouch/bench/count_calls.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace firsttouch::bench {
namespace {

// A number that no system call has: the kernel answers ENOSYS, and nothing but
// a mark makes it.
constexpr long kMarkCall = 0x4d41524b;

void Mark() { syscall(kMarkCall); }

[[noreturn]] void RunChild(
    absl::FunctionRef<void(absl::FunctionRef<void()> mark)> body) {
  if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(errno & 0x7f);
  raise(SIGSTOP);
  body(Mark);
  _exit(0);
}

// Continues a stopped thread up to its next system call; it may have been
// killed meanwhile.
void Continue(pid_t thread, int signal) {
  ptrace(PTRACE_SYSCALL, thread, nullptr, static_cast<uintptr_t>(signal));
}

}  // namespace

absl::StatusOr<CallCounts> CountCalls(
    absl::FunctionRef<void(absl::FunctionRef<void()> mark)> body) {
  const pid_t child = fork();
  if (child < 0) return absl::ErrnoToStatus(errno, "fork");
  if (child == 0) RunChild(body);

  int status = 0;
  if (waitpid(child, &status, __WALL) != child) {
    return absl::ErrnoToStatus(errno, "waitpid");
  }
  if (WIFEXITED(status)) {
    return absl::ErrnoToStatus(WEXITSTATUS(status), "PTRACE_TRACEME");
  }
  if (ptrace(PTRACE_SETOPTIONS, child, nullptr,
             PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL) !=
      0) {
    const int error = errno;
    kill(child, SIGKILL);
    waitpid(child, &status, __WALL);
    return absl::ErrnoToStatus(error, "PTRACE_SETOPTIONS");
  }
  Continue(child, 0);

  CallCounts counts;
  int marks = 0;
  for (;;) {
    const pid_t thread = waitpid(-1, &status, __WALL);
    if (thread < 0) return absl::ErrnoToStatus(errno, "waitpid");
    if (!WIFSTOPPED(status)) {
      if (thread != child) continue;  // one of its threads ended
      if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && marks == 2) {
        return counts;
      }
      return absl::AbortedError(
          absl::StrCat("the counted child ended with wait status ", status,
                       " after ", marks, " of 2 marks"));
    }
    const int signal = WSTOPSIG(status);
    if (signal == (SIGTRAP | 0x80)) {
      __ptrace_syscall_info info;
      if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) > 0 &&
          info.op == PTRACE_SYSCALL_INFO_ENTRY) {
        if (info.entry.nr == kMarkCall) {
          ++marks;
        } else if (marks == 1) {
          ++counts.system_calls;
        }
      }
      Continue(thread, 0);
    } else if (signal == SIGTRAP || signal == SIGSTOP) {
      // A clone event, or the first stop of the new thread.
      Continue(thread, 0);
    } else {
      if (marks == 1 && (signal == SIGBUS || signal == SIGSEGV)) {
        ++counts.signals;
      }
      Continue(thread, signal);
    }
  }
}

}  // namespace firsttouch::bench
