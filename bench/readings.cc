#include "firsttouch/bench/readings.h"

#include <sys/resource.h>
#include <time.h>

#include <fstream>
#include <numeric>
#include <string>

namespace firsttouch::bench {
namespace {

uint64_t RawNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<uint64_t>(now.tv_nsec);
}

// Ticks of cycles in ns, without the clock's share.
double CycleNs(double ticks) {
  return std::max(ticks - EmptyLoopTicks(), 0.0) / TicksPerNs();
}

// The clock of some machines moves in steps of 10 ns. Samples that follow each
// other without a gap add up exactly, so short ones are taken some at a time.
double MedianCycleNs(const Ticks& ticks, uint64_t median) {
  constexpr size_t kTogether = 20;
  constexpr uint64_t kShortNs = 2000;
  if (TicksToNs(median) > kShortNs || ticks.size() < 2 * kTogether) {
    return CycleNs(static_cast<double>(median));
  }
  std::vector<double> groups;
  for (size_t i = 0; i + kTogether <= ticks.size(); i += kTogether) {
    const auto first = ticks.begin() + static_cast<ptrdiff_t>(i);
    const uint64_t sum = std::accumulate(first, first + kTogether, uint64_t{0});
    groups.push_back(static_cast<double>(sum) / kTogether);
  }
  return CycleNs(Median(std::move(groups)));
}

double MeanCycleNs(const Ticks& ticks, uint64_t median) {
  constexpr double kInterruptedNs = 500'000;
  constexpr uint64_t kInterruptedMedians = 10;
  const uint64_t longest =
      std::max(static_cast<uint64_t>(kInterruptedNs * TicksPerNs()),
               kInterruptedMedians * median);
  uint64_t sum = 0;
  size_t cycles = 0;
  for (const uint64_t cycle : ticks) {
    if (cycle > longest) continue;
    sum += cycle;
    ++cycles;
  }
  return CycleNs(static_cast<double>(sum) / static_cast<double>(cycles));
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

RoundTimes TimesOfRound(const std::vector<Ticks>& ticks_of_threads) {
  RoundTimes times;
  for (const Ticks& ticks : ticks_of_threads) {
    const auto cycles = static_cast<double>(ticks.size());
    const uint64_t median = Median(ticks);
    times.median_ns = std::max(times.median_ns, MedianCycleNs(ticks, median));
    times.mean_ns += MeanCycleNs(ticks, median) * cycles;
    times.cycles += cycles;
  }
  times.mean_ns /= times.cycles;
  return times;
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
