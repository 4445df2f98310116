// Medians and the like. A mean has no place here: on a machine with other work
// it tells of that work.

#ifndef FIRSTTOUCH_BENCH_QUANTILES_H_
#define FIRSTTOUCH_BENCH_QUANTILES_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace firsttouch::bench {

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

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_QUANTILES_H_
