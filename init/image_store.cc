#include "firsttouch/init/image_store.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/atomic_file.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_file_io.h"
#include "firsttouch/init/image_manifest.pb.h"
#include "firsttouch/init/image_pieces.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr size_t kMaxNameBytes = 80;  // As hexadecimal digits a file name.
constexpr uint64_t kMaxRecordBytes = uint64_t{1} << 28;
constexpr uint32_t kRecordVersion = 1;
constexpr char kImageSuffix[] = ".ftref";
constexpr char kWorkingSetSuffix[] = ".ftws";
constexpr char kSegmentSuffix[] = ".ftimg";
constexpr char kTemporarySuffix[] = ".tmp";  // atomic_file.h

uint64_t FirstOfSha256(std::span<const std::byte> page) {
  const Digest digest = Sha256Of(page);
  uint64_t hash;
  std::memcpy(&hash, digest.bytes.data(), sizeof hash);
  return hash;
}

std::span<const std::byte> BytesOf(const Image& image, PageIndex page) {
  return {image.PageBytes(page), kPageBytes};
}

std::string WordBytes(const WorkingSet::Words& words) {
  return {reinterpret_cast<const char*>(words.data()),
          words.size() * sizeof(uint64_t)};
}

WorkingSet::Words WordsOf(const std::string& bytes) {
  WorkingSet::Words words(bytes.size() / sizeof(uint64_t));
  // memcpy may not be given the null pointer of an empty vector.
  if (words.empty()) return words;
  std::memcpy(words.data(), bytes.data(), words.size() * sizeof(uint64_t));
  return words;
}

// Holds flock(2) on a descriptor.
class FileLock {
 public:
  FileLock() = default;
  explicit FileLock(int fd) : fd_(fd) {}
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock() {
    if (fd_ >= 0) flock(fd_, LOCK_UN);
  }

 private:
  int fd_ = -1;
};

// A stretch of an image's pages that lie together in a segment.
struct Part {
  PageRun pages;
  uint64_t segment = 0;  // In Record::segments.
  PageIndex source;
};

struct Record {
  Digest content;
  std::string name;  // That it was first put under.
  uint64_t size_bytes = 0;
  std::vector<Digest> segments;
  std::vector<Part> parts;
  WorkingSet::Words written;
  WorkingSet::Words read;
  bool working_set_changed = false;  // Since it was written to the directory.

  std::weak_ptr<const Image> live;
  uint64_t last_use = 0;  // In memory: counts uses.

  uint64_t stored_pages() const {
    uint64_t pages = 0;
    for (const Part& part : parts) pages += part.pages.length.value();
    return pages;
  }
};

struct Segment {
  ImageRef image;
  std::vector<uint64_t> hashes;  // Of its pages, once they are in the index.
};

struct Location {
  Digest segment;
  PageIndex page;
};

}  // namespace

class ImageStore::State : public std::enable_shared_from_this<State> {
 public:
  explicit State(const ImageStoreOptions& options)
      : directory_(options.directory),
        budget_bytes_(options.budget_bytes),
        page_hash_(options.page_hash == nullptr ? FirstOfSha256
                                                : options.page_hash) {}

  ~State() {
    if (lock_fd_ >= 0) close(lock_fd_);
  }

