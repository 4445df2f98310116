// Threads that take none of the host's signals, but for those that they raise
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
// signals are none of its business. Those that the thread raises itself by a
// fault (SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS) are unblocked, so
// that the host's crash handlers see what its code did that runs here, such as
// a PageSource. Named `name`, cut to the 15 bytes that the kernel takes. The
// caller's own mask is as before.
//
// Any thread. Errors: ResourceExhausted where no thread can be had, with the
// reason as its whole message; what the thread was for, the caller knows.
absl::StatusOr<std::thread> StartSignalMaskedThread(const std::string& name,
                                                    std::function<void()> body);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_SIGNAL_MASKED_THREAD_H_
