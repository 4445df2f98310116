// The blocks that a running process publishes: of its pools, and of the guests
// that it serves. For live.h, which has the errors.
//
// Thread-compatible. Allocates.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LIVE_BLOCKS_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LIVE_BLOCKS_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/tools/pooldump/snapshot/block_reader.h"
#include "firsttouch/tools/pooldump/snapshot/guests_reader.h"
#include "firsttouch/tools/pooldump/snapshot/live_bytes.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::pooldump {

class LiveBlocks {
 public:
  struct Pool {
    std::unique_ptr<LiveBytes> bytes;
    BlockReader reader;
  };
  struct Served {
    std::unique_ptr<LiveBytes> bytes;
    GuestsReader reader;
  };
  // What a process has published.
  struct Found {
    std::vector<Pool> pools;  // In order of their base.
    std::vector<Served> served;
  };

  // `proc` is a descriptor of /proc/PID; may be none, and then nothing may be
  // called.
  LiveBlocks(pid_t pid, UniqueFd proc) : pid_(pid), proc_(std::move(proc)) {}

  pid_t pid() const { return pid_; }
  int proc() const { return proc_.get(); }

  // All blocks of the process. `warnings` tells of those that are not to be
  // read; their first error is the result where nothing is left.
  absl::StatusOr<Found> Find(std::vector<std::string>& warnings) const;

  // /proc/PID/status, of a process that has not ended.
  absl::StatusOr<std::string> Status() const;

  // That it has.
  absl::Status Ended() const;

 private:
  // `what` is not to be had, of a process that is not ours.
  absl::Status Denied(int error, const char* what) const;
  // Adds what a descriptor is of, if it is one of a block.
  absl::Status LookAt(int listing, const char* name,
                      std::optional<uint64_t> own_pid, std::set<uint64_t>& seen,
                      Found& all, std::vector<std::string>& warnings) const;
  absl::Status AddServed(std::unique_ptr<LiveBytes> bytes,
                         std::optional<uint64_t> own_pid, Found& all,
                         std::vector<std::string>& warnings) const;
  // Why there is nothing, as far as /proc tells.
  absl::Status NoPool(const std::vector<std::string>& warnings) const;
  // What the mapping of a control block tells that the parent has as well: of
  // the pool that the parent had when it forked. Empty: there is no such one.
  std::string Inherited(const std::string& maps) const;

  pid_t pid_;
  UniqueFd proc_;
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LIVE_BLOCKS_H_
