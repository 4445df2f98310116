// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/service/fault_pool.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>

#include "firsttouch/service/slot_state.h"

namespace firsttouch {

void LatencyHistogram::Add(uint64_t ns) {
  const int index = ns == 0 ? 0 : std::bit_width(ns) - 1;
  bucket[std::min(index, kBuckets - 1)].fetch_add(1, std::memory_order_relaxed);
}

uint64_t MonotonicNanos() noexcept {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace firsttouch
