// Threads that take none of the host's signals, except those that they raise
// themselves by a fault.

#ifndef FIRSTTOUCH_UFFD_SIGNAL_MASKED_THREAD_H_
#define FIRSTTOUCH_UFFD_SIGNAL_MASKED_THREAD_H_

#include <functional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"

namespace firsttouch {

// Starts a thread that runs `body`, with all signals blocked that are sent to a
// process: a thread inherits the mask of the one that starts it, and the host's
// signals are not meant for this thread. Signals that the thread raises itself
// by a fault (SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS) are unblocked,
// so that the host's crash handlers see what the host's code does that runs
// here, such as a PageSource. The thread is named `name`, cut to the kernel's
// 15 bytes. The caller's own mask is unchanged.
//
// Any thread. Errors: ResourceExhausted where no thread can be had, with the
// reason as its whole message; the caller adds what the thread was for.
absl::StatusOr<std::thread> StartSignalMaskedThread(const std::string& name,
                                                    std::function<void()> body);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_SIGNAL_MASKED_THREAD_H_
