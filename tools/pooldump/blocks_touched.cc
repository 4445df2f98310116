#include "firsttouch/tools/pooldump/blocks_touched.h"

#include <cstdint>
#include <utility>

namespace firsttouch::pooldump {
namespace {

// The sum of floor((a * i + b) / m) for i below n.
unsigned __int128 FloorSum(unsigned __int128 n, unsigned __int128 m,
                           unsigned __int128 a, unsigned __int128 b) {
  unsigned __int128 sum = 0;
  while (n > 0) {
    if (a >= m) {
      sum += n * (n - 1) / 2 * (a / m);
      a %= m;
    }
    if (b >= m) {
      sum += n * (b / m);
      b %= m;
    }
    const unsigned __int128 reach = a * n + b;
    if (reach < m) break;
    n = reach / m;
    b = reach % m;
    std::swap(m, a);
  }
  return sum;
}

}  // namespace

uint64_t BlocksTouched(uint64_t first, uint64_t stride, uint64_t count,
                       uint64_t bytes, uint64_t span) {
  if (count == 0 || bytes == 0) return 0;
  using Wide = unsigned __int128;
  const Wide last_byte = Wide{first} + bytes - 1;
  const Wide firsts = FloorSum(count, span, stride, first);
  const Wide lasts = FloorSum(count, span, stride, last_byte);
  Wide blocks = lasts - firsts + count;
  // Where the gap is smaller than a block, a piece may begin in the block in
  // which the one before ends: the distance of the two is 0, else 1.
  if (stride - bytes < span && count > 1) {
    const Wide apart = FloorSum(count - 1, span, stride, Wide{first} + stride) -
                       FloorSum(count - 1, span, stride, last_byte);
    blocks -= Wide{count} - 1 - apart;
  }
  return static_cast<uint64_t>(blocks);
}

}  // namespace firsttouch::pooldump
