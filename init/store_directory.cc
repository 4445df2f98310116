#include "firsttouch/init/store_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/atomic_file.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image_file_io.h"
#include "firsttouch/init/image_manifest.pb.h"
#include "firsttouch/init/memfd.h"

namespace firsttouch {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{1} << 28;
constexpr char kImageSuffix[] = ".ftref";
constexpr char kWorkingSetSuffix[] = ".ftws";
constexpr char kSegmentSuffix[] = ".ftimg";
constexpr char kTemporarySuffix[] = ".tmp";  // atomic_file.h

}  // namespace

FileLock::~FileLock() {
  if (fd_ >= 0) flock(fd_, LOCK_UN);
}

absl::Status StoreDirectory::Open() {
  if (!on_disk()) return absl::OkStatus();
  for (const std::string& folder :
       {path_, Path("segments"), Path("images"), Path("names")}) {
    if (mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) {
      return Failed(errno, absl::StrCat("mkdir of '", folder, "'"));
    }
  }
  lock_fd_.reset(
      open(Path("lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  if (lock_fd_.get() < 0) return Failed(errno, "opening its file 'lock'");
  return absl::OkStatus();
}

std::string StoreDirectory::prefix() const {
  return on_disk() ? absl::StrCat("image store '", path_, "': ")
                   : "image store: ";
}

absl::StatusOr<FileLock> StoreDirectory::Lock() const {
  if (!on_disk()) return FileLock();
  while (flock(lock_fd_.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return Failed(errno, "flock of its file 'lock'");
  }
  return FileLock(lock_fd_.get());
}

std::string StoreDirectory::Path(const std::string& name) const {
  return absl::StrCat(path_, "/", name);
}
std::string StoreDirectory::RecordPath(const Digest& content) const {
  return absl::StrCat(path_, "/images/", content.ToHex(), kImageSuffix);
}
std::string StoreDirectory::WorkingSetPath(const Digest& content) const {
  return absl::StrCat(path_, "/images/", content.ToHex(), kWorkingSetSuffix);
}
std::string StoreDirectory::SegmentPath(const Digest& segment) const {
  return absl::StrCat(path_, "/segments/", segment.ToHex(), kSegmentSuffix);
}
std::string StoreDirectory::NamePath(const std::string& name) const {
  return absl::StrCat(path_, "/names/", absl::BytesToHexString(name));
}

absl::StatusOr<std::vector<std::string>> StoreDirectory::Records() const {
  return FilesOf("images", kImageSuffix);
}
absl::StatusOr<std::vector<std::string>> StoreDirectory::Segments() const {
  return FilesOf("segments", kSegmentSuffix);
}
absl::StatusOr<std::vector<std::string>> StoreDirectory::Names() const {
  return FilesOf("names", "");
}

absl::StatusOr<std::vector<std::string>> StoreDirectory::FilesOf(
    const char* folder, const std::string& suffix) const {
  std::error_code error;
  std::vector<std::string> names;
  std::filesystem::directory_iterator entry(Path(folder), error);
  for (; !error && entry != std::filesystem::directory_iterator();
       entry.increment(error)) {
    std::string name = entry->path().filename().string();
    if (name[0] == '.' || name.size() < suffix.size() ||
        name.substr(name.size() - suffix.size()) != suffix) {
      continue;
    }
    names.push_back(name.substr(0, name.size() - suffix.size()));
  }
  if (error) return Failed(error.value(), absl::StrCat("reading ", folder));
  return names;
}

absl::StatusOr<std::shared_ptr<const int>> StoreDirectory::OpenFile(
    const std::string& path) const {
  return OpenRegularFile(path, absl::StrCat(prefix(), "file '", path, "': "));
}

absl::StatusOr<std::string> StoreDirectory::ReadFile(
    const std::string& path) const {
  absl::StatusOr<std::shared_ptr<const int>> fd = OpenFile(path);
  if (!fd.ok()) return fd.status();
  std::string text;
  std::vector<char> buffer(1 << 16);
  for (;;) {
    const MemfdResult read =
        RealMemfdCalls().Read(**fd, buffer.data(), buffer.size(), text.size());
    if (!read.ok()) {
      return Failed(read.error, absl::StrCat("reading '", path, "'"));
    }
    if (read.value == 0) return text;
    text.append(buffer.data(), read.value);
    if (text.size() > kMaxFileBytes) {
      return Damaged(path,
                     absl::StrCat("is longer than ", kMaxFileBytes, " bytes"));
    }
  }
}

absl::Status StoreDirectory::WriteFile(const std::string& path,
                                       const std::string& text) const {
  absl::StatusOr<AtomicFile> file =
      AtomicFile::Create(path, AtomicFile::Existing::kReplace);
  if (!file.ok()) return file.status();
  for (size_t done = 0; done < text.size();) {
    const MemfdResult written = RealMemfdCalls().Write(
        file->fd(), text.data() + done, text.size() - done, done);
    if (!written.ok()) {
      return Failed(written.error, absl::StrCat("writing '", path, "'"));
    }
    done += written.value;
  }
  return file->Commit(/*replace=*/true);
}

absl::StatusOr<StoredImageManifest> StoreDirectory::ReadManifest(
    const std::string& path) const {
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  StoredImageManifest manifest;
  const std::string bytes =
      text->size() < Digest::kBytes ? "" : text->substr(Digest::kBytes);
  const std::optional<Digest> told =
      Digest::FromBytes(text->substr(0, Digest::kBytes));
  if (!told.has_value() || *told != Sha256Of(bytes) ||
      !manifest.ParseFromString(bytes)) {
    return Damaged(path, "does not match its SHA-256; it was changed");
  }
  if (manifest.format_version() != kVersion) {
    return absl::UnimplementedError(absl::StrCat(
        prefix(), "file '", path, "': version ", manifest.format_version(),
        "; this build reads version ", kVersion));
  }
  return manifest;
}

absl::Status StoreDirectory::WriteManifest(const StoredImageManifest& manifest,
                                           const std::string& path) const {
  const std::string bytes = manifest.SerializeAsString();
  const Digest digest = Sha256Of(bytes);
  std::string text(reinterpret_cast<const char*>(digest.bytes.data()),
                   Digest::kBytes);
  text += bytes;
  return WriteFile(path, text);
}

absl::Status StoreDirectory::Unlink(const std::string& path) const {
  if (unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
  return Failed(errno, absl::StrCat("unlink of '", path, "'"));
}

void StoreDirectory::RemoveTemporaries() const {
  if (!on_disk()) return;
  for (const char* folder : {"segments", "images", "names"}) {
    std::error_code error;
    std::filesystem::directory_iterator entry(Path(folder), error);
    for (; !error && entry != std::filesystem::directory_iterator();
         entry.increment(error)) {
      const std::filesystem::path& path = entry->path();
      if (path.filename().string().front() == '.' &&
          path.extension() == kTemporarySuffix) {
        unlink(path.c_str());
      }
    }
  }
}

absl::Status StoreDirectory::Failed(int error, const std::string& what) const {
  return absl::ErrnoToStatus(error, absl::StrCat(prefix(), what, " failed"));
}

absl::Status StoreDirectory::Damaged(const std::string& path,
                                     const std::string& what) const {
  return absl::DataLossError(
      absl::StrCat(prefix(), "file '", path, "': ", what));
}

}  // namespace firsttouch
