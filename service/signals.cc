#include "firsttouch/service/signals.h"

#include <errno.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/signal_mask.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr int kSignals[] = {SIGBUS, SIGSEGV};

constexpr int SlotOfSignal(int signal) { return signal == SIGBUS ? 0 : 1; }

// What was there before us. Written before our handler is installed and not
// while it is; the handler reads it.
struct sigaction g_previous[2];
// Set when a previous handler with SA_RESETHAND was called once.
std::atomic<bool> g_previous_spent[2];

struct Installs {
  Mutex mutex;
  int count ABSL_GUARDED_BY(mutex) = 0;
};

Installs& GetInstalls() {
  static Installs* const installs = new Installs;
  return *installs;
}

size_t KernelFrameBytes() {
  const size_t from_kernel = getauxval(AT_MINSIGSTKSZ);
  return std::max<size_t>(from_kernel, 2048);
}

// Sets the mask of the calling thread without touching errno.
void SetMask(const sigset_t& mask) {
  constexpr size_t kKernelSigsetBytes = 8;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, kKernelSigsetBytes);
}

// The process gets the default action of `signal`.
void DieByDefault(int signal, siginfo_t* info) {
  struct sigaction default_action = {};
  default_action.sa_handler = SIG_DFL;
  sigaction(signal, &default_action, nullptr);
  // A fault happens again at the return and then kills with its own siginfo and
  // registers. A signal that was sent has to be sent again.
  if (info->si_code <= 0) {
    syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), signal, info);
  }
}

// Calls the previous action as the kernel would have.
void Chain(int signal, siginfo_t* info, void* ucontext) {
  const int slot = SlotOfSignal(signal);
  const struct sigaction& previous = g_previous[slot];
  const bool has_function =
      (previous.sa_flags & SA_SIGINFO) != 0 ||
      (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN);
  if (!has_function || g_previous_spent[slot].load(std::memory_order_relaxed)) {
    // The kernel ignores SIG_IGN for a fault, since it would never end.
    if (previous.sa_handler == SIG_IGN && info->si_code <= 0) return;
    DieByDefault(signal, info);
    return;
  }
  if ((previous.sa_flags & SA_RESETHAND) != 0) {
    g_previous_spent[slot].store(true, std::memory_order_relaxed);
  }
  sigset_t mask;
  sigorset(&mask, &static_cast<ucontext_t*>(ucontext)->uc_sigmask,
           &previous.sa_mask);
  if ((previous.sa_flags & (SA_NODEFER | SA_RESETHAND)) == 0) {
    sigaddset(&mask, signal);
  }
  SetMask(mask);
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(signal, info, ucontext);
  } else {
    previous.sa_handler(signal);
  }
}

void OnSignal(int signal, siginfo_t* info, void* ucontext) {
  const int saved_errno = errno;
  if (HandleFault(signal, info, ucontext) != FaultOutcome::kResolved) {
    Chain(signal, info, ucontext);
  }
  errno = saved_errno;
}

struct sigaction OurAction() {
  struct sigaction action = {};
  action.sa_sigaction = OnSignal;
  // SA_NODEFER: a fault inside a callback is delivered and does not kill.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  FillFaultHandlerMask(&action.sa_mask);
  return action;
}

absl::Status ErrnoStatus(int error, const char* what) {
  return absl::ErrnoToStatus(error, what);
}

// The alternate stack that EnsureAlternateStack() made for this thread.
class ThreadAlternateStack {
 public:
  ThreadAlternateStack() = default;
  ~ThreadAlternateStack() {
    if (mapping_ == nullptr) return;
    stack_t disable = {};
    disable.ss_flags = SS_DISABLE;
    // Running on it still (a thread that ends inside a handler): leave it.
    if (sigaltstack(&disable, nullptr) != 0) return;
    munmap(mapping_, bytes_);
  }

