// The directory of an image store: what its files are called, how they are read
// and written, and the lock that keeps other processes out.
//
// Internal to this folder: image_store.h has what a directory holds and why. A
// store in memory has a StoreDirectory as well, which has no path: on_disk() is
// false, Lock() has nothing to do, and nothing but prefix() may be asked
// besides.
//
// Errors begin with prefix() and name the file. Threads: as a const object,
// any; the lock keeps out other stores, not other threads of one store. Not for
// signal handlers.

#ifndef FIRSTTOUCH_INIT_STORE_DIRECTORY_H_
#define FIRSTTOUCH_INIT_STORE_DIRECTORY_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image_manifest.pb.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {

// Holds flock(2) on a descriptor, which outlives it; or nothing.
class FileLock {
 public:
  FileLock() = default;
  explicit FileLock(int fd) : fd_(fd) {}
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  int fd_ = -1;
};

class StoreDirectory {
 public:
  // Of the manifests that are written, and the only one that is read.
  static constexpr uint32_t kVersion = 1;

  // Empty: of a store in memory.
  explicit StoreDirectory(std::string path) : path_(std::move(path)) {}

  // Makes the directory and its folders where they are missing, and opens
  // "lock".
  absl::Status Open();

  bool on_disk() const { return !path_.empty(); }
  // "image store '<path>': ", with which errors of a store begin.
  std::string prefix() const;

  // Keeps other processes, and other stores of the directory, out. Waits.
  absl::StatusOr<FileLock> Lock() const;

  std::string RecordPath(const Digest& content) const;
  std::string WorkingSetPath(const Digest& content) const;
  std::string SegmentPath(const Digest& segment) const;
  std::string NamePath(const std::string& name) const;

  // What is between the folder and the ending in the paths above, of all files
  // that are there; temporary ones are not among them. Of a name, in
  // hexadecimal digits.
  absl::StatusOr<std::vector<std::string>> Records() const;
  absl::StatusOr<std::vector<std::string>> Segments() const;
  absl::StatusOr<std::vector<std::string>> Names() const;

  // A regular file for reading. NotFound.
  absl::StatusOr<std::shared_ptr<const int>> OpenFile(
      const std::string& path) const;
  // All of a small file. NotFound; DataLoss: it is longer than any that is
  // written.
  absl::StatusOr<std::string> ReadFile(const std::string& path) const;
  // Whole or not at all, over what is there.
  absl::Status WriteFile(const std::string& path,
                         const std::string& text) const;
  // A manifest behind its SHA-256. DataLoss: they do not match. Unimplemented:
  // of another version.
  absl::StatusOr<StoredImageManifest> ReadManifest(
      const std::string& path) const;
  absl::Status WriteManifest(const StoredImageManifest& manifest,
                             const std::string& path) const;
  // That there is no such file is no error.
  absl::Status Unlink(const std::string& path) const;
  // Files of processes that were killed while they wrote. A process that writes
  // holds the lock, so that none is in use while the caller has it.
  void RemoveTemporaries() const;

  // The error of a system call.
  absl::Status Failed(int error, const std::string& what) const;
  // DataLoss: what is wrong with a file.
  absl::Status Damaged(const std::string& path, const std::string& what) const;

 private:
  std::string Path(const std::string& name) const;
  absl::StatusOr<std::vector<std::string>> FilesOf(
      const char* folder, const std::string& suffix) const;

  std::string path_;
  UniqueFd lock_fd_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_STORE_DIRECTORY_H_
