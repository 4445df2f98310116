// A second reference to a userfaultfd that no close(2) of its descriptor can
// take away.

#ifndef FIRSTTOUCH_UFFD_DESCRIPTOR_PIN_H_
#define FIRSTTOUCH_UFFD_DESCRIPTOR_PIN_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// As long as it lives, the file behind a descriptor is open. Why: when the last
// reference to a userfaultfd goes, every missing page of its memory reads as
// zero, silently. A stray close() of our descriptor would do that under a
// running guest; with the pin the registration stays, the next fault finds
// that its ioctl fails, and the process dies with a message instead of showing
// wrong bytes.
//
// The reference is held by a request for an event that never comes, in the
// kernel's asynchronous I/O (io_submit(2), IOCB_CMD_POLL, Linux 4.18): no
// descriptor has it, so that closefrom(3) does not take it away. Where that is
// not to be had (CONFIG_AIO, a seccomp filter, fs.aio-max-nr) it lies unread in
// a socket of our own, which closefrom(3) closes, too.
//
// Thread-compatible; several threads may make and end pins at once. In a
// child of fork(2) such a request is not there, and ending a pin of the
// parent's does nothing to the parent.
class DescriptorPin {
 public:
  // Of no descriptor.
  DescriptorPin() = default;
  // `fd` is non-blocking, and its handshake done. Errors, where the socket is
  // needed: the errno of socketpair(2) or sendmsg(2), with what to raise where
  // the table of descriptors is full.
  static absl::StatusOr<DescriptorPin> Make(int fd);

  DescriptorPin(DescriptorPin&& other) noexcept;
  DescriptorPin& operator=(DescriptorPin&& other) noexcept;
  ~DescriptorPin() { reset(); }

  // Lets go of the file.
  void reset();

  // Whether it outlives the closing of every descriptor of the process.
  bool outlives_all_descriptors() const { return request_ != nullptr; }

 private:
  struct Request;
  class Requests;

  UniqueFd socket_;
  Request* request_ = nullptr;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_DESCRIPTOR_PIN_H_
