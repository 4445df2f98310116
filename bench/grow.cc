// Growing a memory by 64 KiB at a time.
//
//   bazel run -c opt //bench:grow
//
// Time is that of one growth; with "touch", of one growth and a write to each
// of its pages. The kernel's own way is a reservation that is made accessible
// by mprotect(2).

#include <sys/mman.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "firsttouch/bench/benchmarks.h"
#include "firsttouch/bench/clock.h"
#include "firsttouch/bench/fixture.h"

namespace firsttouch::bench {
namespace {

constexpr uint64_t kStepBytes = 64 << 10;
constexpr uint64_t kSteps = 32;
constexpr uint64_t kMaxBytes = (kSteps + 1) * kStepBytes;

void GrowPool(benchmark::State& state, const PoolShape& shape, bool touch) {
  const std::unique_ptr<Service> pool = MakePool(shape);
  Memory memory;
  while (state.KeepRunningBatch(kSteps)) {
    memory = Memory();
    memory = ColdMemory(*pool, nullptr, kStepBytes);
    const uint64_t start = NowTicks();
    for (uint64_t i = 1; i <= kSteps; ++i) {
      OrDie(memory.Grow((i + 1) * kStepBytes));
      if (touch) WriteEachPage(memory.base() + i * kStepBytes, kStepBytes);
    }
    state.SetIterationTime(TicksToNs(NowTicks() - start) * 1e-9);
  }
}

void GrowByMprotect(benchmark::State& state, bool touch) {
  Mapping mapping(kMaxBytes);
  while (state.KeepRunningBatch(kSteps)) {
    mapping.MapAnew();
    if (mprotect(mapping.base() + kStepBytes, kMaxBytes - kStepBytes,
                 PROT_NONE) != 0) {
      Die("mprotect failed");
    }
    const uint64_t start = NowTicks();
    for (uint64_t i = 1; i <= kSteps; ++i) {
      std::byte* const fresh = mapping.base() + i * kStepBytes;
      if (mprotect(fresh, kStepBytes, PROT_READ | PROT_WRITE) != 0) {
        Die("mprotect failed");
      }
      if (touch) WriteEachPage(fresh, kStepBytes);
    }
    state.SetIterationTime(TicksToNs(NowTicks() - start) * 1e-9);
  }
}

}  // namespace

void RegisterBenchmarks() {
  for (bool touch : {false, true}) {
    const std::string start = touch ? "grow+touch/" : "grow/";
    for (Resolve resolve : {Resolve::kInThread, Resolve::kHandlerThread}) {
      const PoolShape shape{.resolve = resolve, .memory_bytes = kMaxBytes};
      benchmark::RegisterBenchmark(
          absl::StrCat(start, "pool/", ResolveName(resolve)).c_str(),
          [shape, touch](benchmark::State& state) {
            GrowPool(state, shape, touch);
          })
          ->UseManualTime();
    }
    benchmark::RegisterBenchmark(
        absl::StrCat(start, "kernel/mprotect").c_str(),
        [touch](benchmark::State& state) { GrowByMprotect(state, touch); })
        ->UseManualTime();
  }
}

}  // namespace firsttouch::bench
