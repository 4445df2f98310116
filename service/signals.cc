#include "firsttouch/service/signals.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/installed_handler.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/signal_mask.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr int kSignals[] = {SIGBUS, SIGSEGV};

// Counts installs and uninstalls: a check is valid as long as this value has
// not changed.
std::atomic<uint32_t> g_changes{1};

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
    stack_t present;
    if (sigaltstack(nullptr, &present) != 0) return;
    // A stack that other code has installed later stays.
    if (IsOurs(present)) {
      stack_t disable = {};
      disable.ss_flags = SS_DISABLE;
      // The thread still runs on it (it ends inside a handler): leave it
      // mapped.
      if (sigaltstack(&disable, nullptr) != 0) return;
    }
    munmap(mapping_, bytes_);
  }

  absl::Status Ensure() {
    stack_t present;
    if (sigaltstack(nullptr, &present) != 0) {
      return ErrnoStatus(errno, "sigaltstack(2) to look at the present stack");
    }
    if (IsOurs(present)) return absl::OkStatus();
    const size_t frame = KernelFrameBytes();
    const size_t needed = frame + kPageBytes;
    const bool is_there = (present.ss_flags & SS_DISABLE) == 0;
    if (is_there && present.ss_size >= needed) return absl::OkStatus();
    if (is_there && (present.ss_flags & SS_ONSTACK) != 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the thread runs on its alternate signal stack, which has ",
          present.ss_size, " bytes; the fault handler needs at least ", needed,
          " here (AT_MINSIGSTKSZ ", frame, " + ", kPageBytes,
          "): call this outside of signal handlers, and firsttouch replaces it "
          "by a larger one"));
    }
    if (mapping_ == nullptr) {
      if (absl::Status status = Map(frame); !status.ok()) return status;
    }
    stack_t stack = {};
    // The guard page is declared as a part of the stack. The kernel takes the
    // red zone, 128 bytes, off the stack pointer before it checks whether a
    // signal comes on the alternate stack: for the last bytes above its low end
    // the answer would be no, and the next frame would go to the top, over
    // frames in use.
    stack.ss_sp = mapping_;
    stack.ss_size = bytes_;
    if (sigaltstack(&stack, nullptr) != 0) {
      return ErrnoStatus(errno, "installing the thread's alternate stack");
    }
    return absl::OkStatus();
  }

 private:
  bool IsOurs(const stack_t& present) const {
    return (present.ss_flags & SS_DISABLE) == 0 && mapping_ != nullptr &&
           present.ss_sp == mapping_ && present.ss_size == bytes_;
  }

  absl::Status Map(size_t frame_bytes) {
    const size_t bytes =
        RoundUpToPage(frame_bytes + kAlternateStackBytes) + kPageBytes;
    void* const mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED) {
      const int error = errno;
      return ErrnoStatus(
          error, absl::StrCat("mmap of ", bytes,
                              " bytes for the thread's alternate signal stack",
                              error == ENOMEM ? ShortageText(bytes) : "")
                     .c_str());
    }
    if (mprotect(mapping, kPageBytes, PROT_NONE) != 0) {
      const int error = errno;
      munmap(mapping, bytes);
      return ErrnoStatus(
          error, absl::StrCat("mprotect of the guard page below the thread's "
                              "alternate signal stack",
                              error == ENOMEM ? ShortageText(0) : "")
                     .c_str());
    }
    mapping_ = mapping;
    bytes_ = bytes;
    return absl::OkStatus();
  }

  void* mapping_ = nullptr;
  size_t bytes_ = 0;
};

const char* NameOfSignal(int signal) {
  return signal == SIGBUS ? "SIGBUS" : "SIGSEGV";
}

bool IsOurs(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == OnSignal;
}

void Publish(std::atomic<PreviousAction*>& place,
             const struct sigaction& action) {
  auto* const previous = new PreviousAction;
  previous->action = action;
  previous->older = place.load(std::memory_order_relaxed);
  place.store(previous, std::memory_order_release);
}

// Notes `present`, which our handler is about to replace.
void NotePrevious(int signal, const struct sigaction& present, bool fresh) {
  std::atomic<PreviousAction*>& previous =
      g_previous_actions[SlotOfSignal(signal)];
  std::atomic<PreviousAction*>& in_front =
      g_actions_in_front[SlotOfSignal(signal)];
  const PreviousAction* const base = previous.load(std::memory_order_relaxed);
  if (fresh || base == nullptr || !IsFunction(present)) {
    // Nothing there can be passing signals on to our handler.
    Publish(previous, present);
    in_front.store(nullptr, std::memory_order_release);
  } else if (present.sa_handler == base->action.sa_handler) {
    // The action before our first install has been put back.
    in_front.store(nullptr, std::memory_order_release);
  } else {
    Publish(in_front, present);
  }
}

