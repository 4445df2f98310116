// The contents of /proc on this process's mappings and the machine's limits,
// for error texts and the probe.
//
// Allocates; not for signal handlers. A file that cannot be read means
// "unknown", never an error.

#ifndef FIRSTTOUCH_UFFD_PROC_H_
#define FIRSTTOUCH_UFFD_PROC_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace firsttouch {

// One line of /proc/self/maps.
struct Mapping {
  enum class Kind {
    kAnonymous,  // private, no file
    kShmem,      // memfd, tmpfs, shared anonymous, System V: private or shared
    kHugetlb,    // huge pages of hugetlbfs
    kFile,       // a file of any other file system
    kSpecial,    // [vdso] and its like
  };

  uintptr_t start = 0;
  uintptr_t end = 0;        // exclusive
  std::string permissions;  // "rw-p"
  uint64_t inode = 0;
  std::string path;  // empty for anonymous memory without a name

  bool is_shared() const {
    return permissions.size() > 3 && permissions[3] == 's';
  }
  // The kind, by name, since the kernel's text has nothing better: tmpfs is
  // recognized by "/memfd:", "/dev/shm/", "/dev/zero (deleted)" and "/SYSV", or
  // by asking the file system of the path.
  Kind kind() const;
  // "private file mapping /usr/bin/true", "private anonymous memory",
  // "shared memfd mapping /memfd:store (deleted)".
  std::string Describe() const;
};

// Parses a line in the format of /proc/self/maps; nullopt for any other text.
std::optional<Mapping> ParseMapping(std::string_view line);

// The mappings of this process that overlap [start, end), in order.
std::vector<Mapping> MappingsOf(uintptr_t start, uintptr_t end);

// The number of mappings of this process, which vm.max_map_count limits.
uint64_t CountMappings();

// What may have made a system call fail with ENOMEM that needed `bytes` of
// private writable memory, or one more mapping. Made for the end of an error's
// text, with the way out: "; this process has 65531 mappings and
// vm.max_map_count is 65530: ...", RLIMIT_DATA, RLIMIT_AS, or that no such
// limit is in the way.
std::string ShortageText(uint64_t bytes);

// The part of ShortageText() about RLIMIT_DATA; empty where `bytes` fit.
std::string DataLimitText(uint64_t bytes);

// Whether the kernel may write a line to its log ("MCE: Killing ...") at each
// touch of a page that UFFDIO_POISON marked, as kernels with
// CONFIG_MEMORY_FAILURE do. False only where the settings in `vm_settings` can
// be seen, and are those of a kernel without that option.
bool MayLogPoisonedPages(const std::string& vm_settings = "/proc/sys/vm");

// The first line of a small file without the end of line.
std::optional<std::string> ReadFirstLine(const std::string& path);

// The number in a file that holds one number ("0", "65530").
std::optional<int64_t> ReadNumber(const std::string& path);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_PROC_H_