  absl::Status Open() {
    if (!on_disk()) return absl::OkStatus();
    for (const std::string& folder :
         {directory_, Path("segments"), Path("images"), Path("names")}) {
      if (mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) {
        return Failed(errno, absl::StrCat("mkdir of '", folder, "'"));
      }
    }
    lock_fd_ = open(Path("lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock_fd_ < 0) return Failed(errno, "opening its file 'lock'");
    return absl::OkStatus();
  }

  absl::StatusOr<ImageRef> Put(const std::string& name, const Image& image) {
    if (name.empty() || name.size() > kMaxNameBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(prefix(), "name '", name, "' has ", name.size(),
                       " bytes; it must have 1 to ", kMaxNameBytes));
    }
    // Not what the image says of itself: a file may claim any digest.
    const std::vector<ImageExtent> extents = ImageExtents(image);
    const Digest content = ContentDigest(image.size_bytes(), extents);
    std::vector<uint64_t> hashes;
    hashes.reserve(image.stored_pages());
    ForEachStoredPage(image, [&](PageIndex page) {
      hashes.push_back(page_hash_(BytesOf(image, page)));
    });

    ImageRef result;  // Destroyed after the lock is released, if at all.
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = LockDirectory();
    if (!file_lock.ok()) return file_lock.status();
    absl::StatusOr<Record*> record = Find(content);
    if (absl::IsNotFound(record.status()) ||
        absl::IsDataLoss(record.status())) {
      // A damaged record is written anew.
      record = Add(name, content, image, hashes);
    } else if (record.ok()) {
      pages_shared_ += image.stored_pages();
      if (image.working_set().known() && (*record)->written.empty() &&
          (*record)->read.empty()) {
        (*record)->written = image.working_set().written();
        (*record)->read = image.working_set().read();
        (*record)->working_set_changed = true;
      }
    }
    if (!record.ok()) return record.status();
    absl::StatusOr<ImageRef> stored = Materialize(**record);
    if (IsDamage(stored.status())) {
      // So are damaged segments: their pages are in no index.
      record = Add(name, content, image, hashes);
      if (!record.ok()) return record.status();
      stored = Materialize(**record);
    }
    if (!stored.ok()) return stored.status();
    result = *std::move(stored);
    if (absl::Status status = SetName(name, content); !status.ok()) {
      return status;
    }
    absl::StatusOr<uint64_t> freed = EvictTo(budget_bytes_);
    if (!freed.ok()) return freed.status();
    return result;
  }

  absl::StatusOr<ImageRef> Get(const std::string& name) {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = LockDirectory();
    if (!file_lock.ok()) return file_lock.status();
    absl::StatusOr<Digest> content = FindName(name);
    if (!content.ok()) return content.status();
    return GetLocked(*content);
  }

  absl::StatusOr<ImageRef> GetByDigest(const Digest& content) {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = LockDirectory();
    if (!file_lock.ok()) return file_lock.status();
    return GetLocked(content);
  }

  absl::Status Remove(const std::string& name) {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = LockDirectory();
    if (!file_lock.ok()) return file_lock.status();
    absl::StatusOr<Digest> content = FindName(name);
    if (!content.ok()) return content.status();
    return DropName(name);
  }

  absl::StatusOr<uint64_t> Trim(uint64_t budget_bytes) {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = LockDirectory();
    if (!file_lock.ok()) return file_lock.status();
    return EvictTo(budget_bytes);
  }

  absl::Status Flush() {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = LockDirectory();
    if (!file_lock.ok()) return file_lock.status();
    if (!on_disk()) return absl::OkStatus();
    for (auto& [content, record] : records_) {
      // Never the last reference: that would lock this mutex again.
      if (!record.working_set_changed || !Exists(RecordPath(content))) continue;
      StoredImageManifest manifest;
      manifest.set_format_version(kRecordVersion);
      manifest.set_working_set_written(WordBytes(record.written));
      manifest.set_working_set_read(WordBytes(record.read));
      absl::Status status = WriteManifest(manifest, WorkingSetPath(content));
      if (!status.ok()) return status;
      record.working_set_changed = false;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<ImageStoreEntry>> List() {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = LockDirectory();
    if (!file_lock.ok()) return file_lock.status();
    if (absl::Status status = LoadAll(); !status.ok()) return status;
    std::vector<ImageStoreEntry> entries;
    for (const auto& [content, record] : records_) {
      ImageStoreEntry entry;
      entry.content = content;
      for (const auto& [name, named] : names_) {
        if (named == content) entry.names.push_back(name);
      }
      entry.size_bytes = record.size_bytes;
      entry.stored_pages = record.stored_pages();
      entry.runs = record.parts.size();
      entry.in_use = InUse(record);
      entries.push_back(std::move(entry));
    }
    return entries;
  }

  absl::StatusOr<ImageStoreStats> Stats() {
    MutexLock lock(&mutex_);
    absl::StatusOr<FileLock> file_lock = LockDirectory();
    if (!file_lock.ok()) return file_lock.status();
    if (absl::Status status = LoadAll(); !status.ok()) return status;
    ImageStoreStats stats;
    stats.names = names_.size();
    for (const auto& [content, record] : records_) {
      ++stats.images;
      stats.images_in_use += static_cast<uint64_t>(InUse(record));
      stats.image_pages += record.stored_pages();
    }
    for (const auto& [digest, segment] : segments_) {
      ++stats.segments;
      stats.held_pages += segment.image->pages().value();
    }
    stats.held_bytes = PageCount(stats.held_pages).bytes();
    stats.pages_shared = pages_shared_;
    stats.hash_collisions = hash_collisions_;
    stats.images_evicted = images_evicted_;
    stats.damaged_files = damaged_.size();
    return stats;
  }

 private:
  bool on_disk() const { return !directory_.empty(); }

  std::string prefix() const {
    return on_disk() ? absl::StrCat("image store '", directory_, "': ")
                     : "image store: ";
  }
  std::string Path(const std::string& name) const {
    return absl::StrCat(directory_, "/", name);
  }
  std::string RecordPath(const Digest& content) const {
    return absl::StrCat(directory_, "/images/", content.ToHex(), kImageSuffix);
  }
  std::string WorkingSetPath(const Digest& content) const {
    return absl::StrCat(directory_, "/images/", content.ToHex(),
                        kWorkingSetSuffix);
  }
  std::string SegmentPath(const Digest& segment) const {
    return absl::StrCat(directory_, "/segments/", segment.ToHex(),
                        kSegmentSuffix);
  }
  std::string NamePath(const std::string& name) const {
    return absl::StrCat(directory_, "/names/", absl::BytesToHexString(name));
  }

  absl::Status Failed(int error, const std::string& what) const {
    return absl::ErrnoToStatus(error, absl::StrCat(prefix(), what, " failed"));
  }
  absl::Status Damaged(const std::string& path, const std::string& what) const {
    return absl::DataLossError(
        absl::StrCat(prefix(), "file '", path, "': ", what));
  }

  // Of a file: missing counts, since a record named it.
  static bool IsDamage(const absl::Status& status) {
    return absl::IsDataLoss(status) || absl::IsNotFound(status) ||
           absl::IsInvalidArgument(status);
  }

  static bool Exists(const std::string& path) {
    return access(path.c_str(), F_OK) == 0;
  }

  template <typename Visit>
  static void ForEachStoredPage(const Image& image, Visit visit) {
    for (auto run = image.stored().NextRun(PageIndex(0)); run.has_value();
         run = image.stored().NextRun(run->end())) {
      for (PageIndex page = run->first; page < run->end(); ++page) visit(page);
    }
  }

  // Keeps other processes, and other stores of the directory, out.
  absl::StatusOr<FileLock> LockDirectory()
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!on_disk()) return FileLock();
    while (flock(lock_fd_, LOCK_EX) != 0) {
      if (errno != EINTR) return Failed(errno, "flock of its file 'lock'");
    }
    return FileLock(lock_fd_);
  }

  // --- Small files of a directory ---

  absl::Status WriteFile(const std::string& path, const std::string& text) {
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

  absl::StatusOr<std::string> ReadFile(const std::string& path) const {
    absl::StatusOr<std::shared_ptr<const int>> fd =
        OpenRegularFile(path, absl::StrCat(prefix(), "file '", path, "': "));
    if (!fd.ok()) return fd.status();
    std::string text;
    std::vector<char> buffer(1 << 16);
    for (;;) {
      const MemfdResult read = RealMemfdCalls().Read(
          **fd, buffer.data(), buffer.size(), text.size());
      if (!read.ok()) {
        return Failed(read.error, absl::StrCat("reading '", path, "'"));
      }
      if (read.value == 0) return text;
      text.append(buffer.data(), read.value);
      if (text.size() > kMaxRecordBytes) {
        return Damaged(
            path, absl::StrCat("is longer than ", kMaxRecordBytes, " bytes"));
      }
    }
  }

  absl::Status WriteManifest(const StoredImageManifest& manifest,
                             const std::string& path) {
    const std::string bytes = manifest.SerializeAsString();
    const Digest digest = Sha256Of(bytes);
    std::string text(reinterpret_cast<const char*>(digest.bytes.data()),
                     Digest::kBytes);
    text += bytes;
    return WriteFile(path, text);
  }

  absl::StatusOr<StoredImageManifest> ReadManifest(
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
    if (manifest.format_version() != kRecordVersion) {
      return absl::UnimplementedError(absl::StrCat(
          prefix(), "file '", path, "': version ", manifest.format_version(),
          "; this build reads version ", kRecordVersion));
    }
    return manifest;
  }

  absl::Status Unlink(const std::string& path) {
    if (unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
    return Failed(errno, absl::StrCat("unlink of '", path, "'"));
  }

  // The files of a folder with that ending, without it; temporary ones are not
  // among them.
  absl::StatusOr<std::vector<std::string>> Names(
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

  // --- Records ---

  absl::StatusOr<Record*> Find(const Digest& content)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto known = records_.find(content);
    const absl::Status not_found = absl::NotFoundError(absl::StrCat(
        prefix(), "there is no image with digest ", content.ToHex()));
    if (!on_disk()) {
      if (known == records_.end()) return not_found;
      return &known->second;
    }
    // Read each time: another process may have removed it, and put it again as
    // other parts.
    const std::string path = RecordPath(content);
    absl::StatusOr<StoredImageManifest> manifest = ReadManifest(path);
    if (absl::IsNotFound(manifest.status())) {
      if (known != records_.end()) records_.erase(known);
      return not_found;
    }
    if (!manifest.ok()) return manifest.status();
    absl::StatusOr<Record> record = Decode(*manifest, content, path);
    if (!record.ok()) return record.status();
    // A working set that cannot be read costs time, no contents.
    absl::StatusOr<StoredImageManifest> later =
        ReadManifest(WorkingSetPath(content));
    if (later.ok()) {
      record->written = WordsOf(later->working_set_written());
      record->read = WordsOf(later->working_set_read());
    }
    if (known != records_.end()) {
      record->live = known->second.live;
      if (known->second.working_set_changed) {
        record->written = known->second.written;
        record->read = known->second.read;
        record->working_set_changed = true;
      }
    }
    return &records_.insert_or_assign(content, *std::move(record))
                .first->second;
  }

  absl::StatusOr<Record> Decode(const StoredImageManifest& manifest,
                                const Digest& content,
                                const std::string& path) const {
    Record record;
    record.content = content;
    record.name = manifest.name();
    record.size_bytes = manifest.size_bytes();
    record.written = WordsOf(manifest.working_set_written());
    record.read = WordsOf(manifest.working_set_read());
    if (Digest::FromBytes(manifest.content_sha256()) != content) {
      return Damaged(path, "is of another image than its name says");
    }
    if (record.size_bytes > kMaxImageBytes) {
      return Damaged(path, absl::StrCat("size_bytes ", record.size_bytes,
                                        " exceeds ", kMaxImageBytes));
    }
    const std::string_view segments = manifest.segment_sha256();
    if (segments.size() % Digest::kBytes != 0) {
      return Damaged(
          path, absl::StrCat("segment_sha256 has ", segments.size(), " bytes"));
    }
    for (size_t at = 0; at < segments.size(); at += Digest::kBytes) {
      record.segments.push_back(
          *Digest::FromBytes(segments.substr(at, Digest::kBytes)));
    }
    const int parts = manifest.part_first_page_size();
    if (manifest.part_pages_size() != parts ||
        manifest.part_segment_size() != parts ||
        manifest.part_source_page_size() != parts) {
      return Damaged(path, "its lists of parts differ in length");
    }
    const uint64_t limit = PagesRoundedUp(record.size_bytes).value();
    uint64_t past = 0;
    for (int i = 0; i < parts; ++i) {
      const uint64_t first = manifest.part_first_page(i);
      const uint64_t pages = manifest.part_pages(i);
      const uint64_t source = manifest.part_source_page(i);
      if (first < past || first > limit || pages == 0 ||
          pages > limit - first ||
          manifest.part_segment(i) >= record.segments.size() ||
          source > PageMap::kMaxPages) {
        return Damaged(path,
                       absl::StrCat("part ", i, ": page ", first, " + ", pages,
                                    " pages from page ", source, " of segment ",
                                    manifest.part_segment(i), " does not fit"));
      }
      past = first + pages;
      record.parts.push_back({{PageIndex(first), PageCount(pages)},
                              manifest.part_segment(i),
                              PageIndex(source)});
    }
    return record;
  }

  static StoredImageManifest Encode(const Record& record) {
    StoredImageManifest manifest;
    manifest.set_format_version(kRecordVersion);
    manifest.set_size_bytes(record.size_bytes);
    manifest.set_name(record.name);
    const auto raw = [](const Digest& digest) {
      return std::string(reinterpret_cast<const char*>(digest.bytes.data()),
                         Digest::kBytes);
    };
    manifest.set_content_sha256(raw(record.content));
    for (const Digest& segment : record.segments) {
      manifest.mutable_segment_sha256()->append(raw(segment));
    }
    for (const Part& part : record.parts) {
      manifest.add_part_first_page(part.pages.first.value());
      manifest.add_part_pages(part.pages.length.value());
      manifest.add_part_segment(part.segment);
      manifest.add_part_source_page(part.source.value());
    }
    manifest.set_working_set_written(WordBytes(record.written));
    manifest.set_working_set_read(WordBytes(record.read));
    return manifest;
  }

  // Splits a new image into pages that are there and a segment of those that
  // are not, and enters it.
  absl::StatusOr<Record*> Add(const std::string& name, const Digest& content,
                              const Image& image,
                              std::span<const uint64_t> hashes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (absl::Status status = IndexSegments(); !status.ok()) return status;
    Record record;
    record.content = content;
    record.name = name;
    record.size_bytes = image.size_bytes();
    record.written = image.working_set().written();
    record.read = image.working_set().read();

    // Until it is known, the new segment is the one with this number.
    constexpr uint64_t kNew = std::numeric_limits<uint64_t>::max();
    std::map<Digest, uint64_t> numbers;
    std::vector<PageIndex> new_pages;
    std::vector<uint64_t> new_hashes;
    absl::flat_hash_map<uint64_t, std::vector<uint64_t>> new_by_hash;
    uint64_t shared = 0;
    uint64_t collisions = 0;
    size_t next = 0;
    ForEachStoredPage(image, [&](PageIndex page) {
      mutex_.AssertHeld();  // For the compiler, which does not look outside.
      const uint64_t hash = hashes[next++];
      const auto bytes = BytesOf(image, page);
      uint64_t segment = kNew;
      PageIndex source;
      bool found = false;
      // Where the run before would go on, for as few runs as can be.
      const auto goes_on = [&](uint64_t number, PageIndex at) {
        return !record.parts.empty() && record.parts.back().segment == number &&
               record.parts.back().pages.end() == page &&
               record.parts.back().source + record.parts.back().pages.length ==
                   at;
      };
      if (const auto there = index_.find(hash); there != index_.end()) {
        for (const Location& location : there->second) {
          const Image& held = *segments_.at(location.segment).image;
          if (std::memcmp(held.PageBytes(location.page), bytes.data(),
                          kPageBytes) != 0) {
            ++collisions;
            continue;
          }
          const auto [entry, added] =
              numbers.try_emplace(location.segment, record.segments.size());
          if (added) record.segments.push_back(location.segment);
          if (!found || goes_on(entry->second, location.page)) {
            segment = entry->second;
            source = location.page;
          }
          found = true;
          if (goes_on(segment, source)) break;
        }
      }
      std::vector<uint64_t>& same_hash = new_by_hash[hash];
      for (size_t i = 0; !found && i < same_hash.size(); ++i) {
        if (std::memcmp(image.PageBytes(new_pages[same_hash[i]]), bytes.data(),
                        kPageBytes) != 0) {
          ++collisions;
          continue;
        }
        source = PageIndex(same_hash[i]);
        found = true;
      }
      if (found) {
        ++shared;
      } else {
        source = PageIndex(new_pages.size());
        same_hash.push_back(new_pages.size());
        new_pages.push_back(page);
        new_hashes.push_back(hash);
      }
      if (goes_on(segment, source)) {
        record.parts.back().pages.length += PageCount(1);
      } else {
        record.parts.push_back({{page, PageCount(1)}, segment, source});
      }
    });

    if (!new_pages.empty()) {
      absl::StatusOr<Digest> segment =
          AddSegment(name, image, new_pages, std::move(new_hashes));
      if (!segment.ok()) return segment.status();
      for (Part& part : record.parts) {
        if (part.segment == kNew) part.segment = record.segments.size();
      }
      record.segments.push_back(*segment);
    }
    if (on_disk()) {
      // The segment of an image that could not be entered goes with the next
      // eviction.
      absl::Status status = WriteManifest(Encode(record), RecordPath(content));
      if (!status.ok()) return status;
    }
    pages_shared_ += shared;
    hash_collisions_ += collisions;
    return &records_.insert_or_assign(content, std::move(record)).first->second;
  }

  // --- Segments ---

  absl::StatusOr<Digest> AddSegment(const std::string& name, const Image& image,
                                    std::span<const PageIndex> pages,
                                    std::vector<uint64_t> hashes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    absl::StatusOr<ImageRef> segment = ImageFromWriter(
        {.name = absl::StrCat("pages of ", name),
         .size_bytes = PageCount(pages.size()).bytes()},
        [&](ImagePut put) -> absl::Status {
          for (size_t first = 0; first < pages.size();) {
            size_t end = first + 1;
            while (end < pages.size() &&
                   pages[end] == pages[end - 1] + PageCount(1)) {
              ++end;
            }
            absl::Status status =
                put(PageIndex(first).offset_bytes(),
                    std::span(image.data() + pages[first].offset_bytes(),
                              PageCount(end - first).bytes()));
            if (!status.ok()) return status;
            first = end;
          }
          return absl::OkStatus();
        });
    if (!segment.ok()) return segment.status();
    const Digest digest = ContentDigest(**segment);
    if (on_disk()) {
      const std::string path = SegmentPath(digest);
      absl::StatusOr<ImageFileInfo> written =
          WriteImageFile(**segment, path, {.follow_links = false});
      if (!written.ok()) return written.status();
      segment = OpenImageFile(path);
      if (!segment.ok()) return segment.status();
    }
    Segment& held = segments_[digest];
    held.image = *std::move(segment);
    Index(digest, held, std::move(hashes));
    return digest;
  }

  void Index(const Digest& digest, Segment& segment,
             std::vector<uint64_t> hashes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (uint64_t page = 0; page < hashes.size(); ++page) {
      index_[hashes[page]].push_back({digest, PageIndex(page)});
    }
    segment.hashes = std::move(hashes);
  }

  void Forget(std::map<Digest, Segment>::iterator segment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (const uint64_t hash : segment->second.hashes) {
      const auto there = index_.find(hash);
      if (there == index_.end()) continue;
      std::erase_if(there->second, [&](const Location& location) {
        return location.segment == segment->first;
      });
      if (there->second.empty()) index_.erase(there);
    }
    segments_.erase(segment);
  }

  absl::StatusOr<Segment*> FindSegment(const Digest& digest)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto known = segments_.find(digest);
    if (known != segments_.end()) return &known->second;
    if (!on_disk()) {
      return absl::InternalError(
          absl::StrCat(prefix(), "segment ", digest.ToHex(), " is not there"));
    }
    absl::StatusOr<ImageRef> image = OpenImageFile(SegmentPath(digest));
    if (!image.ok()) return image.status();
    if ((*image)->known_digest() != digest) {
      return Damaged(SegmentPath(digest),
                     "is another segment than its name says");
    }
    Segment& segment = segments_[digest];
    segment.image = *std::move(image);
    return &segment;
  }

  // Of a directory: opens what is there and lets go of what is not.
  absl::Status LoadSegments() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!on_disk()) return absl::OkStatus();
    for (auto segment = segments_.begin(); segment != segments_.end();) {
      const auto here = segment++;
      if (!Exists(SegmentPath(here->first))) Forget(here);
    }
    absl::StatusOr<std::vector<std::string>> names =
        Names("segments", kSegmentSuffix);
    if (!names.ok()) return names.status();
    for (const std::string& name : *names) {
      const std::optional<Digest> digest = Digest::FromHex(name);
      if (!digest.has_value()) continue;
      absl::StatusOr<Segment*> segment = FindSegment(*digest);
      if (!segment.ok()) damaged_.insert(SegmentPath(*digest));
    }
    return absl::OkStatus();
  }

