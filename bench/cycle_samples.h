// From the times of single cycles to the numbers of a row.

#ifndef FIRSTTOUCH_BENCH_CYCLE_SAMPLES_H_
#define FIRSTTOUCH_BENCH_CYCLE_SAMPLES_H_

#include <cstdint>
#include <vector>

namespace firsttouch::bench {

// What the clock and the loop around a cycle take by themselves, in ticks.
double EmptyLoopTicks();

// The median of cycles that followed each other without a gap, in ns, without
// the clock's share. `ticks` must not be empty.
double MedianCycleNs(const std::vector<uint64_t>& ticks);

// Their mean, in which what happens every some cycles shows. Cycles of more
// than ten medians and half a ms are left out: in these the thread did not run,
// another program did.
double MeanCycleNs(const std::vector<uint64_t>& ticks);

// The rounds of one strategy.
struct RoundSamples {
  std::vector<double> median_ns;
  std::vector<double> mean_ns;
  std::vector<double> p99_ns;

  // A round of cycles in one thread, or in several at the same time: what
  // counts is the slowest thread's median, the mean of all, the worst p99.
  void Add(const std::vector<std::vector<uint64_t>>& ticks_of_threads);
};

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CYCLE_SAMPLES_H_
