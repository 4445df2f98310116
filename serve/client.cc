#include "firsttouch/serve/client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "firsttouch/serve/handshake.h"
#include "firsttouch/serve/unix_socket.h"
#include "firsttouch/uffd/abi.h"

namespace firsttouch {
namespace {

constexpr size_t kMaxAnswerBytes = size_t{64} << 10;

// Connects, and waits until then where the server has as many clients waiting
// as it may.
absl::StatusOr<UniqueFd> ConnectTo(const std::string& path,
                                   absl::Time deadline) {
  const std::optional<sockaddr_un> address = SocketAddress(path);
  if (!address.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the socket's path '", path, "' has ", path.size(),
                     " bytes; it may have ", kMaxSocketPathBytes));
  }
  UniqueFd connected(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!connected) return absl::ErrnoToStatus(errno, "socket");
  while (true) {
    // No time at all would mean for ever.
    const timeval left = absl::ToTimeval(
        std::max(deadline - absl::Now(), absl::Microseconds(1)));
    setsockopt(connected.get(), SOL_SOCKET, SO_SNDTIMEO, &left, sizeof left);
    if (connect(connected.get(), reinterpret_cast<const sockaddr*>(&*address),
                sizeof *address) == 0) {
      break;
    }
    // A signal interrupts the wait, and there is no connection.
    const bool interrupted = errno == EINTR;
    if (interrupted && absl::Now() < deadline) continue;
    if (interrupted || errno == EAGAIN) {
      return absl::DeadlineExceededError(absl::StrCat(
          "connecting to ", path, ": the server has not accepted in time"));
    }
    return absl::ErrnoToStatus(
        errno, absl::StrCat("connecting to ", path, "; does a server listen?"));
  }
  const timeval for_ever = {};
  setsockopt(connected.get(), SOL_SOCKET, SO_SNDTIMEO, &for_ever,
             sizeof for_ever);
  return connected;
}

absl::Status SendWithDescriptor(int socket, const std::string& text, int fd) {
  const ssize_t sent = SendWithDescriptors(socket, text, {&fd, 1});
  if (sent < 0) return absl::ErrnoToStatus(errno, "sendmsg to the server");
  if (static_cast<size_t>(sent) != text.size()) {
    return absl::InternalError("the server took only a part of the message");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(
    const std::string& socket_path, std::span<const GuestRegion> regions,
    const ClientOptions& options, Kernel& kernel) {
  if (absl::StatusOr<AddressMap> map = AddressMap::Create(regions); !map.ok()) {
    return map.status();
  }
  const absl::Time deadline = absl::Now() + options.answer_deadline;
  absl::StatusOr<UniqueFd> socket = ConnectTo(socket_path, deadline);
  if (!socket.ok()) return socket.status();
  UffdOptions wanted;
  wanted.required_features =
      kUffdFeatureEventRemove | kUffdFeatureEventUnmap | kUffdFeatureEventRemap;
  if (options.follow_forks) wanted.required_features |= kUffdFeatureEventFork;
  wanted.kernel_faults = options.kernel_faults;
  absl::StatusOr<Uffd> uffd = Uffd::Open(kernel, wanted);
  if (!uffd.ok()) return uffd.status();
  for (const GuestRegion& region : regions) {
    // Where it fails, the regions before it lose their registration with the
    // descriptor.
    if (absl::Status registered = uffd->Register(
            region.start, region.bytes,
            kUffdRegisterMissing | (region.track_writes ? kUffdRegisterWp : 0),
            kUffdIoctlCopy);
        !registered.ok()) {
      return registered;
    }
  }
  std::unique_ptr<Client> client(
      new Client(*std::move(uffd), *std::move(socket),
                 std::vector<GuestRegion>(regions.begin(), regions.end())));
  absl::Status taken = SendWithDescriptor(client->socket_.get(),
                                          RegionsText(regions), client->uffd());
  if (taken.ok()) taken = client->Answer(deadline);
  if (taken.ok()) return client;
  // A server that is late has a descriptor of its own.
  for (const GuestRegion& region : regions) {
    client->uffd_.Unregister(region.start, region.bytes).IgnoreError();
  }
  return taken;
}

Client::~Client() = default;

absl::Status Client::TakeBack(absl::Duration deadline) {
  const absl::Time end = absl::Now() + deadline;
  if (absl::Status filled = Ask(RequestLine("fill"), end); !filled.ok()) {
    return filled;
  }
  for (const GuestRegion& region : regions_) {
    if (absl::Status ended = uffd_.Unregister(region.start, region.bytes);
        !ended.ok()) {
      return ended;
    }
  }
  return Ask(RequestLine("leave"), end);
}

absl::Status Client::Ask(const std::string& line, absl::Time deadline) {
  const ssize_t sent =
      send(socket_.get(), line.data(), line.size(), MSG_NOSIGNAL);
  if (sent != static_cast<ssize_t>(line.size())) {
    return absl::UnavailableError("the server is gone: nothing can be sent");
  }
  return Answer(deadline);
}

absl::Status Client::Answer(absl::Time deadline) {
  while (true) {
    if (const size_t end = unread_.find('\n'); end != std::string::npos) {
      const std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return ParseAnswer(line);
    }
    if (unread_.size() > kMaxAnswerBytes) {
      return absl::InternalError("the server's answer has no end");
    }
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError("the server has not answered in time");
    }
    pollfd waits = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
    const int64_t ms = absl::ToInt64Milliseconds(left) + 1;
    const int ready =
        poll(&waits, 1, static_cast<int>(std::min<int64_t>(ms, 60'000)));
    if (ready < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "poll");
    if (ready <= 0) continue;
    std::array<char, 512> bytes;
    const ssize_t count =
        recv(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (count <= 0) return absl::UnavailableError("the server is gone");
    unread_.append(bytes.data(), static_cast<size_t>(count));
  }
}

}  // namespace firsttouch
