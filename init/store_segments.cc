#include "firsttouch/init/store_segments.h"

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/store_directory.h"
#include "firsttouch/init/store_records.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

template <typename Visit>
void ForEachStoredPage(const Image& image, Visit visit) {
  for (auto run = image.stored().NextRun(PageIndex(0)); run.has_value();
       run = image.stored().NextRun(run->end())) {
    for (PageIndex page = run->first; page < run->end(); ++page) visit(page);
  }
}

}  // namespace

uint64_t FirstOfSha256(std::span<const std::byte> page) {
  const Digest digest = Sha256Of(page);
  uint64_t hash;
  std::memcpy(&hash, digest.bytes.data(), sizeof hash);
  return hash;
}

std::vector<uint64_t> PageHashes(const Image& image, PageHash hash) {
  std::vector<uint64_t> hashes;
  hashes.reserve(image.stored_pages());
  ForEachStoredPage(image, [&](PageIndex page) {
    hashes.push_back(hash({image.PageBytes(page), kPageBytes}));
  });
  return hashes;
}

absl::StatusOr<StoreSegments::Placed> StoreSegments::Place(
    const std::string& name, const Image& image,
    std::span<const uint64_t> hashes) {
  IndexAll();
  // Until it is known, the new segment is the one with this number.
  constexpr uint64_t kNew = std::numeric_limits<uint64_t>::max();
  Placed placed;
  std::vector<StorePart>& parts = placed.parts;
  std::map<Digest, uint64_t> numbers;
  std::vector<PageIndex> new_pages;
  std::vector<uint64_t> new_hashes;
  absl::flat_hash_map<uint64_t, std::vector<uint64_t>> new_by_hash;
  size_t next = 0;
  ForEachStoredPage(image, [&](PageIndex page) {
    const uint64_t hash = hashes[next++];
    const auto is_same = [&](const std::byte* other) {
      if (std::memcmp(other, image.PageBytes(page), kPageBytes) == 0) {
        return true;
      }
      ++placed.collisions;
      return false;
    };
    // Where the run before would go on, for as few runs as can be.
    const auto goes_on = [&](uint64_t number, PageIndex at) {
      return !parts.empty() && parts.back().segment == number &&
             parts.back().pages.end() == page &&
             parts.back().source + parts.back().pages.length == at;
    };
    uint64_t segment = kNew;
    PageIndex source;
    bool found = false;
    if (const auto there = index_.find(hash); there != index_.end()) {
      for (const Location& location : there->second) {
        const Image& held = *segments_.at(location.segment).image;
        if (!is_same(held.PageBytes(location.page))) continue;
        const auto [entry, added] =
            numbers.try_emplace(location.segment, placed.segments.size());
        if (added) placed.segments.push_back(location.segment);
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
      if (!is_same(image.PageBytes(new_pages[same_hash[i]]))) continue;
      source = PageIndex(same_hash[i]);
      found = true;
    }
    if (found) {
      ++placed.shared;
    } else {
      source = PageIndex(new_pages.size());
      same_hash.push_back(new_pages.size());
      new_pages.push_back(page);
      new_hashes.push_back(hash);
    }
    if (goes_on(segment, source)) {
      parts.back().pages.length += PageCount(1);
    } else {
      parts.push_back({{page, PageCount(1)}, segment, source});
    }
  });
  if (new_pages.empty()) return placed;

  absl::StatusOr<Digest> segment =
      Add(name, image, new_pages, std::move(new_hashes));
  if (!segment.ok()) return segment.status();
  for (StorePart& part : parts) {
    if (part.segment == kNew) part.segment = placed.segments.size();
  }
  placed.segments.push_back(*segment);
  return placed;
}

absl::StatusOr<Digest> StoreSegments::Add(const std::string& name,
                                          const Image& image,
                                          std::span<const PageIndex> pages,
                                          std::vector<uint64_t> hashes) {
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
  if (directory_.on_disk()) {
    const std::string path = directory_.SegmentPath(digest);
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

void StoreSegments::IndexAll() {
  for (auto& [digest, segment] : segments_) {
    if (!segment.hashes.empty()) continue;
    std::vector<uint64_t> hashes = PageHashes(*segment.image, page_hash_);
    // All pages of a segment are stored, or it is none of ours.
    if (hashes.size() == segment.image->pages().value()) {
      Index(digest, segment, std::move(hashes));
    }
  }
}

void StoreSegments::Index(const Digest& digest, Segment& segment,
                          std::vector<uint64_t> hashes) {
  for (uint64_t page = 0; page < hashes.size(); ++page) {
    index_[hashes[page]].push_back({digest, PageIndex(page)});
  }
  segment.hashes = std::move(hashes);
}

void StoreSegments::Forget(Segments::iterator segment) {
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

absl::StatusOr<ImageRef> StoreSegments::Find(const Digest& digest) {
  const auto known = segments_.find(digest);
  if (known != segments_.end()) return known->second.image;
  if (!directory_.on_disk()) {
    return absl::InternalError(absl::StrCat(directory_.prefix(), "segment ",
                                            digest.ToHex(), " is not there"));
  }
  const std::string path = directory_.SegmentPath(digest);
  absl::StatusOr<ImageRef> image = OpenImageFile(path);
  if (!image.ok()) return image.status();
  if ((*image)->known_digest() != digest) {
    return directory_.Damaged(path, "is another segment than its name says");
  }
  segments_[digest].image = *image;
  return image;
}

absl::Status StoreSegments::Load(std::set<std::string>& damaged) {
  if (!directory_.on_disk()) return absl::OkStatus();
  for (const Digest& digest : Digests()) {
    const std::string path = directory_.SegmentPath(digest);
    if (access(path.c_str(), F_OK) != 0) Forget(segments_.find(digest));
  }
  absl::StatusOr<std::vector<std::string>> names = directory_.Segments();
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    const std::optional<Digest> digest = Digest::FromHex(name);
    if (!digest.has_value() || Find(*digest).ok()) continue;
    damaged.insert(directory_.SegmentPath(*digest));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> StoreSegments::Drop(const Digest& digest) {
  const auto segment = segments_.find(digest);
  if (segment == segments_.end()) return 0;
  if (directory_.on_disk()) {
    absl::Status status = directory_.Unlink(directory_.SegmentPath(digest));
    if (!status.ok()) return status;
  }
  const uint64_t bytes = segment->second.image->pages().bytes();
  Forget(segment);
  return bytes;
}

std::vector<Digest> StoreSegments::Digests() const {
  std::vector<Digest> digests;
  digests.reserve(segments_.size());
  for (const auto& [digest, segment] : segments_) digests.push_back(digest);
  return digests;
}

uint64_t StoreSegments::held_pages() const {
  uint64_t pages = 0;
  for (const auto& [digest, segment] : segments_) {
    pages += segment.image->pages().value();
  }
  return pages;
}

}  // namespace firsttouch
