// Sizes in errors, exact and readable.

#ifndef FIRSTTOUCH_POOL_SIZE_TEXT_H_
#define FIRSTTOUCH_POOL_SIZE_TEXT_H_

#include <cstdint>
#include <string>

namespace firsttouch {

// The number of bytes, followed by the size in a binary unit where that is
// exact and the number is long: "4096", "4194305", "4294967296 (4 GiB)". For an
// option whose name says that it is in bytes.
std::string SizeText(uint64_t bytes);

// The number with its unit, and a size that is rounded to four digits where it
// cannot be exact: "4096 bytes (4 KiB)", "8192008192 bytes (7.629 GiB)".
std::string BytesText(uint64_t bytes);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_SIZE_TEXT_H_
