// Decodes a folder of pictures in several ways, and compares what they give and
// how long they take.

#ifndef FIRSTTOUCH_EXAMPLES_PICTURE_COMPARISON_H_
#define FIRSTTOUCH_EXAMPLES_PICTURE_COMPARISON_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/examples/picture.h"

namespace firsttouch::examples {

struct Sample {
  std::string name;
  std::vector<std::byte> file;
  // What DecodeInFork() makes of it: the picture, or the error.
  absl::Status expected;
  uint32_t width = 0;
  uint32_t height = 0;
  std::vector<std::byte> rgba;
};

// The regular files of a folder, by name, decoded once. NotFound for a folder
// that has none; otherwise the errors of reading it.
absl::StatusOr<std::vector<Sample>> ReadSamples(const std::string& folder);

struct Way {
  std::string name;
  // Thread-safe.
  std::function<absl::Status(PictureFile, UsePicture)> decode;
  // Whether a file whose decoder was ended by a signal is left out.
  bool in_this_process = false;
};

// What came of one way, over all rounds.
struct WayResult {
  // Decoded to the expected pixels, byte by byte; refused, as expected;
  // anything else.
  uint64_t right = 0;
  uint64_t refused = 0;
  uint64_t wrong = 0;
  // Left out.
  uint64_t skipped = 0;
  // The median of the rounds.
  double pictures_per_second = 0;
  // By sample: the error, or an empty text.
  std::vector<std::string> errors;
};

struct ComparisonOptions {
  uint32_t threads = 1;
  uint32_t rounds = 1;
};

// Decodes all samples in each round in each way, with another way first in each
// round. An error is one that no file can cause.
absl::StatusOr<std::vector<WayResult>> Compare(
    const std::vector<Sample>& samples, const std::vector<Way>& ways,
    const ComparisonOptions& options);

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_PICTURE_COMPARISON_H_
