// An image for tests whose pages can be told apart.

#ifndef FIRSTTOUCH_SERVE_TEST_IMAGE_H_
#define FIRSTTOUCH_SERVE_TEST_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// Every page has bytes of its own; every fourth is zero.
inline void FillTestPage(PageIndex page, std::span<std::byte> bytes) {
  if (page.value() % 4 == 3) return;
  uint64_t value = page.value() * 0x9E3779B97F4A7C15u + 1;
  for (size_t i = 0; i < bytes.size(); i += 8) {
    value = value * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(&bytes[i], &value, 8);
  }
}

inline ImageRef TestImage(uint64_t pages) {
  absl::StatusOr<ImageRef> image = ImageFromCallback(
      {.name = "guest", .size_bytes = pages * kPageBytes},
      [](PageIndex page, std::span<std::byte, kPageBytes> bytes) {
        FillTestPage(page, bytes);
        return absl::OkStatus();
      });
  if (!image.ok()) std::abort();
  return *image;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVE_TEST_IMAGE_H_
