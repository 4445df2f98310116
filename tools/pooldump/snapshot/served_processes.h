// Which processes a page server serves: what its block says, held against what
// the kernel knows. A block is what some process has written, and anybody may
// write that it serves a process of somebody else.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_SERVED_PROCESSES_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_SERVED_PROCESSES_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/statusor.h"

namespace firsttouch::pooldump {

// Thread-compatible. Allocates.
class ServedProcesses {
 public:
  // `server` is a descriptor of /proc/PID, and outlives this.
  explicit ServedProcesses(int server) : server_(server) {}

  // The number here of the process that the server calls `pid`, which may be
  // one of its own pid namespace. Believed is a server of root's, of this user
  // or of the guest's; any other only if it has a userfaultfd that the guest's
  // process has as well. Errors: NotFound (it is not to be seen here),
  // PermissionDenied (it is not believed), with both processes' users.
  absl::StatusOr<pid_t> Find(uint64_t pid);

 private:
  // A file, by which the kernel tells it from others.
  using FileId = std::pair<dev_t, ino_t>;

  absl::StatusOr<pid_t> NumberHere(uint64_t pid);
  bool SharesUserfaultfd(int guest);
  static std::set<FileId> UserfaultfdsOf(int proc);

  const int server_;
  // Once they were needed: the server's userfaultfds, and ...
  std::optional<std::set<FileId>> userfaultfds_;
  // ... numbers here by those in the server's namespace.
  std::optional<std::map<uint64_t, pid_t>> numbers_;
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_SERVED_PROCESSES_H_
