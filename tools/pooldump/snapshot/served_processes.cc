#include "firsttouch/tools/pooldump/snapshot/served_processes.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/pooldump/snapshot/proc_memory.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::pooldump {
namespace {

struct CloseDir {
  void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDir>;

Directory OpenDirectory(int at, const char* path) {
  UniqueFd fd(openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return nullptr;
  return Directory(fdopendir(fd.release()));
}

UniqueFd OpenProcess(pid_t pid) {
  return UniqueFd(open(absl::StrCat("/proc/", pid).c_str(),
                       O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

// The numbers of a process, from that in the namespace of /proc to that in its
// own.
std::vector<uint64_t> NumbersOf(int proc) {
  std::vector<uint64_t> numbers;
  const absl::StatusOr<std::string> status = ReadProcFile(proc, "status");
  if (!status.ok()) return numbers;
  const std::string text = StatusValue(*status, "NSpid");
  for (const absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(" \t"), absl::SkipEmpty())) {
    uint64_t number = 0;
    if (!absl::SimpleAtoi(word, &number)) return {};
    numbers.push_back(number);
  }
  return numbers;
}

std::optional<uint64_t> UserOf(int proc) {
  const absl::StatusOr<std::string> status = ReadProcFile(proc, "status");
  if (!status.ok()) return std::nullopt;
  return NumberAt(StatusValue(*status, "Uid"), 1);
}

// The pid namespace of a process, or one so many levels above it.
std::optional<std::pair<dev_t, ino_t>> NamespaceOf(int proc, size_t levels_up) {
  UniqueFd space(openat(proc, "ns/pid", O_RDONLY | O_CLOEXEC));
  for (; space && levels_up > 0; --levels_up) {
    space.reset(ioctl(space.get(), NS_GET_PARENT));
  }
  struct stat file = {};
  if (!space || fstat(space.get(), &file) != 0) return std::nullopt;
  return std::pair(file.st_dev, file.st_ino);
}

std::string UserText(const std::optional<uint64_t>& user) {
  return user.has_value() ? absl::StrCat("user id ", *user)
                          : "a user that is not known";
}

}  // namespace

absl::StatusOr<pid_t> ServedProcesses::NumberHere(uint64_t pid) {
  const std::vector<uint64_t> own = NumbersOf(server_);
  // It sees processes as /proc does.
  if (own.size() <= 1) return static_cast<pid_t>(pid);
  if (!numbers_.has_value()) {
    numbers_.emplace();
    const size_t level = own.size() - 1;
    const std::optional<std::pair<dev_t, ino_t>> space =
        NamespaceOf(server_, 0);
    const Directory directory = OpenDirectory(AT_FDCWD, "/proc");
    while (const dirent* entry =
               directory == nullptr ? nullptr : readdir(directory.get())) {
      pid_t here = 0;
      if (!absl::SimpleAtoi(entry->d_name, &here)) continue;
      const UniqueFd proc = OpenProcess(here);
      if (!proc) continue;
      const std::vector<uint64_t> numbers = NumbersOf(proc.get());
      // Other containers have the same numbers.
      if (numbers.size() > level && space.has_value() &&
          NamespaceOf(proc.get(), numbers.size() - 1 - level) == space) {
        numbers_->emplace(numbers[level], here);
      }
    }
  }
  const auto found = numbers_->find(pid);
  if (found != numbers_->end()) return found->second;
  return absl::NotFoundError(
      absl::StrCat("its process, ", pid,
                   " in the container (pid namespace) of the server, is not to "
                   "be seen here"));
}

std::set<ServedProcesses::FileId> ServedProcesses::UserfaultfdsOf(int proc) {
  std::set<FileId> files;
  const Directory directory = OpenDirectory(proc, "fd");
  if (directory == nullptr) return files;
  while (const dirent* entry = readdir(directory.get())) {
    char link[64];
    const ssize_t length =
        readlinkat(dirfd(directory.get()), entry->d_name, link, sizeof link);
    struct stat file = {};
    if (length > 0 &&
        std::string_view(link, static_cast<size_t>(length)) ==
            "anon_inode:[userfaultfd]" &&
        fstatat(dirfd(directory.get()), entry->d_name, &file, 0) == 0) {
      files.emplace(file.st_dev, file.st_ino);
    }
  }
  return files;
}

bool ServedProcesses::SharesUserfaultfd(int guest) {
  if (!userfaultfds_.has_value()) {
    userfaultfds_ = UserfaultfdsOf(server_);
    // Before 5.12 all of them, and other files, have one number.
    const UniqueFd other(eventfd(0, EFD_CLOEXEC));
    struct stat file = {};
    if (!other || fstat(other.get(), &file) != 0) {
      userfaultfds_->clear();
    } else {
      userfaultfds_->erase({file.st_dev, file.st_ino});
    }
  }
  if (userfaultfds_->empty()) return false;
  for (const FileId& one : UserfaultfdsOf(guest)) {
    if (userfaultfds_->contains(one)) return true;
  }
  return false;
}

absl::StatusOr<pid_t> ServedProcesses::Find(uint64_t pid) {
  const absl::StatusOr<pid_t> here = NumberHere(pid);
  if (!here.ok()) return here;
  const UniqueFd guest = OpenProcess(*here);
  // It has ended; nothing of another process will be shown.
  if (!guest) return here;
  const std::optional<uint64_t> server_user = UserOf(server_);
  const std::optional<uint64_t> guest_user = UserOf(guest.get());
  if (server_user.has_value() &&
      (*server_user == 0 || *server_user == geteuid() ||
       server_user == guest_user)) {
    return here;
  }
  if (SharesUserfaultfd(guest.get())) return here;
  return absl::PermissionDeniedError(absl::StrCat(
      "the server, of ", UserText(server_user),
      ", says that it serves process ", *here, ", of ", UserText(guest_user),
      ", but has no userfaultfd of it: it is not believed"));
}

}  // namespace firsttouch::pooldump
