// How many page tables the memories of a pool need.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_BLOCKS_TOUCHED_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_BLOCKS_TOUCHED_H_

#include <cstdint>

namespace firsttouch::pooldump {

// Blocks of `span` bytes (a power of two) that `count` pieces of `bytes` bytes
// touch, the first at `first`, then one every `stride` (at least `bytes`).
uint64_t BlocksTouched(uint64_t first, uint64_t stride, uint64_t count,
                       uint64_t bytes, uint64_t span);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_BLOCKS_TOUCHED_H_
