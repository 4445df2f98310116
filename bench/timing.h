// Time: how it is taken, and how many samples become one number.

#ifndef FIRSTTOUCH_BENCH_TIMING_H_
#define FIRSTTOUCH_BENCH_TIMING_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace firsttouch::bench {

// Ticks of the processor's time stamp counter, which runs at a constant rate on
// every x86-64 that firsttouch runs on. Not ordered with the instructions
// around it: measure at least some dozens of ns.
inline uint64_t NowTicks() { return __builtin_ia32_rdtsc(); }

// How many ticks there are in a ns; measured once, against CLOCK_MONOTONIC_RAW.
double TicksPerNs();

inline double TicksToNs(uint64_t ticks) {
  return static_cast<double>(ticks) / TicksPerNs();
}

// Since NowTicks() was `ticks`.
inline double NsSince(uint64_t ticks) { return TicksToNs(NowTicks() - ticks); }

// The value that `part` (0 to 1) of the samples do not exceed; 0 for none.
template <typename T>
T Quantile(std::vector<T> samples, double part) {
  if (samples.empty()) return T{};
  const auto index = static_cast<size_t>(
      std::lround(part * static_cast<double>(samples.size() - 1)));
  std::nth_element(samples.begin(), samples.begin() + index, samples.end());
  return samples[index];
}

template <typename T>
T Median(std::vector<T> samples) {
  return Quantile(std::move(samples), 0.5);
}

// The median of the rounds' ratios, of as many rounds as both have; nullopt
// without one whose denominator is above 0.
std::optional<double> MedianRatio(const std::vector<double>& numerators,
                                  const std::vector<double>& denominators);

// What the clock and the loop around a cycle take by themselves, in ticks.
double EmptyLoopTicks();

// The median of cycles that followed each other without a gap, in ns, without
// the clock's share. `ticks` must not be empty.
double MedianCycleNs(const std::vector<uint64_t>& ticks);

// Their mean, in which what happens every some cycles shows. Cycles of more
// than ten medians and half a ms are left out: in these the thread did not run,
// another program did.
double MeanCycleNs(const std::vector<uint64_t>& ticks);

// A round of cycles in one thread, or in several at the same time: the slowest
// thread's median, the mean of all, the worst 99th percentile.
struct RoundTimes {
  double median_ns = 0;
  double mean_ns = 0;
  double p99_ns = 0;
};
RoundTimes TimesOfRound(
    const std::vector<std::vector<uint64_t>>& ticks_of_threads);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_TIMING_H_
