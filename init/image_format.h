// The bytes of an image file: header and manifest, made and checked. Internal
// to this folder; docs/image-format.md says the same in words.
//
// Everything here works on bytes in memory and opens no file, so that a fuzzer
// can have it (tests/fuzz).
//
// Threads: any. Not async-signal-safe.

#ifndef FIRSTTOUCH_INIT_IMAGE_FORMAT_H_
#define FIRSTTOUCH_INIT_IMAGE_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image_file.h"

namespace firsttouch {

inline constexpr size_t kImageHeaderBytes = 128;
inline constexpr unsigned char kImageMagic[8] = {0x89, 'F', 'T',  'I',
                                                 'M',  'G', '\r', '\n'};

struct ImageHeader {
  uint32_t version = kImageFileVersion;
  uint64_t manifest_offset = kImageHeaderBytes;
  uint64_t manifest_bytes = 0;
  Digest manifest_sha256;
  uint64_t data_offset = 0;
  uint64_t data_bytes = 0;
  uint64_t file_bytes = 0;
};

// A header for a manifest and a memory of these sizes.
ImageHeader HeaderFor(std::string_view manifest, uint64_t size_bytes);

// kImageHeaderBytes bytes.
std::string EncodeHeader(const ImageHeader& header);

// Reads and checks a header: magic, version, its digest, then every field
// against the others. `bytes` may be shorter than a header: DataLoss.
absl::StatusOr<ImageHeader> DecodeHeader(std::span<const std::byte> bytes);

// The manifest of what `info` says. The offsets and lengths in it do not
// matter.
std::string EncodeManifest(const ImageFileInfo& info);

// Reads and checks a manifest against its header: its digest, then every field.
// Takes memory in proportion to its length, and time too.
absl::StatusOr<ImageFileInfo> DecodeManifest(const ImageHeader& header,
                                             std::span<const std::byte> bytes);

// Whether `info` may be written: the limits of image_file.h.
absl::Status CheckWritable(const ImageFileInfo& info);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_IMAGE_FORMAT_H_
