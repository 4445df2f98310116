// A process that does what a virtual machine monitor does to its guest's
// memory: registers it with a userfaultfd, gives that away, touches, writes,
// gives pages back, moves, forks, dies. For tests.
//
// The process is a fork of the test's, and does one thing after the other as it
// is told over a socket.

#ifndef FIRSTTOUCH_SERVE_STAND_IN_H_
#define FIRSTTOUCH_SERVE_STAND_IN_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

struct StandInOptions {
  // What its memory should hold; it compares with its own copy of the image.
  ImageRef image;
  uint64_t pages = 0;
  uint64_t regions = 1;  // That the pages are in, `pages` divided by it each.
  // Where the memory is to be, of a single region; 0: anywhere.
  uintptr_t address = 0;
  bool huge_pages = false;
  bool track_writes = false;
  // Registers with a userfaultfd without events, as a client that forgets.
  bool fork_events = false;
};

class StandIn {
 public:
  // Start it before threads of the test are started. Unavailable, with the
  // reason: this machine lacks what it needs (userfaultfd, huge pages).
  static absl::StatusOr<std::unique_ptr<StandIn>> Start(
      const StandInOptions& options);
  // Kills the process.
  ~StandIn();

  pid_t pid() const { return pid_; }
  // Its userfaultfd (a second descriptor), a descriptor of the process, and its
  // regions.
  UniqueFd Uffd() const;
  UniqueFd Pidfd() const;
  const std::vector<GuestRegion>& regions() const { return regions_; }

  // How pages look to the process.
  struct Seen {
    uint64_t as_image = 0;  // Also where the image has zeroes.
    uint64_t zero = 0;      // Where the image has bytes.
    uint64_t other = 0;
    uint64_t sigbus = 0;
    bool hung = false;  // No answer for a minute, or the process is gone.

    friend bool operator==(const Seen&, const Seen&) = default;
  };
  // Reads pages, in ascending order.
  Seen Look(uint64_t first, uint64_t pages);
  // Sends the order only; Answer() is for later.
  void BeginLook(uint64_t first, uint64_t pages);
  Seen Answer();
  // Writes one byte to each page (0xA5 at its start).
  bool Write(uint64_t first, uint64_t pages);
  // madvise(MADV_DONTNEED), munmap, mremap to elsewhere: within one region.
  bool GiveBack(uint64_t first, uint64_t pages);
  bool Unmap(uint64_t first, uint64_t pages);
  bool Move(uint64_t first, uint64_t pages);
  // UFFDIO_UNREGISTER, of which no event tells.
  bool Unregister(uint64_t first, uint64_t pages);
  // What a forked child sees.
  Seen LookInFork(uint64_t first, uint64_t pages);
  // Threads read all pages again and again in an order of their own, while one
  // gives pages back, `rounds` times. `zero` counts pages that were given back
  // at some time.
  Seen Race(uint64_t threads, uint64_t rounds);
  void BeginRace(uint64_t threads, uint64_t rounds);
  // Connects to a server's socket, and sends what Firecracker does. The answer
  // is not read.
  bool Join(const std::string& path);
  // Ends by itself.
  void Exit();
  // SIGKILL, and waits for the end.
  void Kill();
  // How the process ended: waits for it. The signal, or 0.
  int WaitForSignal();

 private:
  StandIn() = default;
  bool Order(uint64_t what, uint64_t first, uint64_t pages,
             const std::string& path = "");

  pid_t pid_ = -1;
  UniqueFd socket_;
  UniqueFd uffd_;
  std::vector<GuestRegion> regions_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_STAND_IN_H_
