// What the functions for images, in memory and in files, have in common.
//
// Threads: any. Not for signal handlers.

#ifndef FIRSTTOUCH_CAPI_IMAGES_H_
#define FIRSTTOUCH_CAPI_IMAGES_H_

#include "absl/status/statusor.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/registry.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/init/image.h"

namespace firsttouch::capi {

// Gives a handle of what was made, or the error.
ft_status GiveImage(absl::StatusOr<ImageRef> made, ft_image* image,
                    ft_error* error);

// An image that may be none.
ft_status TakeOptionalImage(const char* function, ft_image image,
                            ImageRef* into, ft_error* error);

// Calls body(const ImageRef&) with the image of a handle, which it keeps.
template <typename Body>
ft_status WithImage(const char* function, ft_image image, ft_error* error,
                    Body body) {
  return Call(error, [&] {
    const ImageRef held = CopyImage(image);
    if (held == nullptr) {
      return FailHandle(error, function, "image", image.entry, image.serial);
    }
    return ft_status{body(held)};
  });
}

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_IMAGES_H_
