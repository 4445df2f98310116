#include "firsttouch/uffd/signal_masked_thread.h"

#include <pthread.h>
#include <signal.h>

#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/status/status.h"

namespace firsttouch {

absl::StatusOr<std::thread> StartSignalMaskedThread(
    const std::string& name, std::function<void()> body) {
  sigset_t masked;
  sigset_t before;
  sigfillset(&masked);
  for (const int own : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS}) {
    sigdelset(&masked, own);
  }
  pthread_sigmask(SIG_SETMASK, &masked, &before);
  std::thread thread;
  std::error_code error;
  // std::thread reports failure only by an exception.
  try {
    thread = std::thread(std::move(body));
  } catch (const std::system_error& refused) {
    error = refused.code();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error) return absl::ResourceExhaustedError(error.message());
  constexpr size_t kMostNameBytes = 15;
  pthread_setname_np(thread.native_handle(),
                     name.substr(0, kMostNameBytes).c_str());
  return thread;
}

}  // namespace firsttouch
