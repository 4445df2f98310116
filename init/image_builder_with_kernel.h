// The functions of image_builder.h with the kernel's calls passed in: for tests
// that have them fail, and for builders that are tested so.

#ifndef FIRSTTOUCH_INIT_IMAGE_BUILDER_WITH_KERNEL_H_
#define FIRSTTOUCH_INIT_IMAGE_BUILDER_WITH_KERNEL_H_

#include <cstddef>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// `calls` must outlive the image.
absl::StatusOr<ImageRef> ImageFromSegments(
    const ImageOptions& options, std::span<const DataSegment> segments,
    MemfdCalls& calls);
absl::StatusOr<ImageRef> ImageFromBytes(const ImageOptions& options,
                                        std::span<const std::byte> bytes,
                                        MemfdCalls& calls);
absl::StatusOr<ImageRef> ImageFromCallback(
    const ImageOptions& options,
    absl::FunctionRef<absl::Status(PageIndex page,
                                   std::span<std::byte, kPageBytes> bytes)>
        fill,
    MemfdCalls& calls);
absl::StatusOr<ImageRef> ImageFromWriter(
    const ImageOptions& options,
    absl::FunctionRef<absl::Status(ImagePut put)> write, MemfdCalls& calls);
absl::StatusOr<ImageRef> ImageWithPages(const ImageOptions& options,
                                        const Image* base,
                                        std::span<const PageData> pages,
                                        MemfdCalls& calls);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_BUILDER_WITH_KERNEL_H_
