// What is read while something is measured: the time, and what the kernel
// counts by itself.

#ifndef FIRSTTOUCH_BENCH_READINGS_H_
#define FIRSTTOUCH_BENCH_READINGS_H_

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

// Of cycles of one thread that followed each other without a gap.
using Ticks = std::vector<uint64_t>;

// Page faults so far, of this process, those that another thread has served
// among them, and of its children that have ended (getrusage).
uint64_t Faults();

// Interrupts so far by which a core was told to forget translations, all cores
// and all processes (the TLB line of /proc/interrupts); nullopt without one.
std::optional<uint64_t> TlbShootdowns();

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_READINGS_H_
