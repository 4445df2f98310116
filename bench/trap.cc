// A touch out of bounds, from the instruction to siglongjmp's return.
//
//   bazel run -c opt //bench:trap

#include <memory>

#include "benchmark/benchmark.h"
#include "firsttouch/bench/benchmarks.h"
#include "firsttouch/bench/trap_strategies.h"

namespace firsttouch::bench {

void RegisterBenchmarks() {
  for (const NamedTrapStrategy& strategy : AllTrapStrategies()) {
    benchmark::RegisterBenchmark(
        strategy.name.c_str(),
        [make = strategy.make](benchmark::State& state) {
          constexpr int kBatch = 100;
          const std::unique_ptr<TrapStrategy> trap = make();
          trap->Trap(1);
          while (state.KeepRunningBatch(kBatch)) trap->Trap(kBatch);
        })
        // Most of a handler thread's work is not on the thread that waits.
        ->UseRealTime();
  }
}

}  // namespace firsttouch::bench
