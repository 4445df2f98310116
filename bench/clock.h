// Time for cycles that take less than a call of clock_gettime(2).

#ifndef FIRSTTOUCH_BENCH_CLOCK_H_
#define FIRSTTOUCH_BENCH_CLOCK_H_

#include <cstdint>

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

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CLOCK_H_
