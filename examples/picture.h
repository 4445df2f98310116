// Pictures, and decoding them in this process, as everybody does.

#ifndef FIRSTTOUCH_EXAMPLES_PICTURE_H_
#define FIRSTTOUCH_EXAMPLES_PICTURE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace firsttouch::examples {

// What is decoded at most: pixels of four bytes each, and the file.
inline constexpr uint64_t kMaxPictureBytes = uint64_t{16} << 20;
inline constexpr uint64_t kMaxFileBytes = uint64_t{16} << 20;

struct PictureView {
  uint32_t width = 0;
  uint32_t height = 0;
  // Red, green, blue and alpha of each pixel, row after row from the top.
  std::span<const std::byte> rgba;
};

using PictureFile = std::span<const std::byte>;

// Called with a picture, which stays where the decoder has put it and is there
// during the call.
using UsePicture = absl::FunctionRef<void(const PictureView&)>;

// Errors that a file can cause are InvalidArgument, OutOfRange and Aborted: of
// these, none says anything about the next file.
inline bool IsErrorOfFile(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsOutOfRange(status) ||
         absl::IsAborted(status);
}

// InvalidArgument for a file, or pixels, that are larger than the above.
absl::Status CheckFileSize(PictureFile file);
absl::Status CheckPictureSize(uint64_t width, uint64_t height);

// InvalidArgument with a decoder's own reason, which may be empty.
absl::Status Refused(std::string_view reason);

// Decodes a file in this process: what is wrong with the decoder is wrong with
// the process. Thread-safe.
absl::Status DecodeHere(PictureFile file, UsePicture use);

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_PICTURE_H_
