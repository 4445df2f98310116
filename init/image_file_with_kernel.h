// WriteImageFile() of image_file.h with the kernel's calls passed in: for tests
// that have them fail.

#ifndef FIRSTTOUCH_INIT_IMAGE_FILE_WITH_KERNEL_H_
#define FIRSTTOUCH_INIT_IMAGE_FILE_WITH_KERNEL_H_

#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/memfd.h"

namespace firsttouch {

absl::StatusOr<ImageFileInfo> WriteImageFile(
    const Image& image, const std::string& path,
    const WriteImageFileOptions& options, MemfdCalls& calls);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_FILE_WITH_KERNEL_H_
