// Acquire and release alone: nothing is touched in between.
//
//   bazel run -c opt //bench:acquire_release
//
// steady: the slot held the image before. rebind: it held another one. The
// kernel's ways: MADV_DONTNEED of a mapping that nobody touched either, and
// mmap + munmap. bench:cycle has the whole cycle, with touches.

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "firsttouch/bench/benchmarks.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/pool/slot_allocator.h"

namespace firsttouch::bench {
namespace {

constexpr uint64_t kImageBytes = 1 << 20;
constexpr uint64_t kMemoryBytes = 4 << 20;
constexpr int kMaxThreads = 2;

// Google-benchmark's threads start at once and share what is static.
std::unique_ptr<Service> g_pool;
ImageRef g_image;

void Steady(benchmark::State& state, const PoolShape& shape) {
  if (state.thread_index() == 0) {
    g_pool = MakePool(shape);
    g_image = PatternImage(kImageBytes);
  }
  // No thread gets past this before all have reached it.
  for (auto _ : state) {
    Memory memory =
        OrDie(g_pool->Acquire({.image = g_image, .size_bytes = kMemoryBytes}));
    benchmark::DoNotOptimize(memory.base());
    OrDie(memory.Release());
  }
  if (state.thread_index() == 0) {
    g_pool.reset();
    g_image.reset();
  }
}

void Rebind(benchmark::State& state, const PoolShape& shape) {
  const std::unique_ptr<Service> pool = MakePool(shape);
  const std::array<ImageRef, 2> images = {PatternImage(kImageBytes, 1),
                                          PatternImage(kImageBytes, 2)};
  uint32_t turn = 0;
  for (auto _ : state) {
    Memory memory = OrDie(pool->Acquire(
        {.image = images[turn++ % 2], .size_bytes = kMemoryBytes}));
    benchmark::DoNotOptimize(memory.base());
    OrDie(memory.Release());
  }
}

}  // namespace

void RegisterBenchmarks() {
  for (Backing backing : {Backing::kShared, Backing::kCopied}) {
    for (Resolve resolve : {Resolve::kInThread, Resolve::kHandlerThread}) {
      const PoolShape shape{.backing = backing,
                            .resolve = resolve,
                            .slots = 64,
                            .memory_bytes = kMemoryBytes};
      const std::string name =
          absl::StrCat(BackingName(backing), "/", ResolveName(resolve));
      benchmark::RegisterBenchmark(
          absl::StrCat("steady/", name).c_str(),
          [shape](benchmark::State& state) { Steady(state, shape); })
          ->ThreadRange(1, kMaxThreads)
          ->UseRealTime();
      PoolShape one_slot = shape;
      one_slot.slots = 1;
      benchmark::RegisterBenchmark(
          absl::StrCat("rebind/", name).c_str(),
          [one_slot](benchmark::State& state) { Rebind(state, one_slot); });
    }
  }
  for (SlotStrategy strategy :
       {SlotStrategy::kNextAvailable, SlotStrategy::kRandom}) {
    const PoolShape shape{
        .slots = 64, .memory_bytes = kMemoryBytes, .strategy = strategy};
    benchmark::RegisterBenchmark(
        absl::StrCat("steady/shared/in-thread/",
                     std::string(SlotStrategyName(strategy)))
            .c_str(),
        [shape](benchmark::State& state) { Steady(state, shape); })
        ->UseRealTime();
  }
  benchmark::RegisterBenchmark(
      "kernel/MADV_DONTNEED", [](benchmark::State& state) {
        Mapping mapping(kMemoryBytes, PatternImage(kImageBytes));
        for (auto _ : state) mapping.Drop();
      });
  benchmark::RegisterBenchmark("kernel/mmap", [](benchmark::State& state) {
    Mapping mapping(kMemoryBytes, PatternImage(kImageBytes));
    for (auto _ : state) mapping.MapAnew();
  });
}

}  // namespace firsttouch::bench
