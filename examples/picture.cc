#include "firsttouch/examples/picture.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "examples/stb_settings.h"

// Its functions are this file's.
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#include "stb_image.h"

namespace firsttouch::examples {

absl::Status CheckFileSize(PictureFile file) {
  if (file.size() <= kMaxFileBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the file has more than ", kMaxFileBytes,
                   " bytes, the most that is decoded"));
}

absl::Status CheckPictureSize(uint64_t width, uint64_t height) {
  // Both have 32 bits.
  if (width * height <= kMaxPictureBytes / STBI_rgb_alpha) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the picture has ", width, " x ", height, " pixels, and ",
                   kMaxPictureBytes / STBI_rgb_alpha, " are decoded at most"));
}

absl::Status Refused(std::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(
      "the decoder refuses it: ",
      reason.empty() ? "no reason given"
                     : absl::string_view(reason.data(), reason.size())));
}

absl::Status DecodeHere(PictureFile file, UsePicture use) {
  if (absl::Status fits = CheckFileSize(file); !fits.ok()) return fits;
  const auto* const bytes = reinterpret_cast<const stbi_uc*>(file.data());
  const int count = static_cast<int>(file.size());
  int width = 0;
  int height = 0;
  int channels = 0;
  // No sandbox bounds what a few bytes make this allocate.
  if (stbi_info_from_memory(bytes, count, &width, &height, &channels) != 0) {
    absl::Status fits = CheckPictureSize(static_cast<uint64_t>(width),
                                         static_cast<uint64_t>(height));
    if (!fits.ok()) return fits;
  }
  const std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> pixels(
      stbi_load_from_memory(bytes, count, &width, &height, &channels,
                            STBI_rgb_alpha),
      &stbi_image_free);
  if (pixels == nullptr) {
    const char* const reason = stbi_failure_reason();
    return Refused(reason == nullptr ? "" : reason);
  }
  const auto columns = static_cast<uint32_t>(width);
  const auto rows = static_cast<uint32_t>(height);
  use({.width = columns,
       .height = rows,
       .rgba = std::as_bytes(
           std::span(pixels.get(), size_t{columns} * rows * STBI_rgb_alpha))});
  return absl::OkStatus();
}

}  // namespace firsttouch::examples
