#include "firsttouch/tools/pooldump/snapshot/processes.h"

#include <dirent.h>
#include <fcntl.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/control/block.h"
#include "firsttouch/control/guests.h"
#include "firsttouch/tools/pooldump/snapshot/proc_memory.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::pooldump {
namespace {

struct CloseDir {
  void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDir>;

bool HasBlock(DIR* descriptors) {
  const std::string of_pool = absl::StrCat("/memfd:", kControlMemfdPrefix);
  const std::string of_guests = absl::StrCat("/memfd:", kGuestsMemfdPrefix);
  while (const dirent* entry = readdir(descriptors)) {
    char link[512];
    const ssize_t length =
        readlinkat(dirfd(descriptors), entry->d_name, link, sizeof(link));
    if (length <= 0) continue;
    const std::string_view target(link, static_cast<size_t>(length));
    if (target.starts_with(of_pool) || target.starts_with(of_guests)) {
      return true;
    }
  }
  return false;
}

// Threads of the kernel, and what has ended already, have no command line.
bool HasCommandLine(const std::string& folder) {
  const UniqueFd proc(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!proc) return false;
  const absl::StatusOr<std::string> line = ReadProcFile(proc.get(), "cmdline");
  return line.ok() && !line->empty();
}

}  // namespace

absl::StatusOr<ProcessList> FindProcesses() {
  const Directory proc(opendir("/proc"));
  if (proc == nullptr || access("/proc/self/fd", F_OK) != 0) {
    return absl::FailedPreconditionError(
        "/proc is not mounted here: run pooldump where it is");
  }
  ProcessList list;
  while (const dirent* entry = readdir(proc.get())) {
    pid_t pid = 0;
    if (!absl::SimpleAtoi(entry->d_name, &pid)) continue;
    const std::string folder = absl::StrCat("/proc/", pid);
    const Directory descriptors(opendir((folder + "/fd").c_str()));
    if (descriptors != nullptr) {
      if (HasBlock(descriptors.get())) list.pids.push_back(pid);
    } else if ((errno == EACCES || errno == EPERM) && HasCommandLine(folder)) {
      ++list.forbidden;
    }
  }
  std::sort(list.pids.begin(), list.pids.end());
  return list;
}

std::string UserName(uid_t user) {
  passwd entry = {};
  passwd* found = nullptr;
  std::vector<char> buffer(size_t{1} << 14);
  if (getpwuid_r(user, &entry, buffer.data(), buffer.size(), &found) != 0 ||
      found == nullptr) {
    return absl::StrCat(user);
  }
  return entry.pw_name;
}

}  // namespace firsttouch::pooldump
