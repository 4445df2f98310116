// What a service of systemd does, without its library: sockets that are there
// when it starts, telling when it is ready and that it is well, and descriptors
// that outlive it.
//
// Threads: one, before others are started; but for the functions that tell
// systemd something, which any thread may call.

#ifndef FIRSTTOUCH_TOOLS_FIRSTTOUCHD_SYSTEMD_H_
#define FIRSTTOUCH_TOOLS_FIRSTTOUCHD_SYSTEMD_H_

#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::firsttouchd {

// What systemd has passed.
struct Inherited {
  struct Named {
    std::string name;  // Of $LISTEN_FDNAMES; may be empty.
    UniqueFd fd;
  };
  std::vector<Named> sockets;  // That listen.
  std::vector<Named> kept;     // Userfaultfds, of Keep().
};

// The descriptors of $LISTEN_FDS, where $LISTEN_PID is this process; otherwise
// none. The variables are taken out of the environment. Errors: InvalidArgument
// for a number that is none, or a descriptor that is neither a listening socket
// nor a userfaultfd.
absl::StatusOr<Inherited> TakeInherited();

// Sends a line such as "READY=1" to $NOTIFY_SOCKET, if there is one, with a
// descriptor, if one is given. Errors: what the system gives.
absl::Status Notify(const std::string& state, int fd = -1);

// Has systemd keep a userfaultfd under a name, for the next start; and no more.
absl::Status Keep(const std::string& name, int uffd);
absl::Status KeepNoMore(const std::string& name);

// How often the watchdog is to be told that this process is well: half of what
// $WATCHDOG_USEC says, where $WATCHDOG_PID is this process or not there.
// Nothing: there is no watchdog.
std::optional<std::chrono::milliseconds> WatchdogPeriod();

// Tells the watchdog so from a thread of its own, as long as it lives and at
// most for `longest`: while the main thread waits for something that has a
// deadline. Nothing where there is no watchdog.
class WatchdogMeanwhile {
 public:
  explicit WatchdogMeanwhile(std::chrono::milliseconds longest);
  ~WatchdogMeanwhile();
  WatchdogMeanwhile(const WatchdogMeanwhile&) = delete;
  WatchdogMeanwhile& operator=(const WatchdogMeanwhile&) = delete;

 private:
  UniqueFd end_;  // An eventfd.
  std::thread thread_;
};

}  // namespace firsttouch::firsttouchd

#endif  // FIRSTTOUCH_TOOLS_FIRSTTOUCHD_SYSTEMD_H_
