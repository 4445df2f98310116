// How one firsttouchd gives everything to the next: guests, sockets and the
// lock of the state, as descriptors over a Unix socket.
//
// The next one asks, at a socket in the folder of the state. The old one stops
// reading events, and sends. What guests fault meanwhile waits in the kernel.
// The next one says "taken" when it knows that it can serve what it got, and
// only then touches any of it; the old one ends. If that does not come, the old
// one goes on as if nothing had been. What an old one that is killed on the way
// leaves is what any killed one leaves.
//
//   old                                    next
//     <- connects ---------------------------
//     -- "lock", "socket NAME", "guest NAME", ..., "end" ->
//     <- "taken" ----------------------------
//
// Threads: thread-compatible.

#ifndef FIRSTTOUCH_TOOLS_FIRSTTOUCHD_HAND_OVER_H_
#define FIRSTTOUCH_TOOLS_FIRSTTOUCHD_HAND_OVER_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::firsttouchd {

// What belongs to a server beside its own memory.
struct Belongings {
  struct Descriptors {
    UniqueFd uffd;
    UniqueFd pidfd;  // May be none.
  };
  UniqueFd lock;
  std::map<std::string, UniqueFd> sockets;  // By SocketKey().
  // By the name of the journal's file: the folder may be written otherwise.
  std::map<std::string, Descriptors> guests;
};

// Where the server of a state listens for the next one.
std::string HandOverPath(const std::string& state);

// ---- The next one ----

class Successor {
 public:
  // Asks the server of a state for everything, and waits until it is here.
  // Unavailable: there is no server. Other errors: what the system gives, or
  // what the other server did wrong.
  static absl::StatusOr<Successor> Ask(const std::string& state);

  Belongings& belongings() { return belongings_; }
  // All of it is this process' business from now on.
  absl::Status Take();

 private:
  Successor(UniqueFd socket, Belongings belongings)
      : socket_(std::move(socket)), belongings_(std::move(belongings)) {}

  UniqueFd socket_;
  Belongings belongings_;
};

// ---- The old one ----

// Somebody who asks, at the listening socket. PermissionDenied: another user
// than this process' and root.
absl::StatusOr<UniqueFd> AcceptSuccessor(int listening);

// Sends copies of the descriptors. OK: the other one has taken them. Otherwise
// it has not, and they are this process' still.
absl::Status HandOver(int successor, const Belongings& belongings);

}  // namespace firsttouch::firsttouchd

#endif  // FIRSTTOUCH_TOOLS_FIRSTTOUCHD_HAND_OVER_H_
