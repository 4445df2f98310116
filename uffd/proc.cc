#include "firsttouch/uffd/proc.h"

#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

Mapping::Kind Mapping::kind() const {
  if (absl::StartsWith(path, "/anon_hugepage")) return Kind::kHugetlb;
  if (absl::StartsWith(path, "/memfd:") || absl::StartsWith(path, "/SYSV") ||
      absl::StartsWith(path, "/dev/zero") ||
      absl::StartsWith(path, "[anon_shmem:")) {
    return Kind::kShmem;
  }
  if (inode == 0) {
    // [heap], [stack] and [anon:NAME] are anonymous memory with a name.
    const bool named_anonymous = path.empty() || path == "[heap]" ||
                                 path == "[stack]" ||
                                 absl::StartsWith(path, "[anon:");
    return named_anonymous ? Kind::kAnonymous : Kind::kSpecial;
  }
  struct statfs file_system {};
  if (statfs(path.c_str(), &file_system) == 0) {
    if (file_system.f_type == TMPFS_MAGIC) return Kind::kShmem;
    if (file_system.f_type == HUGETLBFS_MAGIC) return Kind::kHugetlb;
  }
  return absl::StartsWith(path, "/dev/shm/") ? Kind::kShmem : Kind::kFile;
}

std::string Mapping::Describe() const {
  const char* sharing = is_shared() ? "shared " : "private ";
  const std::string name = path.empty() ? "" : absl::StrCat(" ", path);
  switch (kind()) {
    case Kind::kAnonymous:
      return absl::StrCat(sharing, "anonymous memory", name);
    case Kind::kShmem:
      if (absl::StartsWith(path, "/dev/zero")) return "shared anonymous memory";
      return absl::StrCat(
          sharing,
          absl::StartsWith(path, "/memfd:") ? "memfd" : "shared-memory",
          " mapping", name);
    case Kind::kHugetlb:
      return absl::StrCat(sharing, "hugetlbfs mapping", name);
    case Kind::kFile:
      return absl::StrCat(sharing, "file mapping", name);
    case Kind::kSpecial:
      return absl::StrCat("special mapping", name);
  }
  return path;
}

std::optional<Mapping> ParseMapping(std::string_view line) {
  // 7f0a1c000000-7f0a1c021000 rw-p 00000000 00:00 0    /a path with blanks
  const std::vector<std::string> fields = absl::StrSplit(
      absl::string_view(line.data(), line.size()), absl::MaxSplits(' ', 5));
  if (fields.size() < 5) return std::nullopt;
  const std::vector<std::string> ends = absl::StrSplit(fields[0], '-');
  Mapping mapping;
  uint64_t start = 0;
  uint64_t end = 0;
  if (ends.size() != 2 || !absl::SimpleHexAtoi(ends[0], &start) ||
      !absl::SimpleHexAtoi(ends[1], &end) || fields[1].size() != 4 ||
      !absl::SimpleAtoi(fields[4], &mapping.inode)) {
    return std::nullopt;
  }
  mapping.start = start;
  mapping.end = end;
  mapping.permissions = fields[1];
  if (fields.size() > 5) {
    mapping.path = std::string(absl::StripLeadingAsciiWhitespace(fields[5]));
  }
  return mapping;
}

std::vector<Mapping> MappingsOf(uintptr_t start, uintptr_t end) {
  std::vector<Mapping> mappings;
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) {
    std::optional<Mapping> mapping = ParseMapping(line);
    if (mapping.has_value() && mapping->end > start && mapping->start < end) {
      mappings.push_back(*std::move(mapping));
    }
  }
  return mappings;
}

uint64_t CountMappings() {
  uint64_t count = 0;
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) ++count;
  return count;
}

namespace {

// Bytes of a field of /proc/self/statm: 0 is everything mapped, 5 is data.
uint64_t MappedBytes(size_t field) {
  const std::vector<std::string> pages =
      absl::StrSplit(ReadFirstLine("/proc/self/statm").value_or(""), ' ');
  uint64_t count = 0;
  if (field >= pages.size() || !absl::SimpleAtoi(pages[field], &count)) {
    return 0;
  }
  return count * kPageBytes;
}

// "; RLIMIT_AS (ulimit -v) is ...", where `used` plus `bytes` exceeds it.
std::string RlimitText(int resource, const char* name, uint64_t used,
                       uint64_t bytes) {
  rlimit limit = {};
  if (getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0 ||
      limit.rlim_cur == RLIM_INFINITY ||
      (used <= limit.rlim_cur && bytes <= limit.rlim_cur - used)) {
    return "";
  }
  return absl::StrCat("; ", name, " is ", limit.rlim_cur, " bytes, of which ",
                      used, " are used: raise it");
}

}  // namespace

std::string DataLimitText(uint64_t bytes) {
  return RlimitText(RLIMIT_DATA,
                    "RLIMIT_DATA (ulimit -d), which counts private writable "
                    "memory in full, touched or not,",
                    MappedBytes(5), bytes);
}

std::string ShortageText(uint64_t bytes) {
  const uint64_t mappings = CountMappings();
  const int64_t most =
      ReadNumber("/proc/sys/vm/max_map_count").value_or(INT64_MAX);
  const std::string counts =
      absl::StrCat("this process has ", mappings,
                   " mappings and vm.max_map_count is ", most);
  // Splitting a mapping can add two.
  if (mappings + 2 >= static_cast<uint64_t>(most)) {
    return absl::StrCat("; ", counts,
                        ": raise it (sysctl -w vm.max_map_count=...), or use "
                        "fewer and larger mappings");
  }
  std::string text = DataLimitText(bytes);
  if (text.empty()) {
    text =
        RlimitText(RLIMIT_AS, "RLIMIT_AS (ulimit -v)", MappedBytes(0), bytes);
  }
  if (!text.empty()) return text;
  return absl::StrCat("; out of memory: ", counts,
                      ", and neither RLIMIT_AS nor RLIMIT_DATA is in the way");
}

bool MayLogPoisonedPages(const std::string& vm_settings) {
  // Only a kernel with CONFIG_MEMORY_FAILURE has this setting.
  const std::string recovery = vm_settings + "/memory_failure_recovery";
  if (access(recovery.c_str(), F_OK) == 0 || errno != ENOENT) return true;
  // Every kernel has this setting: without it, the settings cannot be seen
  // here.
  const std::string overcommit = vm_settings + "/overcommit_memory";
  return access(overcommit.c_str(), F_OK) != 0;
}

std::optional<std::string> ReadFirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<int64_t> ReadNumber(const std::string& path) {
  const std::optional<std::string> line = ReadFirstLine(path);
  int64_t number = 0;
  if (!line.has_value() || !absl::SimpleAtoi(*line, &number)) {
    return std::nullopt;
  }
  return number;
}

}  // namespace firsttouch
