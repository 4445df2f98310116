// Acquire and release alone: nothing is touched in between.
//
//   bazel run -c opt //bench:handover
//
// steady: the slot held the image before. rebind: it held another one. The
// kernel's ways: MADV_DONTNEED of a mapping that nobody touched either, and
// mmap + munmap. bench:cycle has the whole cycle, with touches.
//
// floor: no hand-over, but what bounds those of a memory all of whose pages may
// have changed. To read it and its image is the least that finds out which did
// without asking the kernel; memcpy is what needs to find out nothing.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "firsttouch/bench/benchmarks.h"
#include "firsttouch/bench/scene.h"
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

// A word of each cache line: nobody reads less.
uint64_t SumOfLines(const std::byte* bytes, uint64_t size) {
  constexpr uint64_t kLineBytes = 64;
  uint64_t sum = 0;
  for (uint64_t at = 0; at < size; at += kLineBytes) {
    uint64_t word;
    memcpy(&word, bytes + at, sizeof word);
    sum += word;
  }
  return sum;
}

void ReadBoth(benchmark::State& state) {
  const ImageRef image = PatternImage(kImageBytes);
  Mapping mapping(kImageBytes, image);
  WriteEachPage(mapping.base(), kImageBytes);
  for (auto _ : state) {
    benchmark::DoNotOptimize(SumOfLines(mapping.base(), kImageBytes) +
                             SumOfLines(image->data(), kImageBytes));
  }
}

void CopyImage(benchmark::State& state) {
  const ImageRef image = PatternImage(kImageBytes);
  const Mapping mapping(kImageBytes, image);
  for (auto _ : state) {
    memcpy(mapping.base(), image->data(), kImageBytes);
    benchmark::ClobberMemory();
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
  benchmark::RegisterBenchmark("floor/read memory and image", ReadBoth);
  benchmark::RegisterBenchmark("floor/memcpy of image", CopyImage);
}

}  // namespace firsttouch::bench