  absl::Status IndexSegments() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (absl::Status status = LoadSegments(); !status.ok()) return status;
    for (auto& [digest, segment] : segments_) {
      if (!segment.hashes.empty()) continue;
      const Image& image = *segment.image;
      std::vector<uint64_t> hashes;
      ForEachStoredPage(image, [&](PageIndex page) {
        hashes.push_back(page_hash_(BytesOf(image, page)));
      });
      // All pages of a segment are stored, or it is none of ours.
      if (hashes.size() == image.pages().value()) {
        Index(digest, segment, std::move(hashes));
      }
    }
    return absl::OkStatus();
  }

  // Everything that the directory has. A file that cannot be read concerns
  // those who ask for its image, and nobody else: it is counted.
  absl::Status LoadAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!on_disk()) return absl::OkStatus();
    damaged_.clear();
    unknown_records_ = false;
    if (absl::Status status = LoadSegments(); !status.ok()) return status;
    for (auto record = records_.begin(); record != records_.end();) {
      const auto here = record++;
      if (!Exists(RecordPath(here->first))) records_.erase(here);
    }
    absl::StatusOr<std::vector<std::string>> images =
        Names("images", kImageSuffix);
    if (!images.ok()) return images.status();
    for (const std::string& image : *images) {
      const std::optional<Digest> content = Digest::FromHex(image);
      if (!content.has_value()) continue;
      absl::StatusOr<Record*> record = Find(*content);
      if (record.ok()) continue;
      damaged_.insert(RecordPath(*content));
      records_.erase(*content);
      // Of a newer build, or of another user: its segments are in use.
      if (!absl::IsDataLoss(record.status())) unknown_records_ = true;
    }
    absl::StatusOr<std::vector<std::string>> names = Names("names", "");
    if (!names.ok()) return names.status();
    names_.clear();
    for (const std::string& hex : *names) {
      const std::string name = absl::HexStringToBytes(hex);
      absl::StatusOr<Digest> content = FindName(name);
      if (content.ok()) {
        names_[name] = *content;
      } else {
        damaged_.insert(NamePath(name));
      }
    }
    return absl::OkStatus();
  }

  // --- Names ---

  absl::StatusOr<Digest> FindName(const std::string& name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (on_disk() && !name.empty() && name.size() <= kMaxNameBytes) {
      const std::string path = NamePath(name);
      absl::StatusOr<std::string> text = ReadFile(path);
      if (text.ok()) {
        const std::optional<Digest> content = Digest::FromHex(*text);
        if (content.has_value()) return *content;
        return Damaged(path, "holds no digest");
      }
      if (!absl::IsNotFound(text.status())) return text.status();
    } else if (!on_disk()) {
      const auto known = names_.find(name);
      if (known != names_.end()) return known->second;
    }
    return absl::NotFoundError(
        absl::StrCat(prefix(), "there is no image named '", name, "'"));
  }

  absl::Status SetName(const std::string& name, const Digest& content)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (on_disk()) {
      absl::Status status = WriteFile(NamePath(name), content.ToHex());
      if (!status.ok()) return status;
    }
    names_[name] = content;
    return absl::OkStatus();
  }

  absl::Status DropName(const std::string& name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (on_disk()) {
      absl::Status status = Unlink(NamePath(name));
      if (!status.ok()) return status;
    }
    names_.erase(name);
    return absl::OkStatus();
  }

  // --- Use and eviction ---

  absl::StatusOr<ImageRef> GetLocked(const Digest& content)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    absl::StatusOr<Record*> record = Find(content);
    if (!record.ok()) return record.status();
    return Materialize(**record);
  }

  absl::StatusOr<ImageRef> Materialize(Record& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    record.last_use = ++uses_;
    if (ImageRef live = record.live.lock(); live != nullptr) return live;
    std::shared_ptr<const int> in_use;
    if (on_disk()) {
      const std::string path = RecordPath(record.content);
      absl::StatusOr<std::shared_ptr<const int>> fd =
          OpenRegularFile(path, absl::StrCat(prefix(), "file '", path, "': "));
      if (!fd.ok()) return fd.status();
      in_use = *std::move(fd);
      if (flock(*in_use, LOCK_SH | LOCK_NB) != 0) {
        return Failed(errno, absl::StrCat("flock of '", path, "'"));
      }
      // Updates mtime for LRU eviction. Best effort: only the file's owner can.
      futimens(*in_use, nullptr);
    }
    std::vector<ImagePiece> pieces;
    std::vector<PageRun> stored;
    for (const Part& part : record.parts) {
      const Digest& digest = record.segments[part.segment];
      absl::StatusOr<Segment*> segment = FindSegment(digest);
      if (!segment.ok()) return segment.status();
      const ImageRef& pages = (*segment)->image;
      if (part.source > PageIndex(0) + pages->pages() ||
          part.pages.length > PageIndex(0) + pages->pages() - part.source) {
        return absl::DataLossError(absl::StrCat(
            prefix(), "image ", record.content.ToHex(), " wants pages [",
            part.source.value(), ", ",
            (part.source + part.pages.length).value(), ") of segment ",
            digest.ToHex(), ", which has ", pages->pages().value()));
      }
      AppendPieces(pages, {part.source, part.pages.length}, part.pages.first,
                   pieces);
      stored.push_back(part.pages);
    }
    absl::StatusOr<ImageRef> image =
        ImageFromPieces({.name = record.name, .size_bytes = record.size_bytes},
                        std::move(pieces), stored);
    if (!image.ok()) return image.status();
    (*image)->NoteDigest(record.content);
    (*image)->working_set().Replace(record.written, record.read);
    const Image* const raw = image->get();
    ImageRef handed_out(
        raw, [inner = *std::move(image), in_use = std::move(in_use),
              version = raw->working_set().version(), content = record.content,
              state = std::weak_ptr<State>(shared_from_this())](
                 const Image* dropped) mutable {
          const std::shared_ptr<State> alive = state.lock();
          if (alive != nullptr && dropped->working_set().version() != version) {
            alive->KeepWorkingSet(content, *dropped);
          }
          // Here, since what a deleter holds lives as long as a weak_ptr does.
          inner.reset();
          in_use.reset();
        });
    record.live = handed_out;
    return handed_out;
  }

  void KeepWorkingSet(const Digest& content, const Image& image) {
    MutexLock lock(&mutex_);
    const auto record = records_.find(content);
    if (record == records_.end()) return;
    record->second.written = image.working_set().written();
    record->second.read = image.working_set().read();
    record->second.working_set_changed = true;
  }

  bool InUse(const Record& record) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!record.live.expired()) return true;
    if (!on_disk()) return false;
    const std::string path = RecordPath(record.content);
    const absl::StatusOr<std::shared_ptr<const int>> fd =
        OpenRegularFile(path, "");
    // What cannot be asked stays.
    return !fd.ok() || flock(**fd, LOCK_EX | LOCK_NB) != 0;
  }

  uint64_t LastUse(const Record& record) const {
    if (!on_disk()) return record.last_use;
    struct stat status = {};
    if (stat(RecordPath(record.content).c_str(), &status) != 0) return 0;
    return static_cast<uint64_t>(status.st_mtim.tv_sec) * 1'000'000'000 +
           status.st_mtim.tv_nsec;
  }

  // Files of processes that were killed while they wrote. A process that writes
  // holds the directory's lock, so that none is in use now.
  void RemoveTemporaries() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
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

  absl::StatusOr<uint64_t> EvictTo(uint64_t budget_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (absl::Status status = LoadAll(); !status.ok()) return status;
    RemoveTemporaries();
    // What an image that cannot be read needs is not known.
    if (unknown_records_) return 0;
    std::map<Digest, uint64_t> references;
    for (const auto& [content, record] : records_) {
      for (const Digest& segment : record.segments) ++references[segment];
    }
    uint64_t held = 0;
    uint64_t freed = 0;
    for (const auto& [digest, segment] : segments_) {
      held += segment.image->pages().bytes();
    }
    const auto drop = [&](const Digest& digest) -> absl::Status {
      mutex_.AssertHeld();
      const auto segment = segments_.find(digest);
      if (segment == segments_.end()) return absl::OkStatus();
      if (on_disk()) {
        absl::Status status = Unlink(SegmentPath(digest));
        if (!status.ok()) return status;
      }
      const uint64_t bytes = segment->second.image->pages().bytes();
      held -= bytes;
      freed += bytes;
      Forget(segment);
      return absl::OkStatus();
    };
    // What a process left behind that died.
    std::vector<Digest> orphans;
    for (const auto& [digest, segment] : segments_) {
      if (!references.contains(digest)) orphans.push_back(digest);
    }
    for (const Digest& orphan : orphans) {
      if (absl::Status status = drop(orphan); !status.ok()) return status;
    }
    if (held <= budget_bytes) return freed;

    std::set<Digest> named;
    for (const auto& [name, content] : names_) named.insert(content);
    std::vector<std::tuple<bool, uint64_t, Digest>> idle;
    for (const auto& [content, record] : records_) {
      if (!InUse(record)) {
        idle.emplace_back(named.contains(content), LastUse(record), content);
      }
    }
    std::sort(idle.begin(), idle.end());
    for (const auto& [is_named, last_use, content] : idle) {
      if (held <= budget_bytes) break;
      if (on_disk()) {
        for (const std::string& path :
             {RecordPath(content), WorkingSetPath(content)}) {
          if (absl::Status status = Unlink(path); !status.ok()) return status;
        }
      }
      std::vector<std::string> names;
      for (const auto& [name, of] : names_) {
        if (of == content) names.push_back(name);
      }
      for (const std::string& name : names) {
        if (absl::Status status = DropName(name); !status.ok()) return status;
      }
      const auto record = records_.find(content);
      const std::vector<Digest> segments = record->second.segments;
      records_.erase(record);
      ++images_evicted_;
      for (const Digest& segment : segments) {
        if (--references[segment] > 0) continue;
        if (absl::Status status = drop(segment); !status.ok()) return status;
      }
    }
    return freed;
  }

  const std::string directory_;
  const uint64_t budget_bytes_;
  uint64_t (*const page_hash_)(std::span<const std::byte>);
  int lock_fd_ = -1;

  Mutex mutex_;
  // Of a directory, what has been read of it so far; the files are what counts.
  std::map<Digest, Record> records_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Digest> names_ ABSL_GUARDED_BY(mutex_);
  std::map<Digest, Segment> segments_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::vector<Location>> index_
      ABSL_GUARDED_BY(mutex_);
  uint64_t uses_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t pages_shared_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t hash_collisions_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t images_evicted_ ABSL_GUARDED_BY(mutex_) = 0;
  // As LoadAll found them: files that cannot be read, and whether a record that
  // is not damaged is among them.
  std::set<std::string> damaged_ ABSL_GUARDED_BY(mutex_);
  bool unknown_records_ ABSL_GUARDED_BY(mutex_) = false;
};