  absl::Status Ensure() {
    if (ready_) return absl::OkStatus();
    stack_t present;
    if (sigaltstack(nullptr, &present) != 0) {
      return ErrnoStatus(errno, "sigaltstack(2) to look at the present stack");
    }
    const size_t frame = KernelFrameBytes();
    if ((present.ss_flags & SS_DISABLE) == 0) {
      const size_t needed = frame + kPageBytes;
      if (present.ss_size < needed) {
        return absl::FailedPreconditionError(absl::StrCat(
            "the thread's alternate signal stack has ", present.ss_size,
            " bytes; the fault handler needs at least ", needed,
            " here (AT_MINSIGSTKSZ ", frame, " + ", kPageBytes,
            "): install a larger one with sigaltstack(2), or none, and "
            "firsttouch makes one"));
      }
      ready_ = true;
      return absl::OkStatus();
    }
    const size_t stack_bytes = RoundUpToPage(frame + kAlternateStackBytes);
    const size_t bytes = stack_bytes + kPageBytes;
    void* mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED) {
      return ErrnoStatus(
          errno, absl::StrCat("mmap of ", bytes,
                              " bytes for the thread's alternate signal stack")
                     .c_str());
    }
    stack_t stack = {};
    // The guard page counts as a part of it. The kernel takes the red zone, 128
    // bytes, off the stack pointer before it asks whether a signal comes on the
    // alternate stack: on the last bytes above its low end the answer would be
    // no, and the next frame would go to the top, over frames in use.
    stack.ss_sp = mapping;
    stack.ss_size = bytes;
    if (mprotect(mapping, kPageBytes, PROT_NONE) != 0 ||
        sigaltstack(&stack, nullptr) != 0) {
      const int error = errno;
      munmap(mapping, bytes);
      return ErrnoStatus(error, "installing the thread's alternate stack");
    }
    mapping_ = mapping;
    bytes_ = bytes;
    ready_ = true;
    return absl::OkStatus();
  }

 private:
  bool ready_ = false;
  void* mapping_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace

void FillFaultHandlerMask(sigset_t* mask) {
  sigemptyset(mask);
  // Not by sigaddset(3), which leaves out what the C library keeps to itself.
  memcpy(mask, &kAsynchronousSignals, sizeof(kAsynchronousSignals));
}

absl::Status InstallFaultHandler() {
  Installs& installs = GetInstalls();
  MutexLock lock(&installs.mutex);
  if (installs.count > 0) {
    ++installs.count;
    return absl::OkStatus();
  }
  const struct sigaction ours = OurAction();
  int installed = 0;
  for (int signal : kSignals) {
    const int slot = SlotOfSignal(signal);
    g_previous_spent[slot].store(false, std::memory_order_relaxed);
    // Read first: from the moment ours is in place it may have to chain.
    if (sigaction(signal, nullptr, &g_previous[slot]) != 0 ||
        sigaction(signal, &ours, nullptr) != 0) {
      const int error = errno;
      for (int i = 0; i < installed; ++i) {
        sigaction(kSignals[i], &g_previous[SlotOfSignal(kSignals[i])], nullptr);
      }
      return ErrnoStatus(
          error, absl::StrCat("sigaction(2) for ", strsignal(signal)).c_str());
    }
    ++installed;
  }
  installs.count = 1;
  return absl::OkStatus();
}

absl::Status UninstallFaultHandler() {
  Installs& installs = GetInstalls();
  MutexLock lock(&installs.mutex);
  if (installs.count == 0) {
    return absl::FailedPreconditionError(
        "UninstallFaultHandler without an InstallFaultHandler to undo");
  }
  if (installs.count > 1) {
    --installs.count;
    return absl::OkStatus();
  }
  for (int signal : kSignals) {
    struct sigaction present;
    if (sigaction(signal, nullptr, &present) != 0) {
      return ErrnoStatus(errno, "sigaction(2)");
    }
    if ((present.sa_flags & SA_SIGINFO) == 0 ||
        present.sa_sigaction != OnSignal) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the action for ", signal == SIGBUS ? "SIGBUS" : "SIGSEGV",
          " was changed after InstallFaultHandler: whoever did may still chain "
          "to firsttouch; restore it first, then uninstall"));
    }
  }
  for (int signal : kSignals) {
    sigaction(signal, &g_previous[SlotOfSignal(signal)], nullptr);
  }
  installs.count = 0;
  return absl::OkStatus();
}

absl::Status EnsureAlternateStack() {
  static thread_local ThreadAlternateStack stack;
  return stack.Ensure();
}

absl::Status CheckAlternateStack() {
  stack_t present;
  if (sigaltstack(nullptr, &present) != 0) {
    return ErrnoStatus(errno, "sigaltstack(2)");
  }
  if ((present.ss_flags & SS_DISABLE) != 0) {
    return absl::FailedPreconditionError(
        "the thread has no alternate signal stack: a guest that overflows its "
        "stack would kill the process; call EnsureAlternateStack() on every "
        "thread that runs guest code");
  }
  return absl::OkStatus();
}

}  // namespace firsttouch
