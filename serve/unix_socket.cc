#include "firsttouch/serve/unix_socket.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace firsttouch {
namespace {

struct alignas(cmsghdr) Control {
  std::array<char, CMSG_SPACE(sizeof(int) * kMaxDescriptors)> bytes = {};
};

}  // namespace

std::optional<sockaddr_un> SocketAddress(std::string_view path) {
  if (path.size() > kMaxSocketPathBytes) return std::nullopt;
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, kMaxSocketPathBytes);
  return address;
}

ssize_t SendWithDescriptors(int socket, std::string_view bytes,
                            std::span<const int> descriptors,
                            const sockaddr_un* to, size_t to_bytes) {
  if (descriptors.size() > kMaxDescriptors) {
    errno = EINVAL;
    return -1;
  }
  Control control;
  iovec part = {const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message = {};
  message.msg_name = const_cast<sockaddr_un*>(to);
  message.msg_namelen = static_cast<socklen_t>(to_bytes);
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control.bytes.data();
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(),
                descriptors.size_bytes());
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent;
}

ssize_t ReceiveWithDescriptors(int socket, std::span<char> bytes, int flags,
                               size_t most_descriptors,
                               std::vector<UniqueFd>& descriptors,
                               int& message_flags) {
  Control control;
  iovec part = {bytes.data(), bytes.size()};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  message.msg_controllen =
      CMSG_SPACE(sizeof(int) * std::min(most_descriptors, kMaxDescriptors));
  ssize_t count;
  do {
    count = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  } while (count < 0 && errno == EINTR);
  if (count < 0) return count;
  message_flags = message.msg_flags;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const size_t here = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < here; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      descriptors.emplace_back(fd);
    }
  }
  return count;
}

}  // namespace firsttouch
