// What each google-benchmark program here defines for benchmark_main.cc.

#ifndef FIRSTTOUCH_BENCH_BENCHMARKS_H_
#define FIRSTTOUCH_BENCH_BENCHMARKS_H_

namespace firsttouch::bench {

void RegisterBenchmarks();

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_BENCHMARKS_H_
