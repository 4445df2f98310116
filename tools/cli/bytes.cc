#include "firsttouch/tools/cli/bytes.h"

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace firsttouch::cli {
namespace {

constexpr char kSizeRule[] =
    "is not a size: a number of bytes, or a number with a unit from KiB to "
    "EiB, as in \"4GiB\"";

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(const std::string& what,
                                    const std::string& text) {
  const auto wrong = [&](const char* rule) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " \"", text, "\" ", rule));
  };
  std::string number(absl::StripAsciiWhitespace(text));
  size_t end = 0;
  while (end < number.size() &&
         (std::isdigit(static_cast<unsigned char>(number[end])) != 0 ||
          number[end] == '.')) {
    ++end;
  }
  std::string unit(absl::StripAsciiWhitespace(number.substr(end)));
  number.resize(end);
  absl::AsciiStrToLower(&unit);
  if (absl::EndsWith(unit, "ib")) {
    unit.resize(unit.size() - 2);
    if (unit.empty()) return wrong(kSizeRule);
  } else if (unit == "b") {
    unit.clear();
  }
  static constexpr char kUnits[] = "kmgtpe";
  int shift = 0;
  if (!unit.empty()) {
    const std::string units = kUnits;
    const size_t at = units.find(unit);
    if (unit.size() != 1 || at == std::string::npos) return wrong(kSizeRule);
    shift = 10 * static_cast<int>(at + 1);
  }
  uint64_t whole = 0;
  if (absl::SimpleAtoi(number, &whole)) {
    if (shift != 0 && whole > (~uint64_t{0} >> shift)) {
      return wrong("does not fit 64 bits");
    }
    return whole << shift;
  }
  // "1.5GiB": exact, or refused.
  const size_t dot = number.find('.');
  if (dot == std::string::npos || dot == 0 || dot + 1 == number.size() ||
      number.find('.', dot + 1) != std::string::npos) {
    if (dot == std::string::npos && !number.empty()) {
      return wrong("does not fit 64 bits");
    }
    return wrong(kSizeRule);
  }
  uint64_t fraction = 0;
  const std::string digits = number.substr(dot + 1);
  if (digits.size() > 6 || !absl::SimpleAtoi(number.substr(0, dot), &whole) ||
      !absl::SimpleAtoi(digits, &fraction)) {
    return wrong(kSizeRule);
  }
  uint64_t scale = 1;
  for (size_t i = 0; i < digits.size(); ++i) scale *= 10;
  const unsigned __int128 scaled =
      (static_cast<unsigned __int128>(whole) * scale + fraction) << shift;
  if (scaled % scale != 0) return wrong("is no whole number of bytes");
  if (scaled / scale > ~uint64_t{0}) return wrong("does not fit 64 bits");
  return static_cast<uint64_t>(scaled / scale);
}

}  // namespace firsttouch::cli
