// A second reference to a userfaultfd that no close(2) of its descriptor can
// take away.

#ifndef FIRSTTOUCH_UFFD_DESCRIPTOR_PIN_H_
#define FIRSTTOUCH_UFFD_DESCRIPTOR_PIN_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// Keeps the file behind a descriptor open for the lifetime of the pin. Why:
// when the last reference to a userfaultfd is dropped, every missing page of
// its memory reads as zero, silently. A stray close() of our descriptor would
// do that under a running guest; with the pin the registration stays, the next
// fault finds that its ioctl fails, and the process dies with a message instead
// of showing wrong bytes.
//
// The reference is held by a request for an event that never comes, in the
// kernel's asynchronous I/O (io_submit(2), IOCB_CMD_POLL, Linux 4.18): it is
// not held by a descriptor, so closefrom(3) does not take it away. Where such a
// request cannot be made (CONFIG_AIO, a seccomp filter, fs.aio-max-nr) the
// reference lies unread in a socket of our own, which closefrom(3) closes, too.
//
// Thread-compatible; several threads may make and end pins at once. A child of
// fork(2) does not inherit such a request, and ending a pin of the parent's in
// the child does nothing to the parent.
class DescriptorPin {
 public:
  // A pin that pins nothing.
  DescriptorPin() = default;
  // `fd` must be non-blocking, and its handshake done. Errors, where the socket
  // is needed: the errno of socketpair(2) or sendmsg(2), with the limit to
  // raise where the table of descriptors is full.
  static absl::StatusOr<DescriptorPin> Make(int fd);

  DescriptorPin(DescriptorPin&& other) noexcept;
  DescriptorPin& operator=(DescriptorPin&& other) noexcept;
  ~DescriptorPin() { reset(); }

  // Drops the reference.
  void reset();

  // Whether the pin outlives the closing of every descriptor of the process.
  bool outlives_all_descriptors() const { return request_ != nullptr; }

 private:
  struct Request;
  class Requests;

  UniqueFd socket_;
  Request* request_ = nullptr;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_DESCRIPTOR_PIN_H_
