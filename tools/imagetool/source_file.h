// What an image is made of: a file, read as it is.
//
// Internal to this folder. Thread-compatible.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_SOURCE_FILE_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_SOURCE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace firsttouch::imagetool {

// What is behind the last slash of a path.
std::string FileName(const std::string& path);
// The rest, with the slash; empty: the working directory.
std::string FolderOf(const std::string& path);

// A regular file that is read from its start. Cut short while it is read, it is
// an error, not a crash.
class SourceFile {
 public:
  // Errors name the file.
  static absl::StatusOr<SourceFile> Open(const std::string& path);

  uint64_t bytes() const { return bytes_; }

  // Bytes of the file from an offset.
  absl::Status Read(uint64_t offset, std::span<std::byte> into) const;
  // ResourceExhausted: it has more than 4 GiB.
  absl::StatusOr<std::string> ReadAll() const;

 private:
  SourceFile(std::string path, std::shared_ptr<const int> fd, uint64_t bytes)
      : path_(std::move(path)), fd_(std::move(fd)), bytes_(bytes) {}

  std::string path_;
  std::shared_ptr<const int> fd_;
  uint64_t bytes_;
};

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_SOURCE_FILE_H_
