// A file that appears under its name when it is whole, or not at all.
//
//   absl::StatusOr<AtomicFile> file = AtomicFile::Create("/data/a.ftimg");
//   ... write to file->fd() ...
//   absl::Status status = file->Commit(/*replace=*/true);
//
// Until Commit it is "/data/.a.ftimg.<random>.tmp", which the destructor takes
// away. So only a process that dies leaves such a file.
//
// Thread-compatible. Not async-signal-safe. Fork: the child's copy would take
// the file away too; commit or destroy it before.

#ifndef FIRSTTOUCH_INIT_ATOMIC_FILE_H_
#define FIRSTTOUCH_INIT_ATOMIC_FILE_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

class AtomicFile {
 public:
  // An empty file for reading and writing, mode 0444 less the umask: who has a
  // name for it later cannot write to it by accident. Errors carry the kernel's
  // errno and name the path.
  static absl::StatusOr<AtomicFile> Create(const std::string& path);

  AtomicFile(AtomicFile&& other) noexcept
      : path_(std::move(other.path_)),
        temporary_(std::exchange(other.temporary_, {})),
        fd_(std::move(other.fd_)) {}
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  int fd() const { return fd_.get(); }

  // Syncs the file, gives it its name, and syncs the directory. The descriptor
  // stays open. AlreadyExists: `replace` is false and there is such a file. If
  // only the last step fails, the file is there and the error says so.
  absl::Status Commit(bool replace);

 private:
  AtomicFile(std::string path, std::string temporary, UniqueFd fd)
      : path_(std::move(path)),
        temporary_(std::move(temporary)),
        fd_(std::move(fd)) {}

  std::string path_;
  std::string temporary_;  // Empty: committed.
  UniqueFd fd_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_ATOMIC_FILE_H_
