// libFuzzer's entry; see README.md.

#include <cstddef>
#include <cstdint>
#include <span>

#include "tests/fuzz/snapshot_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  firsttouch::ReadAsCore({data, size});
  return 0;
}
