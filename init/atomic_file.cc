#include "firsttouch/init/atomic_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/random.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>

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

}  // namespace

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path) {
  const std::string name = NameOf(path);
  if (name.empty() || name == "." || name == "..") {
    return absl::InvalidArgumentError(absl::StrCat(
        "file '", path, "': a path must end in the name of a file"));
  }
  for (;;) {
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, 0) != sizeof random) {
      return Failed(errno, "getrandom", path);
    }
    std::string temporary =
        absl::StrCat(DirectoryOf(path), "/.", name.substr(0, kMaxNamePart), ".",
                     absl::Hex(random, absl::kZeroPad16), ".tmp");
    UniqueFd fd(
        open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0444));
    if (fd) return AtomicFile(path, std::move(temporary), std::move(fd));
    if (errno != EEXIST) return Failed(errno, "creating it", path);
  }
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

absl::Status AtomicFile::Commit(bool replace) {
  if (fsync(fd_.get()) != 0) return Failed(errno, "fsync", path_);
  if (replace) {
    if (rename(temporary_.c_str(), path_.c_str()) != 0) {
      return Failed(errno, "rename", path_);
    }
    temporary_.clear();
  } else if (link(temporary_.c_str(), path_.c_str()) != 0) {
    if (errno != EEXIST) return Failed(errno, "link", path_);
    return absl::AlreadyExistsError(
        absl::StrCat("file '", path_,
                     "' exists and is not to be replaced; take it away or "
                     "choose another name"));
  } else {
    unlink(std::exchange(temporary_, {}).c_str());
  }
  const UniqueFd directory(
      open(DirectoryOf(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory || fsync(directory.get()) != 0) {
    return Failed(errno,
                  "fsync of its directory, after which it is there but may be "
                  "gone after a power cut,",
                  path_);
  }
  return absl::OkStatus();
}

}  // namespace firsttouch
