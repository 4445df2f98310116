// Medians and the like. A mean has no place here: on a machine with other work
// it tells of that work.

#ifndef FIRSTTOUCH_BENCH_QUANTILES_H_
#define FIRSTTOUCH_BENCH_QUANTILES_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
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

// The median of the rounds' ratios, of as many rounds as both have; nullopt
// without one whose denominator is above 0. The arguments are vectors of double
// or protobuf's repeated fields.
template <typename Rounds>
std::optional<double> MedianRatio(const Rounds& numerators,
                                  const Rounds& denominators) {
  std::vector<double> ratios;
  auto numerator = numerators.begin();
  for (auto denominator = denominators.begin();
       numerator != numerators.end() && denominator != denominators.end();
       ++numerator, ++denominator) {
    if (*denominator > 0) ratios.push_back(*numerator / *denominator);
  }
  if (ratios.empty()) return std::nullopt;
  return Median(std::move(ratios));
}

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_QUANTILES_H_
