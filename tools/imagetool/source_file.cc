#include "firsttouch/tools/imagetool/source_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_file_io.h"

namespace firsttouch::imagetool {
namespace {

// Of a module, a list, or a file that a list names: what is read at once.
constexpr uint64_t kMaxSourceBytes = uint64_t{4} << 30;

}  // namespace

std::string FileName(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

std::string FolderOf(const std::string& path) {
  return path.substr(0, path.size() - FileName(path).size());
}

absl::StatusOr<SourceFile> SourceFile::Open(const std::string& path) {
  absl::StatusOr<std::shared_ptr<const int>> fd =
      OpenRegularFile(path, absl::StrCat("'", path, "': "));
  if (!fd.ok()) return fd.status();
  struct stat stat_of;
  if (fstat(**fd, &stat_of) != 0) return absl::ErrnoToStatus(errno, path);
  return SourceFile(path, *std::move(fd),
                    static_cast<uint64_t>(stat_of.st_size));
}

absl::Status SourceFile::Read(uint64_t offset,
                              std::span<std::byte> into) const {
  while (!into.empty()) {
    const ssize_t got =
        pread(*fd_, into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, path_);
    if (got == 0) {
      return absl::DataLossError(absl::StrCat(
          "'", path_, "' ends at ", offset, " and had ", bytes_,
          " bytes: somebody cuts it short meanwhile; run this again"));
    }
    offset += static_cast<uint64_t>(got);
    into = into.subspan(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> SourceFile::ReadAll() const {
  if (bytes_ > kMaxSourceBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("'", path_, "' has ", bytes_, " bytes; at most ",
                     kMaxSourceBytes, " are read of a file of this kind"));
  }
  std::string text(bytes_, '\0');
  absl::Status read = Read(0, std::as_writable_bytes(std::span(text)));
  if (!read.ok()) return read;
  return text;
}

}  // namespace firsttouch::imagetool
