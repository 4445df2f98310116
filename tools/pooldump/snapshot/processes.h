// Which processes have pools.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PROCESSES_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PROCESSES_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace firsttouch::pooldump {

struct ProcessList {
  // In ascending order. A process that was forked from one of these may be
  // among them, too: LiveProcess::Open tells.
  std::vector<pid_t> pids;
  // Processes whose descriptors this user may not look at.
  uint32_t forbidden = 0;
};

// The processes that have the descriptor of a control block, or of a guests
// block, of all that /proc
// shows here. Reads names of descriptors only. FailedPrecondition where /proc
// is not mounted. Thread-safe. Allocates.
absl::StatusOr<ProcessList> FindProcesses();

// The name of a user; the number, where there is none. Thread-safe. Allocates.
std::string UserName(uid_t user);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PROCESSES_H_
