// A second reference to a userfaultfd that no close(2) of its descriptor can
// take away.

#ifndef FIRSTTOUCH_SERVICE_ANCHOR_H_
#define FIRSTTOUCH_SERVICE_ANCHOR_H_

#include "absl/status/statusor.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// Sends the descriptor `fd` to a socket of our own and leaves it there unread:
// as long as the returned descriptor is open, the file behind `fd` is. Why:
// when the last reference to a userfaultfd goes, every missing page of its
// memory reads as zero, silently. A stray close() of our descriptor would do
// that under a running guest; with the anchor the registration stays, the next
// fault finds that its ioctl fails, and the process dies with a message instead
// of showing wrong bytes. Errors: the errno of socketpair(2) or sendmsg(2),
// with what to raise where the table of descriptors is full.
absl::StatusOr<UniqueFd> AnchorDescriptor(int fd);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_ANCHOR_H_
