#include "firsttouch/tools/cli/nearest.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"

namespace firsttouch::cli {
namespace {

// Levenshtein's distance, where two neighbouring letters that are swapped count
// as one change (optimal string alignment).
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<size_t> before;  // The row above `above`.
  std::vector<size_t> above(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) above[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    std::vector<size_t> row(b.size() + 1, i);
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1,
                         above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before = std::move(above);
    above = std::move(row);
  }
  return above[b.size()];
}

}  // namespace

std::string Nearest(const std::string& word,
                    const std::vector<std::string>& names) {
  std::string nearest;
  // A third of the letters may be wrong.
  size_t least = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& name : names) {
    const size_t distance = Distance(word, name);
    if (distance < least) {
      least = distance;
      nearest = name;
    }
  }
  if (!nearest.empty() || word.empty()) return nearest;
  const auto begins = [&word](const std::string& name) {
    return absl::StartsWith(name, word);
  };
  const auto only = std::find_if(names.begin(), names.end(), begins);
  if (only == names.end()) return "";
  return std::find_if(only + 1, names.end(), begins) == names.end() ? *only
                                                                    : "";
}

}  // namespace firsttouch::cli
