// Takes guests in at a Unix socket, and gives them to a server.
//
//   absl::StatusOr<UniqueFd> socket = ListenAt("/run/vm/pages.sock");
//   ListenerOptions options;
//   options.image = [image](const PeerProcess&) { return image; };
//   absl::StatusOr<std::unique_ptr<Listener>> listener =
//       Listener::Start(**server, *std::move(socket), options);
//
// The protocol is in handshake.h. One thread talks to all clients and waits for
// none: a client that sends garbage, or nothing, is told why and let go, and
// costs the others nothing.
//
// Threads: any. Fork: a child must not use it.

#ifndef FIRSTTOUCH_SERVE_LISTENER_H_
#define FIRSTTOUCH_SERVE_LISTENER_H_

#include <sys/socket.h>
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/handshake.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// Who has connected, as the kernel knows it (SO_PEERCRED).
struct PeerProcess {
  pid_t pid = 0;  // 0: of another pid namespace.
  uid_t uid = 0;
  gid_t gid = 0;
};

struct ListenerOptions {
  // The image of a client. Called in the listener's thread: what takes long
  // holds up other clients' handshakes.
  std::function<absl::StatusOr<std::shared_ptr<GuestImage>>(
      const PeerProcess& peer)>
      image;
  // How guests are served. The process' number becomes their name.
  GuestOptions guest;
  // Before a guest is served: may change how, or add a journal. An error
  // refuses it. As for `image`.
  std::function<absl::Status(const PeerProcess& peer, GuestArrival& arrival)>
      prepare;
  // Users that are served; empty: all who can connect.
  std::vector<uid_t> users;
  // How long a client may take for its message.
  std::chrono::milliseconds handshake_deadline{10'000};
  // Connections whose message has not come; more are refused.
  size_t max_waiting = 64;
  // A client that sent a userfaultfd and is refused is killed: a VMM would wait
  // for ever at its first fault, since it does not read what it is told.
  bool kill_refused = false;
  // What `prepare` has made ready is not served after all; the path of its
  // journal, if it had one. In the listener's thread.
  std::function<void(const std::string& journal)> refused;
  // One line that an operator should know; as ServerOptions::tell.
  std::function<void(const std::string& text)> tell;
  // A guest is served now. In the listener's thread.
  std::function<void(uint64_t id, const PeerProcess& peer)> arrived;
};

// A listening socket at a path, mode `mode`. A socket that nobody listens at is
// replaced. Errors: InvalidArgument (a path that is too long), AlreadyExists
// (somebody listens there, or it is no socket), and what the system gives.
absl::StatusOr<UniqueFd> ListenAt(const std::string& path, mode_t mode = 0600,
                                  int type = SOCK_STREAM);

class Listener {
 public:
  // `server` must outlive the listener. Errors: ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<Listener>> Start(
      Server& server, UniqueFd socket, ListenerOptions options);

  // Closes the socket and all connections; guests go on being served.
  ~Listener();

  // Accepts nobody any more, and waits for the message of those who have
  // connected, for as long as they may take. (Whoever connects meanwhile waits
  // at the socket, for another descriptor of it.) The last call before the
  // destructor.
  void Drain();

 private:
  using Clock = std::chrono::steady_clock;
  struct Connection {
    // Shared with whoever answers later.
    std::shared_ptr<UniqueFd> socket;
    PeerProcess peer;
    UniqueFd pidfd;
    HandshakeReader reader;
    Clock::time_point deadline{};
    uint64_t guest = 0;  // 0: its message has not come.
    std::string line;    // Of a request, so far.
  };

  Listener(Server& server, UniqueFd socket, ListenerOptions options);
  absl::Status StartThread();
  void Run();
  void Accept();
  // False: the connection is over.
  bool Hear(Connection& connection);
  bool HearRequest(Connection& connection);
  absl::Status Arrive(Connection& connection, HandshakeReader::Message message);
  void Refuse(Connection& connection, const absl::Status& why);
  void Tell(const std::string& text) const;
  int NextDeadlineMs();
  void DropLate();

  Server& server_;
  const ListenerOptions options_;
  UniqueFd socket_;
  UniqueFd epoll_;
  UniqueFd stop_;
  std::atomic<bool> drains_{false};
  std::thread thread_;

  // ---- Of the thread ----
  uint64_t last_id_ = 1;
  std::map<uint64_t, Connection> connections_;
  size_t waiting_ = 0;
  // Not accepting: there were no descriptors.
  bool paused_ = false;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_LISTENER_H_