ImageStore::ImageStore(std::shared_ptr<State> state)
    : state_(std::move(state)) {}
ImageStore::~ImageStore() = default;

absl::StatusOr<std::unique_ptr<ImageStore>> ImageStore::Open(
    const ImageStoreOptions& options) {
  auto state = std::make_shared<State>(options);
  if (absl::Status status = state->Open(); !status.ok()) return status;
  return std::unique_ptr<ImageStore>(new ImageStore(std::move(state)));
}

namespace {

// Those of the pages that have the same bytes in both images.
WorkingSet::Words StillApplies(WorkingSet::Words pages, const Image& before,
                               const Image& now) {
  constexpr uint64_t kPagesPerWord = PageMap::kPagesPerWord;
  for (uint64_t index = 0; index < pages.size(); ++index) {
    for (uint64_t left = pages[index]; left != 0; left &= left - 1) {
      const uint64_t bit = std::countr_zero(left);
      const PageIndex page(index * kPagesPerWord + bit);
      if (std::memcmp(before.PageBytes(page), now.PageBytes(page),
                      kPageBytes) != 0) {
        pages[index] &= ~(uint64_t{1} << bit);
      }
    }
  }
  return pages;
}

}  // namespace

absl::StatusOr<ImageRef> ImageStore::Put(const std::string& name,
                                         const Image& image) {
  if (image.has_source()) {
    absl::StatusOr<ImageRef> built = BuiltCopy(image);
    if (!built.ok()) return built.status();
    return Put(name, **built);
  }
  // Before the name is the new image's, and the old one may leave.
  WorkingSet::Words written;
  WorkingSet::Words read;
  if (!image.working_set().known()) {
    const absl::StatusOr<ImageRef> before = state_->Get(name);
    if (before.ok()) {
      const WorkingSet& set = (*before)->working_set();
      written = StillApplies(set.written(), **before, image);
      read = StillApplies(set.read(), **before, image);
    }
  }
  absl::StatusOr<ImageRef> put = state_->Put(name, image);
  if (put.ok() && !(*put)->working_set().known() &&
      !(written.empty() && read.empty())) {
    (*put)->working_set().Replace(written, read);
  }
  return put;
}
absl::StatusOr<ImageRef> ImageStore::Get(const std::string& name) {
  return state_->Get(name);
}
absl::StatusOr<ImageRef> ImageStore::GetByDigest(const Digest& content) {
  return state_->GetByDigest(content);
}
absl::Status ImageStore::Remove(const std::string& name) {
  return state_->Remove(name);
}
absl::StatusOr<uint64_t> ImageStore::Trim(uint64_t budget_bytes) {
  return state_->Trim(budget_bytes);
}
absl::Status ImageStore::Flush() { return state_->Flush(); }
absl::StatusOr<std::vector<ImageStoreEntry>> ImageStore::List() {
  return state_->List();
}
absl::StatusOr<ImageStoreStats> ImageStore::Stats() { return state_->Stats(); }

}  // namespace firsttouch
