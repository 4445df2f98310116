// The first touch of each page of 4 MiB.
//
//   bazel run -c opt //bench:first_touch -- --benchmark_filter=image/read
//
// Time is that of 4 MiB; per_page that of one page of them. In a pool, a fault
// supplies the fault-around range at once, so most touches meet a page that is
// there.

#include <cstdint>
#include <memory>

#include "benchmark/benchmark.h"
#include "firsttouch/bench/benchmarks.h"
#include "firsttouch/bench/clock.h"
#include "firsttouch/bench/touch_strategies.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {

void RegisterBenchmarks() {
  constexpr uint64_t kPages = kTouchBytes / kPageBytes;
  for (const NamedTouchStrategy& strategy : AllTouchStrategies()) {
    benchmark::RegisterBenchmark(
        strategy.name.c_str(),
        [make = strategy.make](benchmark::State& state) {
          const std::unique_ptr<TouchStrategy> touch = make();
          for (auto _ : state) {
            touch->Prepare();
            const uint64_t start = NowTicks();
            touch->Touch();
            state.SetIterationTime(TicksToNs(NowTicks() - start) * 1e-9);
          }
          state.counters["per_page"] =
              benchmark::Counter(static_cast<double>(kPages),
                                 benchmark::Counter::kIsIterationInvariantRate |
                                     benchmark::Counter::kInvert);
        })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
}

}  // namespace firsttouch::bench
