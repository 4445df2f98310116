#include "firsttouch/init/checksum.h"

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace firsttouch {

uint64_t ChecksumOf(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace firsttouch
