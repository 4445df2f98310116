#include "firsttouch/init/image_digest.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

std::vector<PageRun> ExtentRuns(const PageMap& stored) {
  const uint64_t block = ExtentBlockPages(stored.pages());
  std::vector<PageRun> runs;
  for (auto run = stored.NextRun(PageIndex(0)); run.has_value();
       run = stored.NextRun(run->end())) {
    const uint64_t end = run->end().value();
    for (uint64_t first = run->first.value(); first < end;) {
      const uint64_t block_end = (first / block + 1) * block;
      const uint64_t pages = std::min(end, block_end) - first;
      runs.push_back({PageIndex(first), PageCount(pages)});
      first += pages;
    }
  }
  return runs;
}

namespace {

// The pages that have a byte other than zero, of an image whose source was not
// asked for that before.
absl::StatusOr<PageMap> NonZeroPages(const Image& image) {
  absl::StatusOr<PageMap> pages = PageMap::Create(image.pages());
  if (!pages.ok()) return pages;
  static constexpr std::byte kZeroPage[kPageBytes] = {};
  const PageMap& stored = image.stored();
  for (auto run = stored.NextRun(PageIndex(0)); run.has_value();
       run = stored.NextRun(run->end())) {
    for (PageIndex page = run->first; page < run->end(); ++page) {
      if (std::memcmp(image.PageBytes(page), kZeroPage, kPageBytes) != 0) {
        pages->Insert(page);
      }
    }
  }
  return pages;
}

}  // namespace

std::vector<ImageExtent> ImageExtents(const Image& image) {
  std::vector<ImageExtent> extents;
  absl::StatusOr<PageMap> non_zero = PageMap();
  if (image.has_source()) non_zero = NonZeroPages(image);
  for (const PageRun& run : ExtentRuns(
           image.has_source() && non_zero.ok() ? *non_zero : image.stored())) {
    extents.push_back(
        {run, Sha256Of(std::span(image.data() + run.first.offset_bytes(),
                                 run.length.bytes()))});
  }
  return extents;
}

Digest ContentDigest(uint64_t size_bytes,
                     std::span<const ImageExtent> extents) {
  // In larger pieces: an update costs more than the few bytes of an extent.
  constexpr size_t kPieceBytes = 4000;
  Sha256 sha;
  std::string bytes = "firsttouch-image-1\n";
  bytes.reserve(kPieceBytes + 100);
  const auto add_word = [&](uint64_t word) {
    for (int shift = 0; shift < 64; shift += 8) {
      bytes.push_back(static_cast<char>(word >> shift & 0xff));
    }
  };
  add_word(size_bytes);
  for (const ImageExtent& extent : extents) {
    add_word(extent.pages.first.value());
    add_word(extent.pages.length.value());
    bytes.append(reinterpret_cast<const char*>(extent.digest.bytes.data()),
                 Digest::kBytes);
    if (bytes.size() >= kPieceBytes) {
      sha.Update(bytes);
      bytes.clear();
    }
  }
  sha.Update(bytes);
  return sha.Finish();
}

Digest ContentDigest(const Image& image) {
  if (const std::optional<Digest> known = image.known_digest()) return *known;
  const std::vector<ImageExtent> extents = ImageExtents(image);
  const Digest digest = ContentDigest(image.size_bytes(), extents);
  image.NoteDigest(digest);
  return digest;
}

}  // namespace firsttouch
