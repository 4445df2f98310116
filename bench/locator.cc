// From an address to the memory that it lies in.
//
//   bazel run -c opt //bench:locator
//
// throughput: lookups that need not wait for each other; latency: each waits
// for the one before. Beside the kernel there is nothing to compare with; an
// ordered map is what one would write without the locator.

#include <cstdint>
#include <iterator>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "firsttouch/bench/benchmarks.h"
#include "firsttouch/bench/locator_fixture.h"

namespace firsttouch::bench {
namespace {

constexpr auto kBatch = static_cast<int64_t>(LocatorFixture::kAddresses);

void MapLookup(benchmark::State& state, uint32_t pools) {
  const LocatorFixture fixture(pools);
  std::map<uintptr_t, const PoolEntry*> by_base;
  for (const auto& pool : fixture.pools()) by_base[pool->base] = pool.get();
  while (state.KeepRunningBatch(kBatch)) {
    for (uintptr_t address : fixture.addresses()) {
      const PoolEntry& pool = *std::prev(by_base.upper_bound(address))->second;
      const uint64_t offset =
          address - pool.base - pool.first_memory_offset_bytes;
      const uint64_t slot = offset / pool.slot_stride_bytes;
      benchmark::DoNotOptimize(slot);
      benchmark::DoNotOptimize(offset - slot * pool.slot_stride_bytes);
    }
  }
}

}  // namespace

void RegisterBenchmarks() {
  for (uint32_t pools : {1, 16}) {
    const std::string suffix = absl::StrCat("/pools:", pools);
    benchmark::RegisterBenchmark(
        absl::StrCat("locate/throughput", suffix).c_str(),
        [pools](benchmark::State& state) {
          const LocatorFixture fixture(pools);
          while (state.KeepRunningBatch(kBatch)) LookupThroughputNs(fixture, 1);
        });
    benchmark::RegisterBenchmark(absl::StrCat("locate/latency", suffix).c_str(),
                                 [pools](benchmark::State& state) {
                                   const LocatorFixture fixture(pools);
                                   while (state.KeepRunningBatch(kBatch))
                                     LookupLatencyNs(fixture, 1);
                                 });
    benchmark::RegisterBenchmark(
        absl::StrCat("map/throughput", suffix).c_str(),
        [pools](benchmark::State& state) { MapLookup(state, pools); });
  }
}

}  // namespace firsttouch::bench
