#include "firsttouch/bench/locator_fixture.h"

#include <random>

#include "benchmark/benchmark.h"
#include "firsttouch/bench/clock.h"
#include "firsttouch/bench/fixture.h"

namespace firsttouch::bench {

LocatorFixture::LocatorFixture(uint32_t pools) : sizes_(pools * kSlots) {
  std::mt19937_64 random(1);
  uintptr_t next = uintptr_t{1} << 44;
  for (uint32_t p = 0; p < pools; ++p) {
    auto entry = std::make_unique<PoolEntry>();
    entry->base = next;
    entry->first_memory_offset_bytes = 2 << 20;
    entry->slot_stride_bytes = kStrideBytes;
    entry->max_memory_bytes = uint64_t{4} << 30;
    entry->slots = kSlots;
    entry->memories_per_instance = 2;
    entry->bytes = entry->first_memory_offset_bytes + kSlots * kStrideBytes;
    entry->first_size_bytes = &sizes_[p * kSlots];
    entry->size_stride_bytes = sizeof sizes_[0];
    OrDie(RegisterPool(entry.get()));
    next += (entry->bytes / kLocatorChunkBytes + 1) * kLocatorChunkBytes;
    pools_.push_back(std::move(entry));
  }
  for (std::atomic<uint64_t>& size : sizes_) size = random() >> 32;
  for (size_t i = 0; i < kAddresses; ++i) {
    const PoolEntry& entry = *pools_[random() % pools];
    addresses_.push_back(entry.base + random() % entry.bytes);
  }
}

LocatorFixture::~LocatorFixture() {
  for (const auto& pool : pools_) UnregisterPool(pool.get());
}

double LookupThroughputNs(const LocatorFixture& fixture, int rounds) {
  const uint64_t start = NowTicks();
  for (int i = 0; i < rounds; ++i) {
    for (uintptr_t address : fixture.addresses()) {
      benchmark::DoNotOptimize(Locate(address));
    }
  }
  return TicksToNs(NowTicks() - start) / rounds /
         static_cast<double>(fixture.addresses().size());
}

double LookupLatencyNs(const LocatorFixture& fixture, int rounds) {
  // Always zero, which the compiler cannot know: the next address waits for the
  // last result.
  uint64_t none = 0;
  benchmark::DoNotOptimize(none);
  uint64_t last = 0;
  const uint64_t start = NowTicks();
  for (int i = 0; i < rounds; ++i) {
    for (uintptr_t address : fixture.addresses()) {
      const Location location = Locate(address + (last & none));
      last = location.in_bounds ? location.page : location.size_bytes;
    }
  }
  benchmark::DoNotOptimize(last);
  return TicksToNs(NowTicks() - start) / rounds /
         static_cast<double>(fixture.addresses().size());
}

}  // namespace firsttouch::bench
