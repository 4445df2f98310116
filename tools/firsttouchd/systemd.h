// What a service of systemd does, without its library: sockets that are there
// when it starts, and telling when it is ready.
//
// Threads: one, before others are started.

#ifndef FIRSTTOUCH_TOOLS_FIRSTTOUCHD_SYSTEMD_H_
#define FIRSTTOUCH_TOOLS_FIRSTTOUCHD_SYSTEMD_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::firsttouchd {

// The listening sockets of $LISTEN_FDS, where $LISTEN_PID is this process;
// otherwise none. The variables are taken out of the environment. Errors:
// InvalidArgument for a number that is none, or a descriptor that is no socket.
absl::StatusOr<std::vector<UniqueFd>> InheritedSockets();

// Sends a line such as "READY=1" to $NOTIFY_SOCKET, if there is one. Errors:
// what the system gives.
absl::Status Notify(const std::string& state);

}  // namespace firsttouch::firsttouchd

#endif  // FIRSTTOUCH_TOOLS_FIRSTTOUCHD_SYSTEMD_H_
