#include "firsttouch/serve/listener.h"

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/serve/unix_socket.h"
#include "firsttouch/uffd/signal_masked_thread.h"

namespace firsttouch {
namespace {

constexpr uint64_t kStopId = 0;
constexpr uint64_t kSocketId = 1;
constexpr size_t kMaxRequestBytes = 4096;
// At a time.
constexpr int kMostAccepted = 64;
// How long nothing is accepted when there are no descriptors for it.
constexpr int kPauseMs = 100;

// 6.5; Debian 12's headers do not have it.
constexpr int kSoPeerPidfd = 77;

UniqueFd PidfdOfPeer(int socket, pid_t pid) {
  int fd = -1;
  socklen_t length = sizeof fd;
  if (getsockopt(socket, SOL_SOCKET, kSoPeerPidfd, &fd, &length) == 0) {
    return UniqueFd(fd);
  }
  if (pid <= 0) return UniqueFd();
  UniqueFd opened(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  // Of a process that has ended meanwhile the number may be another's, which
  // must not be killed in its place. But then its end of the socket is closed.
  pollfd ended = {.fd = socket, .events = 0, .revents = 0};
  return poll(&ended, 1, 0) == 0 ? std::move(opened) : UniqueFd();
}

void SendLine(int socket, const std::string& line) {
  // A client that does not read may miss it.
  send(socket, line.data(), line.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace

absl::StatusOr<UniqueFd> ListenAt(const std::string& path, mode_t mode,
                                  int type) {
  const std::optional<sockaddr_un> address = SocketAddress(path);
  if (path.empty() || !address.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the socket's path '", path, "' has ", path.size(),
                     " bytes; it may have 1 to ", kMaxSocketPathBytes));
  }
  const auto* const name = reinterpret_cast<const sockaddr*>(&*address);
  struct stat existing;
  if (lstat(path.c_str(), &existing) == 0) {
    const UniqueFd probe(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    if (!S_ISSOCK(existing.st_mode) ||
        connect(probe.get(), name, sizeof *address) == 0) {
      return absl::AlreadyExistsError(absl::StrCat(
          path, S_ISSOCK(existing.st_mode) ? ": somebody listens there already"
                                           : ": there is a file that is no "
                                             "socket"));
    }
    unlink(path.c_str());
  }
  UniqueFd listening(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listening) return absl::ErrnoToStatus(errno, "socket");
  // bind(2) makes the file with the permissions of the descriptor.
  if (fchmod(listening.get(), mode) != 0 ||
      bind(listening.get(), name, sizeof *address) != 0 ||
      listen(listening.get(), SOMAXCONN) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("listening at ", path));
  }
  return listening;
}

absl::StatusOr<std::unique_ptr<Listener>> Listener::Start(
    Server& server, UniqueFd socket, ListenerOptions options) {
  std::unique_ptr<Listener> listener(
      new Listener(server, std::move(socket), std::move(options)));
  if (absl::Status started = listener->StartThread(); !started.ok()) {
    return started;
  }
  return listener;
}

Listener::Listener(Server& server, UniqueFd socket, ListenerOptions options)
    : server_(server),
      options_(std::move(options)),
      socket_(std::move(socket)) {}

absl::Status Listener::StartThread() {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return absl::ErrnoToStatus(errno, "epoll_create1");
  stop_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_) return absl::ErrnoToStatus(errno, "eventfd");
  for (const auto& [fd, id] : {std::pair<int, uint64_t>{stop_.get(), kStopId},
                               {socket_.get(), kSocketId}}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = id;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return absl::ErrnoToStatus(errno, "epoll_ctl for a listening socket");
    }
  }
  absl::StatusOr<std::thread> thread =
      StartSignalMaskedThread("ft-listen", [this] { Run(); });
  if (!thread.ok()) return thread.status();
  thread_ = *std::move(thread);
  return absl::OkStatus();
}

Listener::~Listener() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void Listener::Drain() {
  drains_ = true;
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void Listener::Run() {
  bool ends = false;
  while (!ends || waiting_ > 0) {
    std::array<epoll_event, 64> events;
    const int count =
        epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                   NextDeadlineMs());
    for (int i = 0; i < count; ++i) {
      const uint64_t id = events[i].data.u64;
      if (id == kStopId) {
        if (!drains_) return;
        ends = true;
        epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, stop_.get(), nullptr);
        epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, socket_.get(), nullptr);
        paused_ = false;
        continue;
      }
      if (id == kSocketId) {
        if (!ends) Accept();
        continue;
      }
      const auto it = connections_.find(id);
      if (it == connections_.end()) continue;
      const bool waited = it->second.guest == 0;
      const bool goes_on = Hear(it->second);
      if (waited && (!goes_on || it->second.guest != 0)) --waiting_;
      if (!goes_on) connections_.erase(it);
    }
    DropLate();
  }
}

