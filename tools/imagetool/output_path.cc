#include "firsttouch/tools/imagetool/output_path.h"

#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <string>
#include <system_error>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/atomic_file.h"

namespace firsttouch::imagetool {

std::string PackedName(const std::string& path) {
  return absl::StrCat(path, ".zst");
}

absl::StatusOr<std::string> UnpackedName(const std::string& packed) {
  if (!absl::EndsWith(packed, ".zst")) {
    return absl::FailedPreconditionError(
        absl::StrCat("'", packed,
                     "' does not end in .zst: name the file that "
                     "it is to become as a second argument"));
  }
  return packed.substr(0, packed.size() - 4);
}

std::string OutputPath(const std::string& path) {
  return path == "-" ? "/dev/stdout" : path;
}

bool SameOutput(const std::string& a, const std::string& b) {
  // Where links lead; the file need not be there.
  const auto place = [](const std::string& path) {
    std::error_code unused;
    return std::filesystem::weakly_canonical(
        std::filesystem::absolute(OutputPath(path), unused), unused);
  };
  if (a.empty() || b.empty()) return false;
  // What cannot be resolved is nowhere.
  return a == b || (!place(a).empty() && place(a) == place(b));
}

absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  absl::StatusOr<AtomicFile> file = AtomicFile::Create(OutputPath(path));
  if (!file.ok()) return file.status();
  for (size_t done = 0; done < text.size();) {
    const ssize_t wrote =
        write(file->fd(), text.data() + done, text.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return absl::ErrnoToStatus(errno, path);
    done += static_cast<size_t>(wrote);
  }
  return file->Commit(/*replace=*/true);
}

}  // namespace firsttouch::imagetool
