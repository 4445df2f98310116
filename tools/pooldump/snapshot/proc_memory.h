// What the kernel knows of another process's memory: what is resident in it, by
// PAGEMAP_SCAN and /proc/PID/smaps.
//
// Descriptors of /proc/PID are given, so that a process that has got the same
// number since is never read. Thread-safe. Allocates.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PROC_MEMORY_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PROC_MEMORY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// The whole of /proc/PID/`name`, where `proc` is a descriptor of /proc/PID.
// Unavailable where the process has ended, else the errno of the call.
absl::StatusOr<std::string> ReadProcFile(int proc, const char* name);

// The value of a line "Name:\tvalue" of /proc/PID/status; empty: there is none.
std::string StatusValue(std::string_view status, std::string_view name);

// The number at `index` of those in `text`, counted from the end if negative.
std::optional<uint64_t> NumberAt(const std::string& text, int index);

// Resident pages [start, end) that are alike. Pages of the kernel's page of
// zeroes are left out, as smaps does.
struct ResidentRun {
  uint64_t start = 0;
  uint64_t end = 0;
  // The process's own copy; otherwise the file's, shared with all who map it.
  bool is_private = false;
};

// Calls visit(run) for the resident pages of [start, end), in ascending order;
// neighbours may come in parts. Unimplemented before Linux 6.7.
absl::Status ForEachResidentRun(
    int proc, uint64_t start, uint64_t end,
    absl::FunctionRef<void(const ResidentRun&)> visit);

// A range of addresses and what smaps says of the mappings in it.
struct SmapsRange {
  uint64_t start = 0;
  uint64_t end = 0;
  Mappings sums;
};

// Adds what `smaps` (the text of the file) says to each of `ranges`, which do
// not overlap and are in ascending order. A mapping belongs to the range that
// its start is in.
void AddSmaps(std::string_view smaps, std::vector<SmapsRange>& ranges);

// The name of the mapping of `maps` (the text of the file) that the address is
// in: its path, or what it is for people; nothing where there is none.
std::optional<std::string> MappingNameAt(std::string_view maps,
                                         uint64_t address);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_PROC_MEMORY_H_
