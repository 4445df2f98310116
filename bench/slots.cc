// What an idle slot costs beyond its private pages, in a pool of many.
//
//   bazel run -c opt //bench:slots
//
// Every slot is bound to one image, and was used by one guest that read 16
// pages and wrote to four. All figures are the kernel's own (/proc/self), as
// differences between a pool that has no slot in use yet and one whose slots
// were all used, divided by the number of slots.

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/init/image.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/service.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

constexpr uint32_t kSlots = 10'000;
constexpr uint64_t kImageBytes = 1 << 20;
constexpr uint64_t kSizeBytes = 4 << 20;
constexpr uint64_t kReadPages = 16;
constexpr uint64_t kChangedPages = 4;

// What the process has.
struct Held {
  // Anonymous and shared memory that is resident: the pages of the slots, and
  // the library's own.
  uint64_t resident_bytes = 0;
  uint64_t page_table_bytes = 0;
  uint64_t mappings = 0;
};

// A line "Name:  12 kB" of /proc/self/status.
uint64_t StatusBytes(absl::string_view name) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (!absl::StartsWith(line, name)) continue;
    unsigned long kib = 0;
    if (std::sscanf(line.c_str() + name.size(), " %lu", &kib) == 1) {
      return uint64_t{kib} * 1024;
    }
  }
  Die("a line of /proc/self/status is missing");
}

Held Look() {
  Held held;
  held.resident_bytes = StatusBytes("RssAnon:") + StatusBytes("RssShmem:");
  held.page_table_bytes = StatusBytes("VmPTE:");
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) ++held.mappings;
  return held;
}

void Measure(const char* name, const LayoutOptions& layout) {
  const std::unique_ptr<Service> pool =
      OrDie(Service::Create({.name = "slots", .layout = layout}));
  const ImageRef image = PatternImage(kImageBytes);
  // One slot makes what all of them share.
  std::vector<Memory> memories;
  const auto use_one = [&] {
    memories.push_back(
        OrDie(pool->Acquire({.image = image, .size_bytes = kSizeBytes})));
    std::byte* const base = memories.back().base();
    for (uint64_t i = 0; i < kReadPages; ++i) {
      static_cast<void>(static_cast<volatile std::byte*>(
          base)[i * (kImageBytes / kReadPages) + kPageBytes]);
    }
    for (uint64_t i = 0; i < kChangedPages; ++i) {
      base[i * (kImageBytes / kChangedPages)] = std::byte{1};
    }
  };
  use_one();
  memories.clear();
  memories.reserve(kSlots);
  const Held before = Look();
  const uint64_t mapped_before = pool->Stats().pages_mapped;
  for (uint32_t i = 0; i < kSlots; ++i) use_one();
  for (Memory& memory : memories) OrDie(memory.Release());
  const Held after = Look();
  const uint64_t kept = pool->Stats().idle_private_bytes;
  // Shared pages of the image count as resident in each slot.
  const uint64_t shared =
      (pool->Stats().pages_mapped - mapped_before) * kPageBytes;
  const auto per_slot = [](uint64_t now, uint64_t then) {
    return (static_cast<double>(now) - static_cast<double>(then)) / kSlots;
  };
  std::printf(
      "%-20s  private %.0f bytes; book-keeping %.0f bytes, page tables %.0f "
      "bytes, mappings %.2f\n",
      name, static_cast<double>(kept) / kSlots,
      per_slot(after.resident_bytes - kept - shared, before.resident_bytes),
      per_slot(after.page_table_bytes, before.page_table_bytes),
      per_slot(after.mappings, before.mappings));
}

}  // namespace
}  // namespace firsttouch::bench

int main() {
  using firsttouch::LayoutOptions;
  using firsttouch::bench::kSlots;
  std::printf("per slot of %u:\n", kSlots);
  firsttouch::bench::Measure("4 GiB each", LayoutOptions::ForWasm32(kSlots));
  firsttouch::bench::Measure("at most 4 MiB each",
                             {.instances = kSlots,
                              .max_memory_bytes = 4 << 20,
                              .guard_after_bytes = 64 << 10});
  return 0;
}
