#include "firsttouch/bench/cycle_samples.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

#include "firsttouch/bench/clock.h"
#include "firsttouch/bench/quantiles.h"

namespace firsttouch::bench {

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

// The clock of some machines moves in steps of 10 ns. Samples that follow each
// other without a gap add up exactly, so short ones are taken some at a time.
double MedianCycleNs(const std::vector<uint64_t>& ticks) {
  constexpr size_t kTogether = 20;
  constexpr uint64_t kShortNs = 2000;
  auto median = static_cast<double>(Median(ticks));
  if (TicksToNs(static_cast<uint64_t>(median)) <= kShortNs &&
      ticks.size() >= 2 * kTogether) {
    std::vector<double> groups;
    for (size_t i = 0; i + kTogether <= ticks.size(); i += kTogether) {
      const auto first = ticks.begin() + static_cast<ptrdiff_t>(i);
      const uint64_t sum =
          std::accumulate(first, first + kTogether, uint64_t{0});
      groups.push_back(static_cast<double>(sum) / kTogether);
    }
    median = Median(std::move(groups));
  }
  return std::max(median - EmptyLoopTicks(), 0.0) / TicksPerNs();
}

double MeanCycleNs(const std::vector<uint64_t>& ticks) {
  constexpr double kInterruptedNs = 500'000;
  constexpr uint64_t kInterruptedMedians = 10;
  const uint64_t longest =
      std::max(static_cast<uint64_t>(kInterruptedNs * TicksPerNs()),
               kInterruptedMedians * Median(ticks));
  uint64_t sum = 0;
  size_t cycles = 0;
  for (const uint64_t cycle : ticks) {
    if (cycle > longest) continue;
    sum += cycle;
    ++cycles;
  }
  const double mean = static_cast<double>(sum) / static_cast<double>(cycles);
  return std::max(mean - EmptyLoopTicks(), 0.0) / TicksPerNs();
}

void RoundSamples::Add(
    const std::vector<std::vector<uint64_t>>& ticks_of_threads) {
  double slowest = 0;
  double sum = 0;
  uint64_t worst = 0;
  size_t cycles = 0;
  for (const std::vector<uint64_t>& ticks : ticks_of_threads) {
    slowest = std::max(slowest, MedianCycleNs(ticks));
    worst = std::max(worst, Quantile(ticks, 0.99));
    sum += MeanCycleNs(ticks) * static_cast<double>(ticks.size());
    cycles += ticks.size();
  }
  median_ns.push_back(slowest);
  mean_ns.push_back(sum / static_cast<double>(cycles));
  p99_ns.push_back(TicksToNs(worst));
}

}  // namespace firsttouch::bench
