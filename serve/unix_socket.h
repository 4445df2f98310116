// Unix sockets, and the descriptors that go over them (SCM_RIGHTS).
//
// Threads: any. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVE_UNIX_SOCKET_H_
#define FIRSTTOUCH_SERVE_UNIX_SOCKET_H_

#include <sys/types.h>
#include <sys/un.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// The longest path that a socket may have, in bytes.
inline constexpr size_t kMaxSocketPathBytes = sizeof(sockaddr_un::sun_path) - 1;

// The address of the socket at `path`; nothing for a path that is too long.
std::optional<sockaddr_un> SocketAddress(std::string_view path);

// The most descriptors that one message may carry here.
inline constexpr size_t kMaxDescriptors = 16;

// As sendmsg(2) with MSG_NOSIGNAL, anew after a signal. `to` is the receiver,
// of `to_bytes` bytes, where the socket is not connected.
ssize_t SendWithDescriptors(int socket, std::string_view bytes,
                            std::span<const int> descriptors,
                            const sockaddr_un* to = nullptr,
                            size_t to_bytes = 0);

// As recvmsg(2) with `flags` and MSG_CMSG_CLOEXEC, anew after a signal. Puts
// the descriptors that came behind those in `descriptors`, also where the
// message is going to be refused: they are this process' to close. Has room for
// `most_descriptors` (the kernel may hand over one more, for alignment), and
// sets MSG_CTRUNC in `message_flags` (msghdr::msg_flags) if more were sent.
ssize_t ReceiveWithDescriptors(int socket, std::span<char> bytes, int flags,
                               size_t most_descriptors,
                               std::vector<UniqueFd>& descriptors,
                               int& message_flags);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_UNIX_SOCKET_H_
