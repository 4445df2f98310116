// Addresses to look up, and pools to find them in.

#ifndef FIRSTTOUCH_BENCH_LOCATOR_FIXTURE_H_
#define FIRSTTOUCH_BENCH_LOCATOR_FIXTURE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "firsttouch/locator/locator.h"

namespace firsttouch::bench {

// Pools that exist in the locator only: nothing is mapped, nobody touches them.
class LocatorFixture {
 public:
  static constexpr uint32_t kSlots = 64;
  static constexpr uint64_t kStrideBytes = (uint64_t{6} << 30) + (64 << 10);
  static constexpr size_t kAddresses = 1024;

  explicit LocatorFixture(uint32_t pools);
  LocatorFixture(const LocatorFixture&) = delete;
  LocatorFixture& operator=(const LocatorFixture&) = delete;
  ~LocatorFixture();

  // kAddresses addresses at random in all of the pools.
  const std::vector<uintptr_t>& addresses() const { return addresses_; }
  const std::vector<std::unique_ptr<PoolEntry>>& pools() const {
    return pools_;
  }

 private:
  std::vector<std::atomic<uint64_t>> sizes_;
  std::vector<std::unique_ptr<PoolEntry>> pools_;
  std::vector<uintptr_t> addresses_;
};

// The time of a lookup in ns, where one needs not wait for the one before (as
// the processor overlaps them), and where it must.
double LookupThroughputNs(const LocatorFixture& fixture, int rounds);
double LookupLatencyNs(const LocatorFixture& fixture, int rounds);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_LOCATOR_FIXTURE_H_
