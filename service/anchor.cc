#include "firsttouch/service/anchor.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace firsttouch {

absl::StatusOr<UniqueFd> AnchorDescriptor(int fd) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    const int error = errno;
    return absl::ErrnoToStatus(
        error, absl::StrCat("socketpair(2) to keep the userfaultfd open",
                            error == EMFILE || error == ENFILE
                                ? ": the table of descriptors is full; raise "
                                  "RLIMIT_NOFILE (ulimit -n) or close some"
                                : ""));
  }
  UniqueFd kept(ends[0]);
  const UniqueFd sender(ends[1]);

  char byte = 0;
  iovec data = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &fd, sizeof(int));
  if (sendmsg(sender.get(), &message, MSG_NOSIGNAL) < 0) {
    return absl::ErrnoToStatus(
        errno, "sendmsg(2) of the userfaultfd to its own socket");
  }
  return kept;
}

}  // namespace firsttouch
