#include "firsttouch/tools/firsttouchd/systemd.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace firsttouch::firsttouchd {
namespace {

// sd_listen_fds(3).
constexpr int kFirstInherited = 3;
constexpr int kMostInherited = 64;

}  // namespace

absl::StatusOr<std::vector<UniqueFd>> InheritedSockets() {
  const char* const pid = getenv("LISTEN_PID");
  const char* const count = getenv("LISTEN_FDS");
  if (pid == nullptr || count == nullptr || pid != std::to_string(getpid())) {
    return std::vector<UniqueFd>();
  }
  int number = 0;
  if (!absl::SimpleAtoi(count, &number) || number < 0 ||
      number > kMostInherited) {
    return absl::InvalidArgumentError(
        absl::StrCat("LISTEN_FDS is \"", count,
                     "\"; it must be a number from "
                     "0 to ",
                     kMostInherited));
  }
  std::vector<UniqueFd> sockets;
  for (int fd = kFirstInherited; fd < kFirstInherited + number; ++fd) {
    int listens = 0;
    socklen_t length = sizeof listens;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0 ||
        listens == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "descriptor ", fd, " of LISTEN_FDS is no listening socket"));
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    sockets.emplace_back(fd);
  }
  unsetenv("LISTEN_PID");
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_FDNAMES");
  return sockets;
}

absl::Status Notify(const std::string& state) {
  const char* const path = getenv("NOTIFY_SOCKET");
  if (path == nullptr || path[0] == '\0') return absl::OkStatus();
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if (length >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat("NOTIFY_SOCKET is too long: ", path));
  }
  std::memcpy(address.sun_path, path, length);
  // "@name" stands for a socket without a file.
  if (path[0] == '@') address.sun_path[0] = '\0';
  const UniqueFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd || sendto(fd.get(), state.data(), state.size(), MSG_NOSIGNAL,
                    reinterpret_cast<const sockaddr*>(&address),
                    offsetof(sockaddr_un, sun_path) + length) < 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("telling ", path, " ", state));
  }
  return absl::OkStatus();
}

}  // namespace firsttouch::firsttouchd
