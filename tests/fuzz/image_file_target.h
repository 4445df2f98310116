// The reader of image files, as a fuzzer's target.

#ifndef FIRSTTOUCH_TESTS_FUZZ_IMAGE_FILE_TARGET_H_
#define FIRSTTOUCH_TESTS_FUZZ_IMAGE_FILE_TARGET_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace firsttouch {

// What an input is taken for is said by its first byte, modulo 4:
//   0  a file as it is
//   1  a manifest, for which a header with the right digest is made: a fuzzer
//      does not find SHA-256 by itself
//   2  a manifest and the data behind it, after two bytes that say how long it
//      is; the file is opened, verified and copied
//   3  what a packed file decompresses to, digests made right as above
// Returns if the reader does what it promises, ends the process if not: what
// it accepts can be written and read again with the same meaning.
void ReadAsImageFile(std::span<const uint8_t> input);

// Inputs of each kind that are read to their end.
std::vector<std::string> ImageFileSeeds();

}  // namespace firsttouch

#endif  // FIRSTTOUCH_TESTS_FUZZ_IMAGE_FILE_TARGET_H_
