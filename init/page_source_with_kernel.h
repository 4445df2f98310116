// ImageFromSource() of page_source.h with the kernel's calls passed in: for
// tests that have them fail.

#ifndef FIRSTTOUCH_INIT_PAGE_SOURCE_WITH_KERNEL_H_
#define FIRSTTOUCH_INIT_PAGE_SOURCE_WITH_KERNEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

// `calls` and `kernel` must outlive the image.
absl::StatusOr<ImageRef> ImageFromSource(
    const ImageOptions& options, std::shared_ptr<PageSource> source,
    const PageSourceOptions& source_options, MemfdCalls& calls, Kernel& kernel);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_PAGE_SOURCE_WITH_KERNEL_H_