int Listener::NextDeadlineMs() {
  std::optional<Clock::time_point> next;
  for (const auto& [id, connection] : connections_) {
    if (connection.guest != 0) continue;
    next = next.has_value() ? std::min(*next, connection.deadline)
                            : connection.deadline;
  }
  int ms = -1;
  if (next.has_value()) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(*next - Clock::now());
    ms = static_cast<int>(std::clamp<int64_t>(left.count(), 0, 60'000));
  }
  if (paused_) ms = ms < 0 ? kPauseMs : std::min(ms, kPauseMs);
  return ms;
}

void Listener::DropLate() {
  if (paused_) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = kSocketId;
    paused_ =
        epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, socket_.get(), &event) != 0;
  }
  const Clock::time_point now = Clock::now();
  for (auto it = connections_.begin(); it != connections_.end();) {
    Connection& connection = it->second;
    if (connection.guest != 0 || connection.deadline > now) {
      ++it;
      continue;
    }
    Refuse(connection, absl::DeadlineExceededError(absl::StrCat(
                           "no complete message came within ",
                           options_.handshake_deadline.count(), " ms")));
    --waiting_;
    it = connections_.erase(it);
  }
}

void Listener::Accept() {
  // Whoever connects without end does not hold up those who have connected.
  for (int i = 0; i < kMostAccepted; ++i) {
    UniqueFd socket(
        accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EAGAIN) return;
      // The connection stays where it is, and would wake this thread at once.
      Tell(absl::StrCat("no connection can be accepted: ", std::strerror(errno),
                        "; tried again"));
      epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, socket_.get(), nullptr);
      paused_ = true;
      return;
    }
    Connection connection;
    connection.socket = std::make_shared<UniqueFd>(std::move(socket));
    const int fd = connection.socket->get();
    ucred credentials = {};
    socklen_t length = sizeof credentials;
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length);
    connection.peer = {credentials.pid, credentials.uid, credentials.gid};
    connection.pidfd = PidfdOfPeer(fd, credentials.pid);
    connection.deadline = Clock::now() + options_.handshake_deadline;
    if (!options_.users.empty() &&
        std::find(options_.users.begin(), options_.users.end(),
                  connection.peer.uid) == options_.users.end()) {
      Refuse(connection,
             absl::PermissionDeniedError(absl::StrCat(
                 "user ", connection.peer.uid, " is not served here")));
      continue;
    }
    if (waiting_ >= options_.max_waiting) {
      Refuse(connection, absl::ResourceExhaustedError(absl::StrCat(
                             waiting_,
                             " connections wait for their message, "
                             "as many as may")));
      continue;
    }
    const uint64_t id = ++last_id_;
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP;
    event.data.u64 = id;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      Refuse(connection, absl::ErrnoToStatus(errno, "epoll_ctl"));
      continue;
    }
    ++waiting_;
    connections_.emplace(id, std::move(connection));
  }
}

