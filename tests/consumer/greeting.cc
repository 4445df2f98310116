// A program that knows firsttouch only as an external repository. Two tenants,
// one after the other, get a memory that starts with the same greeting; what
// the first writes, the second does not see. Prints what each reads.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/service.h"

#ifndef CONSUMER_OWNS_ABSEIL
#error "firsttouch was not built against this workspace's own abseil"
#endif

namespace {

constexpr uint64_t kMemoryBytes = 1 << 20;
constexpr uint64_t kGreetingOffset = 65530;  // Across a page boundary.

absl::Status Serve() {
  const std::string_view greeting = "good morning";
  const firsttouch::DataSegment segment = {
      .offset_bytes = kGreetingOffset,
      .bytes = std::as_bytes(std::span(greeting))};
  absl::StatusOr<firsttouch::ImageRef> image = firsttouch::ImageFromSegments(
      {.name = "greeting", .size_bytes = kMemoryBytes}, {&segment, 1});
  if (!image.ok()) return image.status();

  absl::StatusOr<std::unique_ptr<firsttouch::Service>> service =
      firsttouch::Service::Create({.name = "greetings",
                                   .layout = {.instances = 1,
                                              .max_memory_bytes = kMemoryBytes,
                                              .guard_after_bytes = 65536}});
  if (!service.ok()) return service.status();

  for (const char* reply : {"good evening", "good night"}) {
    absl::StatusOr<firsttouch::Memory> memory =
        (*service)->Acquire({.image = *image, .size_bytes = kMemoryBytes});
    if (!memory.ok()) return memory.status();
    char* text = reinterpret_cast<char*>(memory->base()) + kGreetingOffset;
    std::cout << text << "\n";
    std::strcpy(text, reply);
    if (absl::Status status = memory->Release(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

int main() {
  if (absl::Status status = Serve(); !status.ok()) {
    std::cerr << "greeting: " << status << "\n";
    return 1;
  }
  return 0;
}
