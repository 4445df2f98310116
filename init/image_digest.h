// The digest by which images are told apart by what they hold.
//
// It depends on the size and the bytes of the memory only: not on a name, a
// working set, or how a file stores it. Two images with the same digest are the
// same memory.
//
//   const Digest digest = ContentDigest(*image);
//   digest.ToHex();                            // "5f1e...", 64 digits
//
// Threads: any. Not async-signal-safe.

#ifndef FIRSTTOUCH_INIT_IMAGE_DIGEST_H_
#define FIRSTTOUCH_INIT_IMAGE_DIGEST_H_

#include <cstdint>
#include <span>
#include <vector>

#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// A stretch of stored pages that has a digest of its own: a maximal run of
// stored pages that does not cross a multiple of ExtentBlockPages. So the
// extents follow from the size and from which pages are stored, and each can be
// checked alone.
struct ImageExtent {
  PageRun pages;
  Digest digest;  // Of the bytes of its pages.

  friend bool operator==(const ImageExtent&, const ImageExtent&) = default;
};

// The smallest block that extents do not cross, in pages: 1 MiB.
inline constexpr uint64_t kMinExtentBlockPages = 256;

// How many blocks a memory has at most. A digest for each block is what a
// reader has to check before it can trust a file whose pages are all stored: so
// that does not grow with the memory.
inline constexpr uint64_t kMaxExtentBlocks = 64;

// Pages of the blocks that the extents of a memory of so many pages do not
// cross: the least power of two that is no less than kMinExtentBlockPages and
// makes no more than kMaxExtentBlocks blocks of the memory.
constexpr uint64_t ExtentBlockPages(PageCount pages) {
  uint64_t block = kMinExtentBlockPages;
  while (pages.value() > block * kMaxExtentBlocks) block *= 2;
  return block;
}

// The runs of a set of pages of a memory of stored.pages() pages, cut at
// multiples of ExtentBlockPages, ascending.
std::vector<PageRun> ExtentRuns(const PageMap& stored);

// The extents of an image with their digests: reads every stored page.
std::vector<ImageExtent> ImageExtents(const Image& image);

// The digest of the contents: SHA-256 over the text "firsttouch-image-1\n",
// size_bytes, and for each extent its first page, its number of pages (eight
// bytes each, least significant first) and its digest.
Digest ContentDigest(uint64_t size_bytes, std::span<const ImageExtent> extents);

// The same of an image. Reads every stored page, unless the image knows its
// digest (it came from a file or a store).
Digest ContentDigest(const Image& image);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_DIGEST_H_
