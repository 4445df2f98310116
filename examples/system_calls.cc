#include "firsttouch/examples/system_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace firsttouch::examples {
namespace {

// prctl(2) returns EINVAL for these.
constexpr unsigned kBeginMark = 0x66740001;
constexpr unsigned kEndMark = 0x66740002;

// The child's exit code when ptrace or exec fails.
constexpr int kCannotTrace = 126;
constexpr int kCannotExecute = 127;

struct PtraceSyscallInfo {  // struct ptrace_syscall_info, Linux 5.3
  uint8_t op;
  uint8_t pad[3];
  uint32_t arch;
  uint64_t instruction_pointer;
  uint64_t stack_pointer;
  uint64_t number;  // and arguments, at an entry
  uint64_t arguments[6];
};
constexpr uint8_t kEntry = 1;
constexpr int kGetSyscallInfo = 0x420e;  // PTRACE_GET_SYSCALL_INFO

std::string NameOf(uint64_t number) {
  switch (number) {
    case SYS_clock_nanosleep:
      return "clock_nanosleep";
    case SYS_exit:
      return "exit";
    case SYS_futex:
      return "futex";
    case SYS_getrandom:
      return "getrandom";
    case SYS_ioctl:
      return "ioctl";
    case SYS_madvise:
      return "madvise";
    case SYS_mmap:
      return "mmap";
    case SYS_mprotect:
      return "mprotect";
    case SYS_munmap:
      return "munmap";
    case SYS_poll:
      return "poll";
    case SYS_ppoll:
      return "ppoll";
    case SYS_process_madvise:
      return "process_madvise";
    case SYS_read:
      return "read";
    case SYS_rt_sigprocmask:
      return "rt_sigprocmask";
    case SYS_rt_sigreturn:
      return "rt_sigreturn";
    case SYS_sched_yield:
      return "sched_yield";
    case SYS_sigaltstack:
      return "sigaltstack";
    case SYS_write:
      return "write";
    default:
      return absl::StrCat("number ", number);
  }
}

// The child's part: stops until the tracer lets it continue. Async-signal-safe.
void BeginToBeTraced() {
  if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(kCannotTrace);
  raise(SIGSTOP);
}

// Becomes the program. Async-signal-safe.
[[noreturn]] void BecomeTraced(char* const* arguments) {
  const int null = open("/dev/null", O_RDWR);
  if (null >= 0) {
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
  }
  BeginToBeTraced();
  execv(arguments[0], arguments);
  _exit(kCannotExecute);
}

// Follows one program.
class Tracer {
 public:
  explicit Tracer(pid_t child) : child_(child) {}

  absl::StatusOr<SystemCalls> Run() {
    int status = 0;
    if (waitpid(child_, &status, __WALL) != child_) return Failed("waitpid");
    if (WIFEXITED(status)) {
      return absl::PermissionDeniedError(
          "ptrace(PTRACE_TRACEME) was refused: system calls are not counted");
    }
    constexpr long kOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE |
                              PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
    if (ptrace(static_cast<__ptrace_request>(PTRACE_SETOPTIONS), child_, 0,
               kOptions) != 0) {
      const absl::Status failed = Failed("ptrace(PTRACE_SETOPTIONS)");
      kill(child_, SIGKILL);
      waitpid(child_, &status, __WALL);
      return failed;
    }
    known_.insert(child_);
    Continue(child_, 0);
    for (;;) {
      const pid_t thread = waitpid(-1, &status, __WALL);
      if (thread < 0 && errno == EINTR) continue;
      if (thread < 0) return Failed("waitpid");
      if (thread == child_ && WIFEXITED(status)) {
        calls_.exit_status = WEXITSTATUS(status);
        return calls_;
      }
      if (thread == child_ && WIFSIGNALED(status)) {
        return absl::AbortedError(absl::StrCat(
            "the counted program died by signal ", WTERMSIG(status)));
      }
      if (WIFSTOPPED(status)) OnStop(thread, status);
    }
  }