// Puts back the action directly behind ours.
void Restore(int signal) {
  const int slot = SlotOfSignal(signal);
  const PreviousAction* const in_front =
      g_actions_in_front[slot].load(std::memory_order_relaxed);
  const PreviousAction* const behind =
      in_front != nullptr
          ? in_front
          : g_previous_actions[slot].load(std::memory_order_relaxed);
  sigaction(signal, &behind->action, nullptr);
}

// Puts our handler in front of the present action of `signal`, if it is not
// there. `fresh`: no action is known to stand in front of ours.
absl::Status InstallFor(int signal, bool fresh) {
  struct sigaction present = {};
  if (sigaction(signal, nullptr, &present) != 0) {
    return ErrnoStatus(
        errno, absl::StrCat("sigaction(2) for ", NameOfSignal(signal)).c_str());
  }
  if (IsOurs(present)) return absl::OkStatus();
  // Noted first: as soon as our handler is in place it may have to chain.
  NotePrevious(signal, present, fresh);
  const struct sigaction ours = OurAction();
  struct sigaction now = {};
  if (sigaction(signal, &ours, nullptr) != 0 ||
      sigaction(signal, nullptr, &now) != 0) {
    return ErrnoStatus(
        errno, absl::StrCat("sigaction(2) for ", NameOfSignal(signal)).c_str());
  }
  if (IsOurs(now)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "sigaction(2) for ", NameOfSignal(signal),
      " said that it installed the fault handler, and did not: a sanitizer "
      "(allow_user_segv_handler=0; set handle_segv=0:handle_sigbus=0) or a "
      "preloaded library keeps the signal for itself"));
}

}  // namespace

void FillFaultHandlerMask(sigset_t* mask) {
  sigemptyset(mask);
  // Not by sigaddset(3), which skips the signals that the C library reserves.
  memcpy(mask, &kAsynchronousSignals, sizeof(kAsynchronousSignals));
}

absl::Status InstallFaultHandler() {
  Installs& installs = GetInstalls();
  MutexLock lock(&installs.mutex);
  const bool fresh =
      installs.count == 0 &&
      g_actions_in_front[0].load(std::memory_order_relaxed) == nullptr &&
      g_actions_in_front[1].load(std::memory_order_relaxed) == nullptr;
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    absl::Status status = InstallFor(kSignals[i], fresh);
    if (status.ok()) continue;
    // Undoes only what this call may have put in place.
    for (size_t done = 0; installs.count == 0 && done < i; ++done) {
      Restore(kSignals[done]);
    }
    return status;
  }
  ++installs.count;
  g_changes.fetch_add(1, std::memory_order_relaxed);
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
    if (!IsOurs(present)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the action for ", NameOfSignal(signal),
          " was changed after InstallFaultHandler: whoever did may still chain "
          "to firsttouch; restore it first, then uninstall"));
    }
  }
  for (int signal : kSignals) Restore(signal);
  installs.count = 0;
  g_changes.fetch_add(1, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status CheckFaultHandler() {
  for (int signal : kSignals) {
    struct sigaction present = {};
    if (sigaction(signal, nullptr, &present) != 0) {
      return ErrnoStatus(errno, "sigaction(2)");
    }
    const PreviousAction* const base =
        g_previous_actions[SlotOfSignal(signal)].load(
            std::memory_order_acquire);
    const char* now = nullptr;
    if (present.sa_handler == SIG_DFL) {
      now = "SIG_DFL";
    } else if (present.sa_handler == SIG_IGN) {
      now = "SIG_IGN";
    } else if (!IsOurs(present) && base != nullptr &&
               present.sa_handler == base->action.sa_handler) {
      now = "what it was before the fault handler was installed";
    }
    // Another function may pass signals on to ours, as any handler in front
    // must.
    if (now == nullptr) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "the action for ", NameOfSignal(signal), " is ", now,
        ", and not firsttouch's fault handler any more: somebody has replaced "
        "it since, and a first touch of pool memory would end the process; "
        "InstallFaultHandler() puts it back in front"));
  }
  return absl::OkStatus();
}

absl::Status CheckSignalsUnblocked() {
  sigset_t mask;
  sigemptyset(&mask);
  if (const int error = pthread_sigmask(SIG_BLOCK, nullptr, &mask);
      error != 0) {
    return ErrnoStatus(error, "pthread_sigmask(3)");
  }
  for (int signal : kSignals) {
    if (sigismember(&mask, signal) != 1) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        NameOfSignal(signal),
        " is blocked in this thread: the kernel would end the process at a "
        "touch of pool memory instead of calling the fault handler; unblock "
        "SIGBUS and SIGSEGV in each thread that runs guest code "
        "(pthread_sigmask(3)), also where all other signals are blocked"));
  }
  return absl::OkStatus();
}

uint32_t FaultHandlerChanges() {
  return g_changes.load(std::memory_order_relaxed);
}

absl::Status PrepareGuestThread() {
  if (absl::Status status = EnsureAlternateStack(); !status.ok()) {
    return status;
  }
  return CheckSignalsUnblocked();
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