bool Listener::Hear(Connection& connection) {
  if (connection.guest != 0) return HearRequest(connection);
  absl::StatusOr<std::optional<HandshakeReader::Message>> message =
      connection.reader.Read(connection.socket->get());
  absl::Status status = message.status();
  if (status.ok()) {
    if (!message->has_value()) return true;
    status = Arrive(connection, *std::move(*message));
  }
  if (!status.ok()) {
    Refuse(connection, status);
    return false;
  }
  SendLine(connection.socket->get(), AnswerLine(absl::OkStatus()));
  return true;
}

absl::Status Listener::Arrive(Connection& connection,
                              HandshakeReader::Message message) {
  absl::StatusOr<std::shared_ptr<GuestImage>> image =
      options_.image(connection.peer);
  if (!image.ok()) return image.status();
  GuestArrival arrival;
  arrival.uffd = std::move(message.uffd);
  if (connection.pidfd) {
    arrival.pidfd.reset(static_cast<int>(
        RealKernel().DupCloexec(connection.pidfd.get(), 0).value));
  }
  arrival.regions = std::move(message.regions);
  arrival.image = *std::move(image);
  arrival.options = options_.guest;
  arrival.options.name = absl::StrCat("pid ", connection.peer.pid);
  if (options_.prepare != nullptr) {
    if (absl::Status prepared = options_.prepare(connection.peer, arrival);
        !prepared.ok()) {
      return prepared;
    }
  }
  const std::string journal =
      arrival.journal == nullptr ? "" : arrival.journal->path();
  absl::StatusOr<uint64_t> id = server_.Attach(std::move(arrival));
  if (!id.ok()) {
    if (options_.refused != nullptr) options_.refused(journal);
    return id.status();
  }
  connection.guest = *id;
  if (options_.arrived != nullptr) options_.arrived(*id, connection.peer);
  return absl::OkStatus();
}

bool Listener::HearRequest(Connection& connection) {
  std::array<char, 512> bytes;
  const ssize_t count =
      recv(connection.socket->get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  // The guest is served all the same, until its process ends.
  if (count == 0) return false;
  connection.line.append(bytes.data(), static_cast<size_t>(count));
  for (size_t end = connection.line.find('\n'); end != std::string::npos;
       end = connection.line.find('\n')) {
    const std::string line = connection.line.substr(0, end);
    connection.line.erase(0, end + 1);
    absl::StatusOr<std::string> request = ParseRequest(line);
    const std::shared_ptr<Guest> guest = server_.Find(connection.guest);
    if (request.ok() && guest != nullptr && *request == "fill") {
      guest->FillAll([socket = connection.socket](const absl::Status& status) {
        SendLine(socket->get(), AnswerLine(status));
      });
      continue;
    }
    if (request.ok() && guest != nullptr) {
      const absl::Status left =
          server_.Detach(connection.guest, /*complete=*/true);
      SendLine(connection.socket->get(), AnswerLine(left));
      if (left.ok()) return false;  // There is nothing more to ask for.
      continue;
    }
    SendLine(
        connection.socket->get(),
        AnswerLine(request.ok() ? absl::NotFoundError("the guest has ended")
                                : request.status()));
  }
  return connection.line.size() <= kMaxRequestBytes;
}

void Listener::Refuse(Connection& connection, const absl::Status& why) {
  SendLine(connection.socket->get(), AnswerLine(why));
  const bool kills = options_.kill_refused && connection.pidfd &&
                     connection.reader.has_descriptor();
  Tell(absl::StrCat("a client is refused (pid ", connection.peer.pid, ", user ",
                    connection.peer.uid, "): ", why.ToString(),
                    kills ? "; it is killed" : ""));
  if (kills) {
    syscall(SYS_pidfd_send_signal, connection.pidfd.get(), SIGKILL, nullptr, 0);
  }
}

void Listener::Tell(const std::string& text) const {
  if (options_.tell != nullptr) options_.tell(text);
}

}  // namespace firsttouch
