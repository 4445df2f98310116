#include "firsttouch/tools/pooldump/snapshot/live_blocks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "firsttouch/control/block.h"
#include "firsttouch/control/guests.h"
#include "firsttouch/tools/pooldump/snapshot/printable.h"
#include "firsttouch/tools/pooldump/snapshot/proc_memory.h"

namespace firsttouch::pooldump {

absl::Status LiveBlocks::Denied(int error, const char* what) const {
  std::string whose = "of another user";
  std::string how = "as its owner or as root";
  // Of a process that may not be looked at, root owns the folder; so the file
  // in it that everybody may read tells.
  const auto status = ReadProcFile(proc_.get(), "status");
  std::optional<uint64_t> user;
  if (status.ok()) user = NumberAt(StatusValue(*status, "Uid"), 1);
  if (user.has_value()) {
    if (*user == geteuid() && geteuid() != 0) {
      // A process that is on its way out, without memory already, belongs to
      // root, too.
      if (StatusValue(*status, "VmSize").empty()) return Ended();
      whose =
          "of this user, but has privileges that this user lacks, or forbids "
          "it (PR_SET_DUMPABLE)";
      how = "as root";
    } else if (geteuid() == 0) {
      whose = absl::StrCat("of user id ", *user);
      how = "with CAP_SYS_PTRACE, which this root lacks";
    } else {
      whose = absl::StrCat("of user id ", *user, ", and this is user id ",
                           geteuid());
    }
  }
  return absl::PermissionDeniedError(
      absl::StrCat(what, " of process ", pid_, ": ", std::strerror(error),
                   "; the process is ", whose, ": run pooldump ", how));
}

absl::Status LiveBlocks::Ended() const {
  return absl::UnavailableError(absl::StrCat("process ", pid_, " has ended"));
}

absl::StatusOr<std::string> LiveBlocks::Status() const {
  absl::StatusOr<std::string> status = ReadProcFile(proc_.get(), "status");
  if (!status.ok()) {
    return absl::IsUnavailable(status.status()) ? Ended() : status.status();
  }
  const std::string state = StatusValue(*status, "State");
  if (!state.empty() && (state[0] == 'Z' || state[0] == 'X')) return Ended();
  return status;
}

absl::StatusOr<LiveBlocks::Found> LiveBlocks::Find(
    std::vector<std::string>& warnings) const {
  const absl::StatusOr<std::string> status = Status();
  if (!status.ok()) return status.status();
  const std::optional<uint64_t> own_pid =
      NumberAt(StatusValue(*status, "NSpid"), -1);

  const int listing =
      openat(proc_.get(), "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (listing < 0) {
    const int error = errno;
    if (error == EACCES || error == EPERM) {
      return Denied(error, "the descriptors");
    }
    if (error == ENOENT || error == ESRCH) return Ended();
    return absl::ErrnoToStatus(error, absl::StrCat("/proc/", pid_, "/fd"));
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(fdopendir(listing),
                                                      &closedir);
  if (directory == nullptr) {
    const int error = errno;
    close(listing);
    return absl::ErrnoToStatus(error, "opendir");
  }
  Found all;
  std::vector<Pool>& pools = all.pools;
  std::set<uint64_t> seen;
  absl::Status failure;
  while (const dirent* entry = readdir(directory.get())) {
    absl::Status found =
        LookAt(listing, entry->d_name, own_pid, seen, all, warnings);
    if (found.ok()) continue;
    if (absl::IsPermissionDenied(found)) return found;
    failure.Update(found);
    warnings.push_back(absl::StrCat(found.message()));
  }
  std::sort(pools.begin(), pools.end(), [](const Pool& a, const Pool& b) {
    return a.reader.header().base < b.reader.header().base;
  });
  if (!pools.empty() || !all.served.empty()) return all;
  // It may have ended while we looked. The kernel takes memory away before it
  // closes descriptors; threads of its own, children of process 2, never had
  // any.
  const absl::StatusOr<std::string> still = Status();
  if (!still.ok()) return still.status();
  if (StatusValue(*still, "VmSize").empty() && pid_ != 2 &&
      NumberAt(StatusValue(*still, "PPid"), 0) != 2) {
    return Ended();
  }
  if (!failure.ok()) return failure;
  return NoPool(warnings);
}

absl::Status LiveBlocks::LookAt(int listing, const char* name,
                                std::optional<uint64_t> own_pid,
                                std::set<uint64_t>& seen, Found& all,
                                std::vector<std::string>& warnings) const {
  char link[512];
  const ssize_t length = readlinkat(listing, name, link, sizeof(link));
  if (length < 0) {
    // Only of the directory itself, and of one that was closed meanwhile.
    return absl::OkStatus();
  }
  const std::string_view target(link, static_cast<size_t>(length));
  const std::string of_guests = absl::StrCat("/memfd:", kGuestsMemfdPrefix);
  const bool serves = target.starts_with(of_guests);
  const std::string prefix =
      serves ? of_guests : absl::StrCat("/memfd:", kControlMemfdPrefix);
  if (!target.starts_with(prefix)) return absl::OkStatus();
  // A memfd has no name in any folder, which the kernel calls deleted.
  std::string_view pool = target.substr(prefix.size());
  constexpr std::string_view kDeleted = " (deleted)";
  if (pool.ends_with(kDeleted)) pool.remove_suffix(kDeleted.size());
  const std::string shown = Printable(pool);

  UniqueFd fd(openat(listing, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    const int error = errno;
    if (error == ENOENT || error == ESRCH) return absl::OkStatus();
    if (error == EACCES || error == EPERM) {
      return Denied(error, "the control block");
    }
    return absl::ErrnoToStatus(
        error, absl::StrCat("opening the control block ", shown));
  }
  struct stat file = {};
  if (fstat(fd.get(), &file) != 0) {
    return absl::ErrnoToStatus(errno, "fstat of a control block");
  }
  if (!seen.insert(file.st_ino).second) return absl::OkStatus();
  // Nobody but memory has seals. Without this one it could become shorter
  // while it is mapped here, and reading it would be SIGBUS.
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return CorruptBlock(shown, "it is not sealed");
  }
  auto bytes = std::make_unique<LiveBytes>(std::move(fd),
                                           static_cast<uint64_t>(file.st_size));
  if (serves) return AddServed(std::move(bytes), own_pid, all, warnings);
  absl::StatusOr<BlockReader> reader = BlockReader::Open(*bytes);
  if (absl::IsNotFound(reader.status())) return absl::OkStatus();
  if (!reader.ok()) return reader.status();
  if (own_pid.has_value() && *own_pid != reader->header().pid) {
    warnings.push_back(
        absl::StrCat("pool \"", reader->name(), "\" is not of process ", pid_,
                     ", which only has its descriptor: it is of process ",
                     reader->header().pid));
    return absl::OkStatus();
  }
  if (absl::Status mapped = bytes->MapRecords(reader->header()); !mapped.ok()) {
    return mapped;
  }
  all.pools.push_back({std::move(bytes), *std::move(reader)});
  return absl::OkStatus();
}

absl::Status LiveBlocks::AddServed(std::unique_ptr<LiveBytes> bytes,
                                   std::optional<uint64_t> own_pid, Found& all,
                                   std::vector<std::string>& warnings) const {
  absl::StatusOr<GuestsReader> reader = GuestsReader::Open(*bytes);
  if (absl::IsNotFound(reader.status())) return absl::OkStatus();
  if (!reader.ok()) return reader.status();
  if (own_pid.has_value() && *own_pid != reader->header().pid) {
    warnings.push_back(
        absl::StrCat("server \"", reader->name(), "\" is not process ", pid_,
                     ", which only has its descriptor: it is process ",
                     reader->header().pid));
    return absl::OkStatus();
  }
  all.served.push_back({std::move(bytes), *std::move(reader)});
  return absl::OkStatus();
}

absl::Status LiveBlocks::NoPool(
    const std::vector<std::string>& warnings) const {
  std::string why;
  if (!warnings.empty()) {
    why = absl::StrCat(": ", absl::StrJoin(warnings, "; "));
  } else if (const auto maps = ReadProcFile(proc_.get(), "maps"); maps.ok()) {
    const std::string inherited = Inherited(*maps);
    if (!inherited.empty()) {
      why = inherited;
    } else if (maps->find(absl::StrCat("/memfd:", kControlMemfdPrefix)) !=
               std::string::npos) {
      why =
          ": it has one, but has closed the descriptor by which it is "
          "found; exclude it where the process closes descriptors";
    } else if (maps->find("[anon:firsttouch:") != std::string::npos) {
      why =
          ": it has one that is not published; its Service::Describe() says "
          "why (ServiceOptions::publish, or an older firsttouch)";
    }
  }
  if (why.empty()) {
    why = ", or none yet: look for the process that calls Service::Create";
  }
  return absl::NotFoundError(
      absl::StrCat("process ", pid_, " has no pool of firsttouch", why));
}

std::string LiveBlocks::Inherited(const std::string& maps) const {
  const auto status = ReadProcFile(proc_.get(), "status");
  if (!status.ok()) return "";
  const std::optional<uint64_t> parent =
      NumberAt(StatusValue(*status, "PPid"), 0);
  if (!parent.has_value() || *parent == 0) return "";
  const UniqueFd of_parent(open(absl::StrCat("/proc/", *parent).c_str(),
                                O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const auto others = of_parent ? ReadProcFile(of_parent.get(), "maps")
                                : absl::StatusOr<std::string>("");
  if (!others.ok()) return "";
  const std::string name = absl::StrCat("/memfd:", kControlMemfdPrefix);
  for (const absl::string_view line : absl::StrSplit(maps, '\n')) {
    if (!absl::StrContains(line, name)) continue;
    // Addresses are as they were when it forked; permissions may not be.
    const absl::string_view range = line.substr(0, line.find(' ') + 1);
    const std::vector<absl::string_view> of_others =
        absl::StrSplit(*others, '\n');
    for (const absl::string_view other : of_others) {
      if (!absl::StartsWith(other, range) || !absl::StrContains(other, name)) {
        continue;
      }
      return absl::StrCat(": it is a child by fork of process ", *parent,
                          ", whose pool it cannot use: look at that one");
    }
  }
  return "";
}

}  // namespace firsttouch::pooldump
