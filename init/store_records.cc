#include "firsttouch/init/store_records.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_manifest.pb.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/init/store_directory.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

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

// What the file of a record and the one of its working set both have.
void DecodeWorkingSet(const StoredImageManifest& manifest,
                      StoreRecord& record) {
  record.written = WordsOf(manifest.working_set_written());
  record.read = WordsOf(manifest.working_set_read());
}

StoredImageManifest EncodeWorkingSet(const StoreRecord& record) {
  StoredImageManifest manifest;
  manifest.set_format_version(StoreDirectory::kVersion);
  manifest.set_working_set_written(WordBytes(record.written));
  manifest.set_working_set_read(WordBytes(record.read));
  return manifest;
}

StoredImageManifest Encode(const StoreRecord& record) {
  StoredImageManifest manifest = EncodeWorkingSet(record);
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
  for (const StorePart& part : record.parts) {
    manifest.add_part_first_page(part.pages.first.value());
    manifest.add_part_pages(part.pages.length.value());
    manifest.add_part_segment(part.segment);
    manifest.add_part_source_page(part.source.value());
  }
  return manifest;
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

}  // namespace

uint64_t StoreRecord::stored_pages() const {
  uint64_t pages = 0;
  for (const StorePart& part : parts) pages += part.pages.length.value();
  return pages;
}

void StoreRecord::KeepWorkingSet(const Image& image) {
  written = image.working_set().written();
  read = image.working_set().read();
  working_set_changed = true;
}

StoreRecord* StoreRecords::Known(const Digest& content) {
  const auto known = records_.find(content);
  return known == records_.end() ? nullptr : &known->second;
}

absl::StatusOr<StoreRecord*> StoreRecords::Find(const Digest& content) {
  StoreRecord* const known = Known(content);
  const absl::Status not_found = absl::NotFoundError(absl::StrCat(
      directory_.prefix(), "there is no image with digest ", content.ToHex()));
  if (!directory_.on_disk()) {
    if (known == nullptr) return not_found;
    return known;
  }
  const std::string path = directory_.RecordPath(content);
  absl::StatusOr<StoredImageManifest> manifest = directory_.ReadManifest(path);
  if (absl::IsNotFound(manifest.status())) {
    records_.erase(content);
    return not_found;
  }
  if (!manifest.ok()) return manifest.status();
  absl::StatusOr<StoreRecord> record = Decode(*manifest, content, path);
  if (!record.ok()) return record.status();
  // A working set that cannot be read costs time, no contents.
  absl::StatusOr<StoredImageManifest> later =
      directory_.ReadManifest(directory_.WorkingSetPath(content));
  if (later.ok()) DecodeWorkingSet(*later, *record);
  if (known != nullptr) {
    record->live = known->live;
    if (known->working_set_changed) {
      record->written = known->written;
      record->read = known->read;
      record->working_set_changed = true;
    }
  }
  return &records_.insert_or_assign(content, *std::move(record)).first->second;
}

