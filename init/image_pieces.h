// Mapped images: made of pages that are in files or in other images, without
// copying any.
//
// For image_file.h and image_store.h, which say what to make of what; few
// others need this.
//
//   std::vector<ImagePiece> pieces;
//   AppendPieces(base, {PageIndex(0), PageCount(100)}, PageIndex(0), pieces);
//   AppendPieces(other, {PageIndex(7), PageCount(1)}, PageIndex(100), pieces);
//   absl::StatusOr<ImageRef> image = ImageFromPieces(
//       {.name = "joined", .size_bytes = 101 * kPageBytes}, pieces, {});
//
// Threads: any. Not async-signal-safe.

#ifndef FIRSTTOUCH_INIT_IMAGE_PIECES_H_
#define FIRSTTOUCH_INIT_IMAGE_PIECES_H_

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_on_demand.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

// Pieces that an image may have. Each is a mapping, and a process has 65530
// (vm.max_map_count). With more, the pages are copied into a built image.
inline constexpr size_t kMaxImagePieces = 4096;

// How pages of `image` are backed, as pieces of another image in which they
// begin at page `at`. The image lives at least as long as the pieces. Joins the
// last piece where it goes on there.
void AppendPieces(const ImageRef& image, PageRun pages, PageIndex at,
                  std::vector<ImagePiece>& pieces);

// An image of these pieces: in ascending order, each within size_bytes rounded
// up to pages. `stored` has the pages that are not zero, all of them in pieces;
// an empty vector stands for all pages of all pieces. Nothing is read.
//
// Errors: as of the builders.
absl::StatusOr<ImageRef> ImageFromPieces(const ImageOptions& options,
                                         std::vector<ImagePiece> pieces,
                                         std::span<const PageRun> stored,
                                         MemfdCalls& calls = RealMemfdCalls(),
                                         Kernel& kernel = RealKernel());

// The same, with every stored page read into a sealed memfd now.
absl::StatusOr<ImageRef> CopyOfPieces(const ImageOptions& options,
                                      std::span<const ImagePiece> pieces,
                                      std::span<const PageRun> stored,
                                      MemfdCalls& calls = RealMemfdCalls());

// A built image with the contents, name and working set of one with a
// PageSource, and, unlike it, without the zero pages that it calls stored.
// Errors: what the source says; those of the builders.
absl::StatusOr<ImageRef> BuiltCopy(const Image& image,
                                   MemfdCalls& calls = RealMemfdCalls());

// `image` is a delta to `parent`, from here on. Before anybody else has it.
void NoteParent(const Image& image, ImageRef parent);

// `base` with some pages replaced, as ImageWithPages (which see) makes it, but
// as a file-backed image: only the pages given are copied, and the base's are
// its own. The base is its parent, and lives as long.
absl::StatusOr<ImageRef> DeltaOf(const ImageOptions& options,
                                 const ImageRef& base,
                                 std::span<const PageData> pages,
                                 MemfdCalls& calls = RealMemfdCalls(),
                                 Kernel& kernel = RealKernel());

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_PIECES_H_
