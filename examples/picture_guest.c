// The guest of image_decoder: stb_image, which knows nothing of its sandbox.
//
// The host asks where to put a file, puts it there, has it decoded, and reads
// what `struct Decoded` says. All of that is the guest's word: the host checks
// each address.

#include <stdint.h>
#include <string.h>

#include "examples/stb_settings.h"
#define STB_IMAGE_IMPLEMENTATION
#include "stb_image.h"

#define EXPORT(name) __attribute__((export_name(#name)))

static struct Decoded {
  uint32_t width;
  uint32_t height;
  uint8_t* pixels;     // four bytes each, in rows; null: refused
  const char* reason;  // of the refusal; may be null
  uint32_t reason_bytes;
} decoded;

EXPORT(allocate) void* allocate(uint32_t bytes) { return malloc(bytes); }

// A bug, planted: what a file with this mark in front says is written wherever
// it says. Decoders have such bugs, and hostile files find them.
static void FollowThePlantedBug(const uint8_t* file, uint32_t bytes) {
  static const char kMark[8] = "PLANTED!";
  uint32_t word[2];
  if (bytes < sizeof kMark + sizeof word) return;
  if (memcmp(file, kMark, sizeof kMark) != 0) return;
  memcpy(word, file + sizeof kMark, sizeof word);
  *(volatile uint32_t*)(uintptr_t)word[0] = word[1];
}

EXPORT(decode)
const struct Decoded* decode(const uint8_t* file, uint32_t bytes) {
  FollowThePlantedBug(file, bytes);
  int width = 0;
  int height = 0;
  int channels;
  decoded.pixels = stbi_load_from_memory(file, (int)bytes, &width, &height,
                                         &channels, STBI_rgb_alpha);
  decoded.width = (uint32_t)width;
  decoded.height = (uint32_t)height;
  decoded.reason = decoded.pixels != NULL ? NULL : stbi_failure_reason();
  decoded.reason_bytes =
      decoded.reason != NULL ? (uint32_t)strlen(decoded.reason) : 0;
  return &decoded;
}
