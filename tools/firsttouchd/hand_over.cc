#include "firsttouch/tools/firsttouchd/hand_over.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/serve/unix_socket.h"

namespace firsttouch::firsttouchd {
namespace {

constexpr char kLock[] = "lock";
constexpr char kSocket[] = "socket ";
constexpr char kGuest[] = "guest ";
constexpr char kEnd[] = "end";
constexpr char kTaken[] = "taken";
constexpr size_t kMostDescriptors = 2;
// What the other one may take for a step.
constexpr timeval kPatience = {.tv_sec = 30, .tv_usec = 0};

void BePatient(int socket) {
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof kPatience);
}

absl::Status Send(int socket, const std::string& text,
                  std::span<const int> descriptors = {}) {
  if (SendWithDescriptors(socket, text, descriptors) < 0) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("giving to the next server: ", text));
  }
  return absl::OkStatus();
}

struct Received {
  std::string text;
  std::vector<UniqueFd> descriptors;
};

absl::StatusOr<Received> Receive(int socket) {
  std::array<char, 8192> text;
  Received received;
  int flags = 0;
  const ssize_t count = ReceiveWithDescriptors(
      socket, text, 0, kMostDescriptors, received.descriptors, flags);
  if (count < 0) {
    return absl::ErrnoToStatus(errno, "waiting for the other server");
  }
  if ((flags & (MSG_CTRUNC | MSG_TRUNC)) != 0) {
    return absl::ResourceExhaustedError(
        "descriptors of the other server were lost: this process has as many "
        "as it may (RLIMIT_NOFILE)");
  }
  received.text.assign(text.data(), static_cast<size_t>(count));
  return received;
}

// What stands behind a word, where the text begins with it.
std::optional<std::string> Behind(const std::string& text, const char* word) {
  if (!absl::StartsWith(text, word)) return std::nullopt;
  return text.substr(std::strlen(word));
}

}  // namespace

std::string HandOverPath(const std::string& state) {
  return absl::StrCat(state, "/successor");
}

absl::StatusOr<Successor> Successor::Ask(const std::string& state) {
  const std::string path = HandOverPath(state);
  const std::optional<sockaddr_un> address = SocketAddress(path);
  if (!address.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", path.size(),
                     " bytes; a socket's path may have ", kMaxSocketPathBytes));
  }
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return absl::ErrnoToStatus(errno, "socket");
  BePatient(socket.get());
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&*address),
              sizeof *address) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED) {
      return absl::UnavailableError(
          absl::StrCat("there is no server at ", path));
    }
    return absl::ErrnoToStatus(errno, absl::StrCat("connecting to ", path));
  }
  Belongings all;
  while (true) {
    absl::StatusOr<Received> one = Receive(socket.get());
    if (!one.ok()) return one.status();
    if (one->text == kEnd) break;
    if (one->text.empty()) {
      return absl::DataLossError(absl::StrCat(
          "the server at ", path, " ended before it had handed over"));
    }
    if (one->descriptors.empty()) {
      return absl::DataLossError(absl::StrCat("the server at ", path,
                                              " sent \"", one->text,
                                              "\" without a descriptor"));
    }
    UniqueFd& first = one->descriptors.front();
    if (one->text == kLock) {
      all.lock = std::move(first);
    } else if (auto name = Behind(one->text, kSocket)) {
      all.sockets[*name] = std::move(first);
    } else if (auto journal = Behind(one->text, kGuest)) {
      Belongings::Descriptors& guest = all.guests[*journal];
      guest.uffd = std::move(first);
      if (one->descriptors.size() > 1) {
        guest.pidfd = std::move(one->descriptors[1]);
      }
    }
    // Anything else is of a later version, which must do without.
  }
  if (!all.lock) {
    return absl::DataLossError(
        absl::StrCat("the server at ", path, " did not send its lock"));
  }
  return Successor(std::move(socket), std::move(all));
}

absl::Status Successor::Take() { return Send(socket_.get(), kTaken); }

absl::StatusOr<UniqueFd> AcceptSuccessor(int listening) {
  UniqueFd socket(accept4(listening, nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket) return absl::ErrnoToStatus(errno, "accept4");
  ucred credentials = {};
  socklen_t length = sizeof credentials;
  getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length);
  if (credentials.uid != 0 && credentials.uid != geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat("process ", credentials.pid, " of user ", credentials.uid,
                     " asks to take over, and is another user"));
  }
  BePatient(socket.get());
  return socket;
}

absl::Status HandOver(int successor, const Belongings& belongings) {
  const int lock = belongings.lock.get();
  if (absl::Status sent = Send(successor, kLock, {&lock, 1}); !sent.ok()) {
    return sent;
  }
  for (const auto& [name, socket] : belongings.sockets) {
    const int fd = socket.get();
    if (absl::Status sent =
            Send(successor, absl::StrCat(kSocket, name), {&fd, 1});
        !sent.ok()) {
      return sent;
    }
  }
  for (const auto& [name, guest] : belongings.guests) {
    const std::array<int, 2> both = {guest.uffd.get(), guest.pidfd.get()};
    if (absl::Status sent =
            Send(successor, absl::StrCat(kGuest, name),
                 std::span<const int>(both).first(guest.pidfd ? 2 : 1));
        !sent.ok()) {
      return sent;
    }
  }
  if (absl::Status sent = Send(successor, kEnd); !sent.ok()) return sent;
  absl::StatusOr<Received> answer = Receive(successor);
  if (!answer.ok()) {
    // From here on it cannot say so any more; it may have done so just now.
    shutdown(successor, SHUT_RDWR);
    answer = Receive(successor);
  }
  if (!answer.ok()) return answer.status();
  if (answer->text == kTaken) return absl::OkStatus();
  return absl::UnavailableError("the next server has not taken the guests");
}

}  // namespace firsttouch::firsttouchd
