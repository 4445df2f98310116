#include "firsttouch/uffd/quiet_thread.h"

#include <pthread.h>
#include <signal.h>

#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/status/status.h"

namespace firsttouch {

absl::StatusOr<std::thread> StartQuietThread(const std::string& name,
                                             std::function<void()> body) {
  sigset_t quiet;
  sigset_t before;
  sigfillset(&quiet);
  for (const int own : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS}) {
    sigdelset(&quiet, own);
  }
  pthread_sigmask(SIG_SETMASK, &quiet, &before);
  std::thread thread;
  std::error_code error;
  // std::thread reports failure by an exception, and in no other way.
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
