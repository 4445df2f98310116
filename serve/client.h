// Has this process' own memory filled by a server (firsttouchd, or any that
// speaks handshake.h): for hosts that are no Firecracker.
//
//   void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
//                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
//   absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(
//       "/run/vm/pages.sock", {{{.start = address, .bytes = bytes}}});
//   ... use the memory: each page has the image's bytes when it is touched ...
//   absl::Status back = (*client)->TakeBack(absl::Minutes(1));
//   ... the memory is this process' own, with all its pages ...
//
// WHILE THE SERVER IS AWAY a thread that touches a missing page waits. It gets
// the page when a server takes the memory over; it never gets zeroes, since the
// userfaultfd is kept open here as long as the Client lives.
//
// Threads: thread-compatible. The memory may be touched by any thread at any
// time. Not for signal handlers. Fork: a child that touches missing pages reads
// zeroes unless Options::follow_forks is set; MADV_DONTFORK keeps it from that.

#ifndef FIRSTTOUCH_SERVE_CLIENT_H_
#define FIRSTTOUCH_SERVE_CLIENT_H_

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

struct ClientOptions {
  // Have faults served that the kernel takes in a system call (read(2) into a
  // missing page; KVM). Needs a privilege: UffdOptions::kernel_faults. False:
  // such a call fails with EFAULT.
  bool kernel_faults = false;
  // Have forked children served as well. Needs CAP_SYS_PTRACE.
  bool follow_forks = false;
  // How long the server may take to accept the connection and to answer.
  absl::Duration answer_deadline = absl::Seconds(30);
};

class Client {
 public:
  // Registers the regions (private anonymous memory, of which no page has been
  // touched; `track_writes` as wished) and has them served. Errors: what
  // Uffd::Open and Uffd::Register say; NotFound and others with the socket's
  // path where nobody listens; FailedPrecondition with the server's reason
  // where it refuses; DeadlineExceeded. After an error the memory is not
  // registered.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(
      const std::string& socket_path, std::span<const GuestRegion> regions,
      const ClientOptions& options = {}, Kernel& kernel = RealKernel());

  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  // Unmap the memory first, or call TakeBack(): once the last descriptor is
  // closed, missing pages read as zeroes.
  ~Client();

  // Has all pages placed, and ends the registration: from then on the memory
  // needs no server. May be called again after an error. Errors:
  // FailedPrecondition with the server's reason (a page that cannot be had);
  // Unavailable (the server is gone), DeadlineExceeded. The memory is still
  // registered then.
  absl::Status TakeBack(absl::Duration deadline);

  // For whoever gives the memory to another server.
  int uffd() const { return uffd_.fd(); }

 private:
  Client(Uffd uffd, UniqueFd socket, std::vector<GuestRegion> regions)
      : uffd_(std::move(uffd)),
        socket_(std::move(socket)),
        regions_(std::move(regions)) {}

  // Sends the line and waits for the answer.
  absl::Status Ask(const std::string& line, absl::Time deadline);
  absl::Status Answer(absl::Time deadline);

  Uffd uffd_;
  UniqueFd socket_;
  std::vector<GuestRegion> regions_;
  std::string unread_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_CLIENT_H_
