// A test of guests on each kind of memory source.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_SOURCE_TEST_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_SOURCE_TEST_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/integrations/wasm2c/test_sources.h"
#include "gtest/gtest.h"

namespace firsttouch::wasm2c {

class SourceTest : public testing::TestWithParam<SourceKind> {
 protected:
  // For SetUp(), as its last step: makes source(), or skips the test where this
  // machine does not allow the kind.
  void MakeSource(uint32_t instances, uint64_t max_memory_bytes) {
    absl::StatusOr<TestSource> made =
        MakeTestSource(GetParam(), instances, max_memory_bytes);
    if (!made.ok()) {
      GTEST_SKIP() << GetParam().name
                   << " is not possible here: " << made.status();
    }
    source_ = *std::move(made);
  }

  MemorySource* source() { return source_.source.get(); }

  TestSource source_;
};

inline std::string SourceKindName(
    const testing::TestParamInfo<SourceKind>& info) {
  return info.param.name;
}

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_SOURCE_TEST_H_
