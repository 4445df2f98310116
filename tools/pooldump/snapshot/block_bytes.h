// Where a reader has the bytes of a control block from.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_BLOCK_BYTES_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_BLOCK_BYTES_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace firsttouch::pooldump {

// The bytes of a block. Offsets are multiples of 8.
class BlockBytes {
 public:
  virtual ~BlockBytes() = default;

  // Of the whole block.
  virtual uint64_t bytes() const = 0;

  // Reads [offset, offset + 8 * into.size()), which lies within bytes(), in
  // ascending order and after all that was read before. Each word is of one
  // moment; all of them together need not be.
  virtual absl::Status Read(uint64_t offset, std::span<uint64_t> into) = 0;

  // The next part of [offset, end) that may hold anything but zeroes, in whole
  // words; an empty one at `end`: there is none.
  struct Part {
    uint64_t offset = 0;
    uint64_t end = 0;
  };
  virtual absl::StatusOr<Part> NextData(uint64_t offset, uint64_t end) = 0;
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_BLOCK_BYTES_H_
