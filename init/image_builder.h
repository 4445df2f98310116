// The ways to make an image (image.h).
//
// All of them write non-zero pages straight into a new memfd and then seal it,
// so that building needs no second copy of the contents: memory and time go
// with the bytes given and the pages stored, not with size_bytes. Two bytes 1
// GB apart make an image of two pages. (Setting up the view and the page set
// costs some address space per size_bytes: 1/32768 of it, and the view itself.)
//
// Example: the data segments of a WebAssembly module.
//   std::vector<DataSegment> segments = {{.offset_bytes = 1024, .bytes = text},
//                                        {.offset_bytes = 65536, .bytes =
//                                        rodata}};
//   absl::StatusOr<ImageRef> image = ImageFromSegments(
//       {.name = "guest.wasm", .size_bytes = 17 * 65536}, segments);
//
// Errors of every builder:
//   InvalidArgument    size_bytes above kMaxImageBytes.
//   ResourceExhausted  The descriptor table is full (EMFILE, ENFILE), there is
//   no
//                      memory, address space or space for the contents (ENOMEM,
//                      ENOSPC, EDQUOT), or a file this large is not allowed
//                      (RLIMIT_FSIZE, which is looked at first, because the
//                      kernel would send SIGXFSZ).
//   Others             memfd_create refused (seccomp: EPERM, ENOSYS), or a
//   source
//                      buffer that the kernel cannot read (EFAULT). These keep
//                      the kernel's errno, by absl::ErrnoToStatus.
// Every text names the image, the value, the rule or the failed call, and what
// to do. A builder that fails leaves nothing behind: no descriptor, no mapping.
//
// Threads: any number of builders may run at a time. Not for signal handlers.

#ifndef FIRSTTOUCH_INIT_IMAGE_BUILDER_H_
#define FIRSTTOUCH_INIT_IMAGE_BUILDER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

struct ImageOptions {
  // For people: shown in errors, in /proc/<pid>/maps and in statistics.
  std::string name;
  // Bytes from offset 0. Any number up to kMaxImageBytes; zero is an image of
  // no pages. Where it ends inside a page, the rest of that page is zero.
  uint64_t size_bytes = 0;
};

// Bytes and where they go. The bytes are borrowed during the call only.
struct DataSegment {
  uint64_t offset_bytes = 0;
  std::span<const std::byte> bytes;
};

// One page of a live memory. `bytes` are kPageBytes bytes, borrowed during the
// call only; null stands for a zero page.
struct PageData {
  PageIndex page{0};
  const std::byte* bytes = nullptr;
};

// The most segments that one image takes. The same number as the JavaScript API
// of WebAssembly allows a module.
inline constexpr size_t kMaxSegments = 100'000;

// Segments in the order given: where they overlap, later ones win. Everything
// between them is zero. An empty segment changes nothing, but must lie within
// the image like any other (its offset may equal size_bytes). Takes time linear
// in segments and bytes.
//
// Errors: OutOfRange for a segment that does not end within size_bytes (64-bit
// arithmetic that cannot wrap): "image 'm': segment 3: offset 65535 + 2 bytes
// exceeds memory size 65536 ..."; InvalidArgument for more than kMaxSegments.
absl::StatusOr<ImageRef> ImageFromSegments(
    const ImageOptions& options, std::span<const DataSegment> segments);

// `bytes` from offset 0, zeroes after them.
//
// Errors: OutOfRange when there are more bytes than size_bytes.
absl::StatusOr<ImageRef> ImageFromBytes(const ImageOptions& options,
                                        std::span<const std::byte> bytes);

// Calls `fill` once for each page, in ascending order, with kPageBytes zeroed,
// page-aligned bytes to write the page into. What it leaves past size_bytes in
// the last page is not kept. Takes time linear in size_bytes: a sparse memory
// is better described by segments.
//
// Errors: what `fill` returns ends the build; its code is kept and its message
// gets the image and the page in front.
absl::StatusOr<ImageRef> ImageFromCallback(
    const ImageOptions& options,
    absl::FunctionRef<absl::Status(PageIndex page,
                                   std::span<std::byte, kPageBytes> bytes)>
        fill);

// Puts bytes at an offset, over what is there.
using ImagePut = absl::FunctionRef<absl::Status(
    uint64_t offset_bytes, std::span<const std::byte> bytes)>;

// `write` is called once and puts what it has, in any order; the rest is zero.
// Takes time linear in the bytes put.
//
// Errors: what `write` returns ends the build and is returned as it is. A put
// that does not end within size_bytes is OutOfRange and changes nothing.
absl::StatusOr<ImageRef> ImageFromWriter(
    const ImageOptions& options,
    absl::FunctionRef<absl::Status(ImagePut put)> write);

// `base` (null: zeroes) with some pages replaced: the snapshot of a live
// memory. Pages may come in any order; a page that comes twice is as given
// last. A page that is now zero is not stored even if the base stored it. Bytes
// past size_bytes in the last page are not kept. The pages must not change
// during the call: what a page changed meanwhile holds is then undefined (some
// mix of old and new), nothing worse.
//
// Errors: InvalidArgument when the base is larger than size_bytes; OutOfRange,
// naming the index, for a page at or past the image's end.
absl::StatusOr<ImageRef> ImageWithPages(const ImageOptions& options,
                                        const Image* base,
                                        std::span<const PageData> pages);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_BUILDER_H_
