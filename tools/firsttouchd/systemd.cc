#include "firsttouch/tools/firsttouchd/systemd.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/serve/state_folder.h"
#include "firsttouch/serve/unix_socket.h"
#include "firsttouch/uffd/signal_masked_thread.h"

namespace firsttouch::firsttouchd {
namespace {

// sd_listen_fds(3).
constexpr int kFirstInherited = 3;
constexpr int kMostInherited = 8192;

}  // namespace

absl::StatusOr<Inherited> TakeInherited() {
  const char* const pid = getenv("LISTEN_PID");
  const char* const count = getenv("LISTEN_FDS");
  if (pid == nullptr || count == nullptr || pid != std::to_string(getpid())) {
    return Inherited();
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
  const char* const given = getenv("LISTEN_FDNAMES");
  std::vector<std::string> names =
      absl::StrSplit(given == nullptr ? "" : given, ':');
  names.resize(static_cast<size_t>(number));
  Inherited inherited;
  for (int i = 0; i < number; ++i) {
    const int fd = kFirstInherited + i;
    int listens = 0;
    socklen_t length = sizeof listens;
    const bool is_socket =
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 &&
        listens != 0;
    if (!is_socket && !IsUserfaultfd(fd)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "descriptor ", fd,
          " of LISTEN_FDS is neither a listening socket nor a userfaultfd"));
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    (is_socket ? inherited.sockets : inherited.kept)
        .push_back({names[static_cast<size_t>(i)], UniqueFd(fd)});
  }
  unsetenv("LISTEN_PID");
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_FDNAMES");
  return inherited;
}

absl::Status Notify(const std::string& state, int fd) {
  const char* const path = getenv("NOTIFY_SOCKET");
  if (path == nullptr || path[0] == '\0') return absl::OkStatus();
  std::optional<sockaddr_un> address = SocketAddress(path);
  if (!address.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("NOTIFY_SOCKET is too long: ", path));
  }
  // "@name" stands for a socket without a file.
  if (path[0] == '@') address->sun_path[0] = '\0';
  const size_t address_bytes =
      offsetof(sockaddr_un, sun_path) + std::strlen(path);
  const UniqueFd to(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const std::span<const int> descriptors(&fd, fd >= 0 ? 1 : 0);
  if (!to || SendWithDescriptors(to.get(), state, descriptors, &*address,
                                 address_bytes) < 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("telling ", path, " ", state));
  }
  return absl::OkStatus();
}

absl::Status Keep(const std::string& name, int uffd) {
  // FDPOLL=0: it is ready to be read at times, and that is no end.
  return Notify(absl::StrCat("FDSTORE=1\nFDNAME=", name, "\nFDPOLL=0"), uffd);
}

absl::Status KeepNoMore(const std::string& name) {
  return Notify(absl::StrCat("FDSTOREREMOVE=1\nFDNAME=", name));
}

std::optional<std::chrono::milliseconds> WatchdogPeriod() {
  const char* const text = getenv("WATCHDOG_USEC");
  const char* const pid = getenv("WATCHDOG_PID");
  int64_t us = 0;
  if (text == nullptr || !absl::SimpleAtoi(text, &us) || us <= 0 ||
      (pid != nullptr && pid != std::to_string(getpid()))) {
    return std::nullopt;
  }
  return std::max(std::chrono::milliseconds(us / 2000),
                  std::chrono::milliseconds(1));
}

WatchdogMeanwhile::WatchdogMeanwhile(std::chrono::milliseconds longest) {
  const std::optional<std::chrono::milliseconds> period = WatchdogPeriod();
  if (!period.has_value()) return;
  end_.reset(eventfd(0, EFD_CLOEXEC));
  if (!end_) return;
  const auto until = std::chrono::steady_clock::now() + longest;
  absl::StatusOr<std::thread> thread = StartSignalMaskedThread(
      "ft-watchdog", [end = end_.get(), period = *period, until] {
        pollfd waits = {.fd = end, .events = POLLIN, .revents = 0};
        while (std::chrono::steady_clock::now() < until) {
          Notify("WATCHDOG=1").IgnoreError();
          if (poll(&waits, 1, static_cast<int>(period.count())) > 0) return;
        }
      });
  if (thread.ok()) thread_ = *std::move(thread);
}

WatchdogMeanwhile::~WatchdogMeanwhile() {
  if (!thread_.joinable()) return;
  eventfd_write(end_.get(), 1);
  thread_.join();
}

}  // namespace firsttouch::firsttouchd
