#include "firsttouch/bench/readings.h"

#include <sys/resource.h>
#include <time.h>

#include <fstream>
#include <string>

namespace firsttouch::bench {
namespace {

uint64_t RawNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

double TicksPerNs() {
  static const double ticks_per_ns = [] {
    constexpr uint64_t kCalibrationNs = 20'000'000;
    const uint64_t start_ns = RawNanos();
    const uint64_t start_ticks = NowTicks();
    uint64_t now_ns = start_ns;
    while (now_ns - start_ns < kCalibrationNs) now_ns = RawNanos();
    return static_cast<double>(NowTicks() - start_ticks) /
           static_cast<double>(now_ns - start_ns);
  }();
  return ticks_per_ns;
}

std::optional<double> MedianRatio(const std::vector<double>& numerators,
                                  const std::vector<double>& denominators) {
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(numerators.size(), denominators.size());
       ++i) {
    if (denominators[i] > 0) ratios.push_back(numerators[i] / denominators[i]);
  }
  if (ratios.empty()) return std::nullopt;
  return Median(std::move(ratios));
}

double EmptyLoopTicks() {
  static const double ticks = [] {
    constexpr int kReadings = 1000;
    std::vector<double> batches;
    for (int batch = 0; batch < 100; ++batch) {
      const uint64_t start = NowTicks();
      for (int i = 1; i < kReadings; ++i) NowTicks();
      batches.push_back(static_cast<double>(NowTicks() - start) / kReadings);
    }
    return Median(std::move(batches));
  }();
  return ticks;
}

uint64_t Faults() {
  rusage own = {};
  rusage children = {};
  getrusage(RUSAGE_SELF, &own);
  getrusage(RUSAGE_CHILDREN, &children);
  return static_cast<uint64_t>(own.ru_minflt + own.ru_majflt +
                               children.ru_minflt);
}

std::optional<uint64_t> TlbShootdowns() {
  std::ifstream interrupts("/proc/interrupts");
  for (std::string word; interrupts >> word;) {
    if (word != "TLB:") continue;
    uint64_t sum = 0;
    for (uint64_t of_core = 0; interrupts >> of_core;) sum += of_core;
    return sum;
  }
  return std::nullopt;
}

}  // namespace firsttouch::bench
