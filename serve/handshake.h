// How a guest's process asks a server for its memory: the protocol of
// Firecracker's userfaultfd backend, over a Unix socket.
//
// The client connects and sends one message: a JSON array with an object for
// each region, and with it one descriptor (SCM_RIGHTS), the userfaultfd.
//
//   [{"base_host_virt_addr": 140000000000000, "size": 268435456, "offset": 0,
//     "page_size": 4096, "page_size_kib": 4096}]
//
// Sizes are in bytes; so is page_size_kib, the older name of page_size, in
// spite of it. Either may be missing; if both are there they agree.
// "track_writes": true is ours: the region is registered for write protection
// too. Anything else in an object is ignored. Firecracker sends nothing more,
// reads nothing, and leaves the socket open until it ends.
//
// A client that reads gets one JSON object in a line:
//   {"ok": true}, or {"error": "why"}, whereupon the socket is closed.
// It may then send requests, a JSON object in a line each:
//   {"request": "fill"}   place all pages; answered once they are there
//   {"request": "leave"}  the memory is not registered any more; once that is
//                         answered, the socket is closed
//
// Threads: thread-compatible. Not for signal handlers.

#ifndef FIRSTTOUCH_SERVE_HANDSHAKE_H_
#define FIRSTTOUCH_SERVE_HANDSHAKE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// The longest message, with room for kMaxGuestRegions.
inline constexpr size_t kMaxHandshakeBytes = size_t{64} << 10;

// The text of a message as regions. Errors, InvalidArgument: what is no such
// text, with the field, its value and the rule. What regions must be among
// themselves AddressMap::Create says.
absl::StatusOr<std::vector<GuestRegion>> ParseRegions(const std::string& text);

// The other direction, for clients.
std::string RegionsText(std::span<const GuestRegion> regions);

// What a line asks for: "fill", "leave". InvalidArgument for anything else.
absl::StatusOr<std::string> ParseRequest(const std::string& line);
std::string RequestLine(const std::string& request);

// OK, or the error that an answer tells (Internal where it is no answer).
absl::Status ParseAnswer(const std::string& line);
std::string AnswerLine(const absl::Status& status);

// What a client has sent so far.
class HandshakeReader {
 public:
  struct Message {
    std::vector<GuestRegion> regions;
    UniqueFd uffd;
  };

  // Reads what the socket has, without waiting. Nothing: the message is not
  // complete yet. Errors, InvalidArgument: what cannot become one (its text, no
  // or several descriptors, its length, an end of the connection).
  absl::StatusOr<std::optional<Message>> Read(int socket);

  // Whether a descriptor has come.
  bool has_descriptor() const { return !descriptors_.empty(); }

 private:
  std::string text_;
  std::vector<UniqueFd> descriptors_;
  bool lost_descriptors_ = false;
  bool ended_ = false;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_HANDSHAKE_H_