 private:
  static absl::Status Failed(const char* call) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat(call, " failed (errno ", errno,
                                            "): system calls are not counted"));
  }

  static void Continue(pid_t thread, int signal) {
    ptrace(PTRACE_SYSCALL, thread, nullptr, static_cast<intptr_t>(signal));
  }

  void OnStop(pid_t thread, int status) {
    const int signal = WSTOPSIG(status);
    if (signal == (SIGTRAP | 0x80)) {
      OnSystemCall(thread);
      Continue(thread, 0);
    } else if ((status >> 16) != 0) {
      Continue(thread, 0);  // it made a thread, or became the program
    } else if (signal == SIGSTOP && known_.insert(thread).second) {
      Continue(thread, 0);  // a new thread begins
    } else {
      if (counting_ && (signal == SIGBUS || signal == SIGSEGV)) {
        ++calls_.signals;
      }
      Continue(thread, signal);
    }
  }

  void OnSystemCall(pid_t thread) {
    PtraceSyscallInfo info = {};
    if (ptrace(static_cast<__ptrace_request>(kGetSyscallInfo), thread,
               sizeof(info), &info) <= 0 ||
        info.op != kEntry) {
      return;
    }
    if (info.number == SYS_prctl && info.arguments[0] == kBeginMark) {
      counting_ = true;
    } else if (info.number == SYS_prctl && info.arguments[0] == kEndMark) {
      counting_ = false;
      ++calls_.parts;
    } else if (counting_) {
      ++calls_.total;
      ++calls_.by_name[NameOf(info.number)];
    }
  }

  const pid_t child_;
  std::set<pid_t> known_;
  bool counting_ = false;
  SystemCalls calls_;
};

// Whether the thread sleeps; true also when it has ended.
bool Sleeps(const std::string& directory) {
  std::ifstream stat(absl::StrCat(directory, "/stat"));
  std::string text;
  std::getline(stat, text);
  // "<id> (<name>) <state> ...", where a name may have parentheses.
  const size_t name_end = text.rfind(") ");
  return name_end == std::string::npos || text[name_end + 2] == 'S';
}

absl::Status ForkFailed() {
  return absl::ErrnoToStatus(errno,
                             absl::StrCat("fork failed (errno ", errno, ")"));
}

}  // namespace

void WaitUntilOtherThreadsSleep() {
  const std::string self = absl::StrCat(syscall(SYS_gettid));
  // The check must succeed twice in a row: a thread may sleep for a moment on
  // its way.
  for (int quiet = 0; quiet < 2; ++quiet) {
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/self/task")) {
      if (task.path().filename() == self) continue;
      if (Sleeps(task.path().string())) continue;
      quiet = -1;
      break;
    }
    sched_yield();
  }
}

void BeginCountedPart() { prctl(static_cast<int>(kBeginMark), 0, 0, 0, 0); }
void EndCountedPart() { prctl(static_cast<int>(kEndMark), 0, 0, 0, 0); }

absl::StatusOr<SystemCalls> CountSystemCalls(
    const std::vector<std::string>& arguments) {
  std::vector<char*> pointers;
  for (const std::string& argument : arguments) {
    pointers.push_back(const_cast<char*>(argument.c_str()));
  }
  pointers.push_back(nullptr);
  const pid_t child = fork();
  if (child < 0) return ForkFailed();
  if (child == 0) BecomeTraced(pointers.data());
  absl::StatusOr<SystemCalls> calls = Tracer(child).Run();
  if (calls.ok() && calls->exit_status == kCannotExecute) {
    return absl::NotFoundError(absl::StrCat("cannot execute ", arguments[0]));
  }
  return calls;
}

absl::StatusOr<SystemCalls> CountSystemCallsOf(absl::FunctionRef<void()> body) {
  const pid_t child = fork();
  if (child < 0) return ForkFailed();
  if (child == 0) {
    BeginToBeTraced();
    body();
    _exit(0);
  }
  return Tracer(child).Run();
}

}  // namespace firsttouch::examples
