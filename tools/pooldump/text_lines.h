// What the texts of all commands are made of.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_TEXT_LINES_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_TEXT_LINES_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/table.h"

namespace firsttouch::pooldump {

// No line of sentences is wider.
inline constexpr size_t kMostColumns = 100;
inline constexpr size_t kLabelColumns = 16;
// No name pushes the numbers of a table off a terminal.
inline constexpr size_t kMostNameColumns = 24;

// Columns that sentences may take.
inline size_t SentenceColumns(const cli::TextStyle& style) {
  return style.columns == 0 || style.columns > kMostColumns ? kMostColumns
                                                            : style.columns;
}

// Appends a line "label    value".
inline void AppendLine(const cli::TextStyle& style, const std::string& label,
                       const std::string& value, std::string* out) {
  absl::StrAppend(
      out, cli::Tinted(style, cli::Tint::kHead, label),
      std::string(
          label.size() < kLabelColumns ? kLabelColumns - label.size() : 1, ' '),
      cli::WrappedAt(SentenceColumns(style), kLabelColumns, value), "\n");
}

// Appends a sentence of its own.
inline void AppendSentence(const cli::TextStyle& style,
                           const std::string& sentence, std::string* out) {
  absl::StrAppend(out, cli::WrappedAt(SentenceColumns(style), 0, sentence),
                  "\n");
}

// "1 slot", "7 slots".
inline std::string Plural(uint64_t number, const char* one, const char* many) {
  return absl::StrCat(number, " ", number == 1 ? one : many);
}

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_TEXT_LINES_H_
