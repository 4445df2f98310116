// Reads the pools of a running process, and the guests of a page server, from
// the blocks that it publishes (docs/control-block.md) and from /proc.
//
//   absl::StatusOr<LiveProcess> process = LiveProcess::Open(pid);
//   if (!process.ok()) return process.status();
//   absl::StatusOr<ProcessSnapshot> now = process->Snapshot({});
//
// The process is not stopped, not attached to, and cannot tell; nothing in it
// is written, nor allocated. Its owner and root may do this.
//
// ERRORS are one line that says what to do. By code:
//   NotFound            no such process; no pool in it; no pool of that name;
//                       no such slot
//   PermissionDenied    another user's process, or one that forbids it
//   FailedPrecondition  the block is of a version that this reader does not
//                       know
//   DataLoss            a block that cannot be right: corrupted, or not one
//   Unavailable         the process ended meanwhile
//
// Thread-compatible. Allocates.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LIVE_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LIVE_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

struct SnapshotOptions {
  // Only the pools of this name; empty for all.
  std::string pool;
  // Whether the kernel is asked what is resident (fields resident_bytes,
  // private_bytes, shared_bytes of slots and totals), and for PoolSnapshot's
  // `mappings`.
  bool residency = true;
  bool smaps = true;
};

class LiveProcess {
 public:
  // Finds the process's pools, and whom it serves. Of a process that has
  // neither and is served itself: what its server publishes of it. Errors: see
  // above.
  static absl::StatusOr<LiveProcess> Open(pid_t pid);

  LiveProcess(LiveProcess&& other) noexcept;
  LiveProcess& operator=(LiveProcess&& other) noexcept;
  ~LiveProcess();

  // All pools as they are now; pools that were made since Open() are found,
  // pools that are gone are not an error. Also to be called again and again:
  // another process that has got the same number since is never read.
  absl::StatusOr<ProcessSnapshot> Snapshot(const SnapshotOptions& options);

  // The pages of one slot. `pool` may be empty if there is one pool only;
  // InvalidArgument, naming them, if there are several.
  absl::StatusOr<PageMap> Pages(const std::string& pool, uint32_t slot);

  // What an address is; see locate.h. The first call finds the pools and the
  // process's mappings, and later ones use what it found until LookAnew(), for
  // logs of many addresses. What is resident is asked of the kernel each time.
  // InvalidArgument: several guests have memory at that address.
  absl::StatusOr<Location> Locate(uint64_t address);
  void LookAnew();

 private:
  struct Impl;
  explicit LiveProcess(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LIVE_H_
