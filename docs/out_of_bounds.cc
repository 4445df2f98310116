// A guest leaves its memory and no callback takes the trap: the process dies by
// SIGBUS. debugging.md looks at it with a debugger.

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <memory>

#include "absl/status/statusor.h"
#include "firsttouch/service/service.h"

namespace {

constexpr uint64_t kSizeBytes = 65536;

// Not inlined, so that the debugger has a name to show.
[[gnu::noinline]] std::byte Guest(const std::byte* memory, uint64_t offset) {
  return *static_cast<const volatile std::byte*>(memory + offset);
}

}  // namespace

int main() {
  absl::StatusOr<std::unique_ptr<firsttouch::Service>> service =
      firsttouch::Service::Create(
          {.name = "example",
           .layout = {.instances = 1,
                      .max_memory_bytes = kSizeBytes,
                      .guard_after_bytes = kSizeBytes}});
  if (!service.ok()) {
    std::cerr << service.status() << "\n";
    return 1;
  }
  absl::StatusOr<firsttouch::Memory> memory =
      (*service)->Acquire({.size_bytes = kSizeBytes});
  if (!memory.ok()) {
    std::cerr << memory.status() << "\n";
    return 1;
  }
  Guest(memory->base(), kSizeBytes - 1);
  Guest(memory->base(), kSizeBytes + 4100);
  return 0;
}
