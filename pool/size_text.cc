#include "firsttouch/pool/size_text.h"

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace firsttouch {
namespace {

// Shorter numbers are readable as they are.
constexpr uint64_t kLongBytes = uint64_t{1} << 20;

// The size in the largest unit that leaves at least 1, with at most four
// digits.
struct InUnit {
  std::string text;  // "1.5 GiB"
  bool exact;
};

InUnit Split(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"bytes", "KiB", "MiB", "GiB",
                                           "TiB",   "PiB", "EiB"};
  size_t unit = 0;
  while (unit + 1 < std::size(kUnits) && bytes >> (10 * (unit + 1)) != 0) {
    ++unit;
  }
  const uint64_t one = uint64_t{1} << (10 * unit);
  const double value = static_cast<double>(bytes) / static_cast<double>(one);
  const std::string number = absl::StrFormat("%.4g", value);
  // Quarters of a unit have few enough digits below 100 units.
  const bool exact =
      bytes % one == 0 || (bytes % (one / 4) == 0 && value < 100);
  return {absl::StrCat(number, " ", kUnits[unit]), exact};
}

}  // namespace

std::string SizeText(uint64_t bytes) {
  const InUnit in_unit = Split(bytes);
  if (bytes < kLongBytes || !in_unit.exact) return absl::StrCat(bytes);
  return absl::StrCat(bytes, " (", in_unit.text, ")");
}

std::string BytesText(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " bytes");
  return absl::StrCat(bytes, " bytes (", Split(bytes).text, ")");
}

}  // namespace firsttouch
