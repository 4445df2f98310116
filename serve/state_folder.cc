#include "firsttouch/serve/state_folder.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/uffd/proc.h"

namespace firsttouch {
namespace {

constexpr char kPrefix[] = "guest-";
constexpr char kUffd[] = "anon_inode:[userfaultfd]";

// Field 22 of /proc/PID/stat; 0 where it cannot be read.
uint64_t StartTimeOf(pid_t pid) {
  const std::optional<std::string> line =
      ReadFirstLine(absl::StrCat("/proc/", pid, "/stat"));
  if (!line.has_value()) return 0;
  // The second field is a name in parentheses, of any characters.
  const size_t name_end = line->rfind(')');
  if (name_end == std::string::npos) return 0;
  const std::vector<std::string> fields =
      absl::StrSplit(line->substr(name_end + 1), ' ', absl::SkipEmpty());
  uint64_t ticks = 0;
  constexpr size_t kField = 22 - 3;
  if (fields.size() <= kField || !absl::SimpleAtoi(fields[kField], &ticks)) {
    return 0;
  }
  return ticks;
}

std::string LinkOf(const std::string& path) {
  std::array<char, 64> target;
  const ssize_t length = readlink(path.c_str(), target.data(), target.size());
  return length < 0 ? "" : std::string(target.data(), length);
}

// The number by which a process has the same open file as `fd` is; -1: none is
// known.
int NumberIn(pid_t pid, int fd, const struct stat& own) {
  std::vector<int> same;
  std::error_code error;
  const std::string folder = absl::StrCat("/proc/", pid, "/fd");
  for (std::filesystem::directory_iterator it(folder, error), end;
       !error && it != end; it.increment(error)) {
    struct stat theirs;
    int number = -1;
    if (LinkOf(it->path()) == kUffd && stat(it->path().c_str(), &theirs) == 0 &&
        theirs.st_ino == own.st_ino && theirs.st_dev == own.st_dev &&
        absl::SimpleAtoi(it->path().filename().string(), &number)) {
      same.push_back(number);
    }
  }
  if (same.size() == 1) return same[0];
  // Several of one, or a kernel that gives all of them one inode.
  for (const int number : same) {
    if (syscall(SYS_kcmp, getpid(), pid, KCMP_FILE, fd, number) == 0) {
      return number;
    }
  }
  return -1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<StateFolder>> StateFolder::Open(
    const std::string& path, UniqueFd lock) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": mkdir"));
  }
  const UniqueFd folder(
      open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  struct stat status;
  struct statfs file_system;
  if (!folder || fstat(folder.get(), &status) != 0 ||
      fstatfs(folder.get(), &file_system) != 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat(path, ": the folder of the state"));
  }
  if (file_system.f_type != TMPFS_MAGIC) {
    return absl::FailedPreconditionError(absl::StrCat(
        path,
        ": the folder of the state is not on a tmpfs (such as /run or "
        "/dev/shm), where alone an event cannot be lost"));
  }
  if (status.st_uid != geteuid() || (status.st_mode & 022) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": the folder of the state belongs to user ", status.st_uid,
        " and has mode 0", absl::Hex(status.st_mode >> 6 & 7),
        absl::Hex(status.st_mode >> 3 & 7), absl::Hex(status.st_mode & 7),
        "; it must belong to user ", geteuid(),
        ", and nobody else may write to it"));
  }
  if (!lock) {
    lock.reset(openat(folder.get(), "lock",
                      O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!lock) {
      return absl::ErrnoToStatus(errno, absl::StrCat(path, "/lock: open"));
    }
    if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
      return absl::UnavailableError(
          absl::StrCat(path,
                       ": another server uses this state; end it, or have it "
                       "hand over (--replace)"));
    }
  }
  return std::unique_ptr<StateFolder>(new StateFolder(path, std::move(lock)));
}

absl::StatusOr<std::unique_ptr<GuestJournal>> StateFolder::Add(
    const GuestRecord& record, const AddressMap& map) {
  std::string file;
  do {
    file = absl::StrCat(path_, "/", kPrefix, record.pid, "-",
                        last_number_.fetch_add(1) + 1);
  } while (access(file.c_str(), F_OK) == 0);
  return GuestJournal::Create(file, record, map);
}

absl::StatusOr<std::vector<std::string>> StateFolder::Journals() const {
  std::vector<std::string> paths;
  std::error_code error;
  for (std::filesystem::directory_iterator it(path_, error), end;
       !error && it != end; it.increment(error)) {
    if (absl::StartsWith(it->path().filename().string(), kPrefix)) {
      paths.push_back(it->path());
    }
  }
  if (error) {
    return absl::ErrnoToStatus(error.value(),
                               absl::StrCat(path_, ": reading the folder"));
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

bool IsUserfaultfd(int fd) {
  return LinkOf(absl::StrCat("/proc/self/fd/", fd)) == kUffd;
}

GuestRecord RecordOf(pid_t pid, int uffd) {
  GuestRecord record;
  record.pid = pid;
  if (pid <= 0) return record;
  record.start_time_ticks = StartTimeOf(pid);
  struct stat status;
  if (fstat(uffd, &status) != 0) return record;
  record.uffd_inode = status.st_ino;
  record.uffd_number = NumberIn(pid, uffd, status);
  return record;
}

absl::StatusOr<UniqueFd> OpenProcess(const GuestRecord& record) {
  const auto ended = [&] {
    return absl::NotFoundError(
        absl::StrCat("process ", record.pid, " has ended"));
  };
  if (record.pid <= 0 || record.start_time_ticks == 0) {
    return absl::FailedPreconditionError(
        "when the process started, or its number, could not be seen when it "
        "came (another pid namespace, or /proc with hidepid)");
  }
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, record.pid, 0)));
  if (!pidfd && errno == ESRCH) return ended();
  if (!pidfd) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("pidfd_open of process ", record.pid));
  }
  // The number may be another's by now. While `pidfd` has not ended, it is
  // the one that /proc shows.
  const uint64_t started = StartTimeOf(record.pid);
  pollfd waits = {.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  if (poll(&waits, 1, 0) != 0 || started != record.start_time_ticks) {
    return ended();
  }
  return pidfd;
}

absl::StatusOr<UniqueFd> DescriptorOf(const GuestRecord& record, int pidfd) {
  if (record.uffd_number < 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the number of the userfaultfd in process ", record.pid,
        " is not known: when it came, its descriptors could not be looked at "
        "(which needs the rights of a debugger), or it had closed its own"));
  }
  UniqueFd fd(
      static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, record.uffd_number, 0)));
  if (!fd) {
    return absl::ErrnoToStatus(
        errno,
        absl::StrCat("pidfd_getfd of descriptor ", record.uffd_number,
                     " of process ", record.pid,
                     " (it needs the rights of a debugger: CAP_SYS_PTRACE, or "
                     "the same user and no ptrace_scope of Yama)"));
  }
  struct stat status;
  if (!IsUserfaultfd(fd.get()) || fstat(fd.get(), &status) != 0 ||
      status.st_ino != record.uffd_inode) {
    return absl::FailedPreconditionError(absl::StrCat(
        "descriptor ", record.uffd_number, " of process ", record.pid,
        " is not the userfaultfd any more that it "
        "was"));
  }
  return fd;
}

}  // namespace firsttouch
