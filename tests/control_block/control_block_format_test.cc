// That docs/control-block.md is enough to read the pools of a process:
// read_pools.py knows no more.

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

std::string OutputOf(const std::string& command) {
  std::string output;
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "popen failed";
  char buffer[1000];
  while (const size_t got = fread(buffer, 1, sizeof(buffer), pipe)) {
    output.append(buffer, got);
  }
  EXPECT_EQ(pclose(pipe), 0);
  return output;
}

TEST(ControlBlockFormatTest, AnotherProgramReadsThePoolsOfAProcess) {
  const std::vector<std::byte> bytes(3 * kPageBytes, std::byte{1});
  const auto image =
      ImageFromBytes({.name = "guest.wasm", .size_bytes = bytes.size()}, bytes);
  auto service =
      Service::Create({.name = "tenants",
                       .layout = {.instances = 4, .max_memory_bytes = 1 << 24},
                       .supply = AnySupply{{.tracking = Tracking::kSignal}}});
  ASSERT_TRUE(image.ok() && service.ok());
  auto first = (*service)->Acquire({.image = *image, .size_bytes = 1 << 20});
  auto second = (*service)->Acquire({.size_bytes = 1 << 16});
  ASSERT_TRUE(first.ok() && second.ok());
  for (uint64_t page : {0, 2, 200}) {
    first->base()[page * kPageBytes] = std::byte{2};
  }
  const bool has_states = !IsMappings((*service)->supply());
  EXPECT_EQ(
      OutputOf(
          absl::StrCat("python3 tests/control_block/read_pools.py ", getpid())),
      absl::StrCat("pool tenants pid ", getpid(), " at 0x",
                   absl::Hex((*service)->base()), "\nslot ", first->instance(),
                   " size 1048576 image guest.wasm handovers 0 written ",
                   has_states ? 3 : 0, "\nslot ", second->instance(),
                   " size 65536 image - handovers 0 written 0\n"));
}

}  // namespace
}  // namespace firsttouch
