#include "firsttouch/init/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {
namespace {

// So that the temporary name is no longer than file systems take (255 bytes).
constexpr size_t kMaxNamePart = 200;

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string NameOf(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

absl::Status Failed(int error, const char* call, const std::string& path) {
  return absl::ErrnoToStatus(
      error, absl::StrCat("file '", path, "': ", call, " failed"));
}

absl::Status IsThere(const std::string& path) {
  return absl::AlreadyExistsError(
      absl::StrCat("file '", path,
                   "' exists and is not to be replaced; take it away or "
                   "choose another name"));
}

// "/data/.a.ftimg.0123456789abcdef.tmp" for the target "/data/a.ftimg".
absl::StatusOr<std::string> TemporaryName(const std::string& path,
                                          const std::string& target) {
  uint64_t random = 0;
  if (getrandom(&random, sizeof random, 0) != sizeof random) {
    return Failed(errno, "getrandom", path);
  }
  return absl::StrCat(DirectoryOf(target), "/.",
                      NameOf(target).substr(0, kMaxNamePart), ".",
                      absl::Hex(random, absl::kZeroPad16), ".tmp");
}

// Whether the kernel makes up what is in the folder: its links lead to open
// files, whatever their text says.
bool IsOfProc(const std::string& folder) {
  struct statfs facts = {};
  return statfs(folder.c_str(), &facts) == 0 &&
         facts.f_type == PROC_SUPER_MAGIC;
}

struct Target {
  std::string path;
  bool through = false;
};

// Where the links of a path lead, and whether that is to be written through.
absl::StatusOr<Target> Follow(const std::string& path) {
  // As many links as the kernel follows.
  constexpr int kMostLinks = 40;
  struct stat facts = {};
  if (stat(path.c_str(), &facts) == 0 && !S_ISREG(facts.st_mode)) {
    if (S_ISDIR(facts.st_mode)) return Failed(EISDIR, "writing to it", path);
    return Target{path, true};
  }
  std::string at = path;
  for (int i = 0; i < kMostLinks; ++i) {
    if (lstat(at.c_str(), &facts) != 0) {
      // Other errors come again when the file is made.
      return Target{at, false};
    }
    if (!S_ISLNK(facts.st_mode)) return Target{at, false};
    const std::string folder = DirectoryOf(at);
    if (IsOfProc(folder)) return Target{path, true};
    char text[PATH_MAX];
    const ssize_t length = readlink(at.c_str(), text, sizeof text);
    if (length < 0) return Failed(errno, "readlink", path);
    const std::string to(text, static_cast<size_t>(length));
    at = to.front() == '/' ? to : absl::StrCat(folder, "/", to);
  }
  return Failed(ELOOP, "following its links", path);
}

}  // namespace

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path,
                                              Existing existing) {
  absl::StatusOr<Target> target = Target{path, false};
  if (existing == Existing::kFollow) target = Follow(path);
  if (!target.ok()) return target.status();
  const std::string name = NameOf(target->path);
  if (name.empty() || name == "." || name == "..") {
    return absl::InvalidArgumentError(absl::StrCat(
        "file '", path, "': a path must end in the name of a file"));
  }
  AtomicFile file(path, std::move(target->path));
  if (!target->through) {
    absl::Status opened = file.Open();
    if (!opened.ok()) return opened;
    return file;
  }
  // Appending matters for a regular file alone: standard output, by its name in
  // /proc.
  file.through_.reset(
      open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY));
  if (!file.through_) return Failed(errno, "opening it", path);
  file.fd_.reset(memfd_create("firsttouch:output", MFD_CLOEXEC));
  if (!file.fd_) return Failed(errno, "memfd_create", path);
  return file;
}

absl::Status AtomicFile::Open() {
  // By way of /proc it gets its name; see NameIt.
  if (access("/proc/self/fd", X_OK) == 0) {
    fd_.reset(open(DirectoryOf(target_).c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC,
                   0444));
  }
  // Whatever stands against it, the other way tells of it by name.
  if (fd_) return absl::OkStatus();
  for (;;) {
    absl::StatusOr<std::string> name = TemporaryName(path_, target_);
    if (!name.ok()) return name.status();
    fd_.reset(open(name->c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0444));
    if (fd_) {
      temporary_ = *std::move(name);
      return absl::OkStatus();
    }
    if (errno != EEXIST) return Failed(errno, "creating it", path_);
  }
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

absl::Status AtomicFile::NameIt() {
  // By way of /proc, which needs no capability, unlike AT_EMPTY_PATH.
  const std::string nameless = absl::StrCat("/proc/self/fd/", fd_.get());
  for (;;) {
    absl::StatusOr<std::string> name = TemporaryName(path_, target_);
    if (!name.ok()) return name.status();
    if (linkat(AT_FDCWD, nameless.c_str(), AT_FDCWD, name->c_str(),
               AT_SYMLINK_FOLLOW) == 0) {
      temporary_ = *std::move(name);
      return absl::OkStatus();
    }
    if (errno != EEXIST) return Failed(errno, "linkat", path_);
  }
}

absl::Status AtomicFile::CopyThrough() {
  std::vector<char> buffer(size_t{1} << 20);
  off_t offset = 0;
  for (;;) {
    const ssize_t got = pread(fd_.get(), buffer.data(), buffer.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Failed(errno, "reading what is to be written", path_);
    if (got == 0) return absl::OkStatus();
    for (ssize_t done = 0; done < got;) {
      const ssize_t wrote = write(through_.get(), buffer.data() + done,
                                  static_cast<size_t>(got - done));
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return Failed(errno, "writing to it", path_);
      done += wrote;
    }
    offset += got;
  }
}

absl::Status AtomicFile::Commit(bool replace) {
  if (through_ && !replace) return IsThere(path_);
  if (through_) return CopyThrough();
  if (fsync(fd_.get()) != 0) return Failed(errno, "fsync", path_);
  if (temporary_.empty()) {
    absl::Status named = NameIt();
    if (!named.ok()) return named;
  }
  if (replace) {
    if (rename(temporary_.c_str(), target_.c_str()) != 0) {
      return Failed(errno, "rename", path_);
    }
    temporary_.clear();
  } else if (link(temporary_.c_str(), target_.c_str()) != 0) {
    if (errno != EEXIST) return Failed(errno, "link", path_);
    return IsThere(path_);
  } else {
    unlink(std::exchange(temporary_, {}).c_str());
  }
  const UniqueFd directory(
      open(DirectoryOf(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory || fsync(directory.get()) != 0) {
    return Failed(errno,
                  "fsync of its directory, after which it is there but may be "
                  "gone after a power cut,",
                  path_);
  }
  return absl::OkStatus();
}

}  // namespace firsttouch
