// firsttouchd at work: from a plan to guests that are served, until a signal
// ends it or the next firsttouchd takes over.

#ifndef FIRSTTOUCH_TOOLS_FIRSTTOUCHD_DAEMON_H_
#define FIRSTTOUCH_TOOLS_FIRSTTOUCHD_DAEMON_H_

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/serve/listener.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/serve/state_folder.h"
#include "firsttouch/tools/firsttouchd/config.h"
#include "firsttouch/tools/firsttouchd/hand_over.h"
#include "firsttouch/tools/firsttouchd/images.h"
#include "firsttouch/tools/firsttouchd/metrics.h"
#include "firsttouch/tools/firsttouchd/saver.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::firsttouchd {

// One line for the operator, to standard error, in one write. Any thread.
void Log(const std::string& text);

// Threads: one.
class Daemon {
 public:
  explicit Daemon(Plan plan) : plan_(std::move(plan)) {}

  // Opens images, sockets and state, becomes another user if that is asked for,
  // and serves. Returns when SIGTERM or SIGINT comes, or the next firsttouchd
  // has taken over. `replace`: takes over from the one that uses the state, if
  // there is one. Errors: what cannot be opened.
  absl::Status Run(bool replace);

 private:
  enum class Ending { kSignal, kSuccessor };

  absl::Status Open(bool replace);
  absl::Status OpenSockets(bool replace);
  // The plan of a socket.
  const SocketPlan& PlanFor(const std::string& key) const;
  // Guests of another server, whose journals are in the state. Of those that
  // cannot be served it tells why.
  std::vector<GuestArrival> FindGuests();
  absl::StatusOr<GuestArrival> FindGuest(const std::string& path);

  absl::Status Start(std::vector<GuestArrival> guests);
  absl::Status Prepare(const std::string& socket, const PeerProcess& peer,
                       GuestArrival& arrival);
  void Ended(const std::shared_ptr<Guest>& guest);
  std::string Metrics();
  void SaveImages();
  Ending Wait();
  // True: the next one goes on.
  bool HandOverAll();

  const Plan plan_;
  std::vector<std::unique_ptr<ServedImage>> images_;
  std::unique_ptr<StateFolder> state_;
  // Sockets, and what guests' descriptors are here before they are served.
  Belongings belongings_;
  std::optional<Successor> successor_;  // This is one.
  // Guests that the other server has passed, and this one cannot serve.
  size_t left_behind_ = 0;
  std::map<std::string, UniqueFd> kept_;  // By systemd, by name.
  UniqueFd signals_;

  Mutex mutex_;
  GuestStats ended_ ABSL_GUARDED_BY(mutex_);
  size_t ended_guests_ ABSL_GUARDED_BY(mutex_) = 0;
  // Counted in `ended_`, and not gone from the server yet, some of them.
  std::vector<std::weak_ptr<Guest>> counted_ ABSL_GUARDED_BY(mutex_);

  // What serves; in the order in which it may be destroyed from the end.
  std::unique_ptr<Saver> saver_;
  std::unique_ptr<Server> server_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::unique_ptr<MetricsServer> metrics_;
};

}  // namespace firsttouch::firsttouchd

#endif  // FIRSTTOUCH_TOOLS_FIRSTTOUCHD_DAEMON_H_
