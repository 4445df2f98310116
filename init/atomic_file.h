// A file that appears under its name when it is whole, or not at all.
//
//   absl::StatusOr<AtomicFile> file = AtomicFile::Create("/data/a.ftimg");
//   ... write to file->fd() ...
//   absl::Status status = file->Commit(/*replace=*/true);
//
// Until Commit the file has no name (O_TMPFILE), so that nothing is left of it
// however the process ends. Where the file system has no such files, it is
// "/data/.a.ftimg.<random>.tmp", which the destructor takes away, and which a
// process that is killed leaves behind. Commit needs that name for an instant
// in any case.
//
// A path that leads to a device, a FIFO or the like is written through: the
// contents are collected in memory, and Commit copies them there.
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
  // What a path means that is there already and is no regular file.
  enum class Existing {
    // Symbolic links are followed, as by open(2), also those that lead to
    // nothing yet. What is no regular file is written through.
    kFollow,
    // Whatever has the name is replaced. For folders whose entries others may
    // have made: no link of theirs leads a write elsewhere.
    kReplace,
  };

  // An empty file for reading and writing, mode 0444 less the umask: who has a
  // name for it later cannot write to it by accident. Errors carry the kernel's
  // errno and name the path. Waits for a reader where the path is a FIFO.
  static absl::StatusOr<AtomicFile> Create(
      const std::string& path, Existing existing = Existing::kFollow);

  AtomicFile(AtomicFile&& other) noexcept
      : path_(std::move(other.path_)),
        target_(std::move(other.target_)),
        temporary_(std::exchange(other.temporary_, {})),
        fd_(std::move(other.fd_)),
        through_(std::move(other.through_)) {}
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  int fd() const { return fd_.get(); }

  // Syncs the file, gives it its name, and syncs the directory. The descriptor
  // stays open. AlreadyExists: `replace` is false and there is such a file. If
  // only the last step fails, the file is there and the error says so. What is
  // written through gets the contents from the first byte on.
  absl::Status Commit(bool replace);

 private:
  AtomicFile(std::string path, std::string target)
      : path_(std::move(path)), target_(std::move(target)) {}

  // Opens fd_, and gives it temporary_ where it has to have a name.
  absl::Status Open();
  // Gives a file that has no name temporary_.
  absl::Status NameIt();
  absl::Status CopyThrough();

  std::string path_;       // As it was given, for errors.
  std::string target_;     // path_ after symbolic links.
  std::string temporary_;  // Empty: none, or committed.
  UniqueFd fd_;
  UniqueFd through_;  // What is written through; otherwise none.
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_ATOMIC_FILE_H_
