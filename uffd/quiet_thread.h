// Threads that a host does not notice: they take none of its signals.

#ifndef FIRSTTOUCH_UFFD_QUIET_THREAD_H_
#define FIRSTTOUCH_UFFD_QUIET_THREAD_H_

#include <functional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"

namespace firsttouch {

// Starts a thread that runs `body`, with all signals blocked: a thread inherits
// the mask of the one that starts it, and the host's signals are none of its
// business. Named `name`, cut to the 15 bytes that the kernel takes. The
// caller's own mask is as before.
//
// Any thread. Errors: ResourceExhausted where no thread can be had, with the
// reason as its whole message; what the thread was for, the caller knows.
absl::StatusOr<std::thread> StartQuietThread(const std::string& name,
                                             std::function<void()> body);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_QUIET_THREAD_H_
