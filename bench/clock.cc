#include "firsttouch/bench/clock.h"

#include <time.h>

namespace firsttouch::bench {
namespace {

uint64_t RawNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<uint64_t>(now.tv_nsec);
}

double Calibrate() {
  constexpr uint64_t kCalibrationNs = 20'000'000;
  const uint64_t start_ns = RawNanos();
  const uint64_t start_ticks = NowTicks();
  uint64_t now_ns = start_ns;
  while (now_ns - start_ns < kCalibrationNs) now_ns = RawNanos();
  return static_cast<double>(NowTicks() - start_ticks) /
         static_cast<double>(now_ns - start_ns);
}

}  // namespace

double TicksPerNs() {
  static const double ticks_per_ns = Calibrate();
  return ticks_per_ns;
}

}  // namespace firsttouch::bench