absl::StatusOr<StoreRecord> StoreRecords::Decode(
    const StoredImageManifest& manifest, const Digest& content,
    const std::string& path) const {
  StoreRecord record;
  record.content = content;
  record.name = manifest.name();
  record.size_bytes = manifest.size_bytes();
  DecodeWorkingSet(manifest, record);
  if (Digest::FromBytes(manifest.content_sha256()) != content) {
    return directory_.Damaged(path, "is of another image than its name says");
  }
  if (record.size_bytes > kMaxImageBytes) {
    return directory_.Damaged(
        path, absl::StrCat("size_bytes ", record.size_bytes, " exceeds ",
                           kMaxImageBytes));
  }
  const std::string_view segments = manifest.segment_sha256();
  if (segments.size() % Digest::kBytes != 0) {
    return directory_.Damaged(
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
    return directory_.Damaged(path, "its lists of parts differ in length");
  }
  const uint64_t limit = PagesRoundedUp(record.size_bytes).value();
  uint64_t past = 0;
  for (int i = 0; i < parts; ++i) {
    const uint64_t first = manifest.part_first_page(i);
    const uint64_t pages = manifest.part_pages(i);
    const uint64_t source = manifest.part_source_page(i);
    if (first < past || first > limit || pages == 0 || pages > limit - first ||
        manifest.part_segment(i) >= record.segments.size() ||
        source > PageMap::kMaxPages) {
      return directory_.Damaged(
          path, absl::StrCat("part ", i, ": page ", first, " + ", pages,
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

absl::StatusOr<StoreRecord*> StoreRecords::Enter(StoreRecord record) {
  const Digest content = record.content;
  if (directory_.on_disk()) {
    absl::Status status = directory_.WriteManifest(
        Encode(record), directory_.RecordPath(content));
    if (!status.ok()) return status;
  }
  return &records_.insert_or_assign(content, std::move(record)).first->second;
}

absl::StatusOr<std::vector<Digest>> StoreRecords::Remove(
    const Digest& content) {
  if (directory_.on_disk()) {
    for (const std::string& path :
         {directory_.RecordPath(content), directory_.WorkingSetPath(content)}) {
      absl::Status status = directory_.Unlink(path);
      if (!status.ok()) return status;
    }
  }
  std::vector<Digest> segments = std::move(records_.at(content).segments);
  records_.erase(content);
  return segments;
}

absl::Status StoreRecords::Load(std::set<std::string>& damaged) {
  if (!directory_.on_disk()) return absl::OkStatus();
  has_unknown_ = false;
  std::erase_if(records_, [this](const auto& entry) {
    return !Exists(directory_.RecordPath(entry.first));
  });
  absl::StatusOr<std::vector<std::string>> names = directory_.Records();
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    const std::optional<Digest> content = Digest::FromHex(name);
    if (!content.has_value()) continue;
    absl::StatusOr<StoreRecord*> record = Find(*content);
    if (record.ok()) continue;
    damaged.insert(directory_.RecordPath(*content));
    records_.erase(*content);
    if (!absl::IsDataLoss(record.status())) has_unknown_ = true;
  }
  return absl::OkStatus();
}

absl::Status StoreRecords::Flush() {
  if (!directory_.on_disk()) return absl::OkStatus();
  for (auto& [content, record] : records_) {
    if (!record.working_set_changed ||
        !Exists(directory_.RecordPath(content))) {
      continue;
    }
    absl::Status status = directory_.WriteManifest(
        EncodeWorkingSet(record), directory_.WorkingSetPath(content));
    if (!status.ok()) return status;
    record.working_set_changed = false;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const int>> StoreRecords::Hold(
    const StoreRecord& record) const {
  if (!directory_.on_disk()) return nullptr;
  const std::string path = directory_.RecordPath(record.content);
  absl::StatusOr<std::shared_ptr<const int>> fd = directory_.OpenFile(path);
  if (!fd.ok()) return fd.status();
  if (flock(**fd, LOCK_SH | LOCK_NB) != 0) {
    return directory_.Failed(errno, absl::StrCat("flock of '", path, "'"));
  }
  // Updates mtime for LRU eviction. Best effort: only the file's owner can.
  futimens(**fd, nullptr);
  return fd;
}

bool StoreRecords::InUse(const StoreRecord& record) const {
  if (!record.live.expired()) return true;
  if (!directory_.on_disk()) return false;
  const absl::StatusOr<std::shared_ptr<const int>> fd =
      directory_.OpenFile(directory_.RecordPath(record.content));
  return !fd.ok() || flock(**fd, LOCK_EX | LOCK_NB) != 0;
}

uint64_t StoreRecords::LastUse(const StoreRecord& record) const {
  if (!directory_.on_disk()) return record.last_use;
  struct stat status = {};
  const std::string path = directory_.RecordPath(record.content);
  if (stat(path.c_str(), &status) != 0) return 0;
  return static_cast<uint64_t>(status.st_mtim.tv_sec) * 1'000'000'000 +
         status.st_mtim.tv_nsec;
}

}  // namespace firsttouch
