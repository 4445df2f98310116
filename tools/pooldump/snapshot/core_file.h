// Reads the pools of a process from its core dump: the control blocks are
// dumped with the kernel's default filter.
//
//   absl::StatusOr<CoreFile> core = CoreFile::Open("/tmp/core.1234");
//   if (!core.ok()) return core.status();
//   absl::StatusOr<ProcessSnapshot> then = core->Snapshot("");
//   if (then.ok() && then->crash().has_location()) ...
//
// resident_bytes and its like are never set: a core does not tell. Page states
// are there where the process dumped them (docs/control-block.md says when).
//
// ERRORS are one line that says what to do. By code:
//   NotFound            no such file; no pool in it; no pool of that name; no
//                       such slot
//   PermissionDenied    the file may not be read
//   InvalidArgument     not a core dump of an x86-64 Linux process
//   FailedPrecondition  a control block of a version that this reader does not
//                       know
//   DataLoss            the core is cut short, or a block in it cannot be right
//
// Thread-compatible. Allocates.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_CORE_FILE_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_CORE_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

class CoreFile {
 public:
  static absl::StatusOr<CoreFile> Open(const std::string& path);

  CoreFile(CoreFile&& other) noexcept;
  CoreFile& operator=(CoreFile&& other) noexcept;
  ~CoreFile();

  // The pools of that name, or all of them (empty), and what ended the process.
  absl::StatusOr<ProcessSnapshot> Snapshot(const std::string& pool);

  // As LiveProcess has them.
  absl::StatusOr<PageMap> Pages(const std::string& pool, uint32_t slot);
  absl::StatusOr<Location> Locate(uint64_t address);

 private:
  struct Impl;
  explicit CoreFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_CORE_FILE_H_
