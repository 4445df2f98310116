#include "firsttouch/tools/cli/table.h"

#include <array>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace firsttouch::cli {
namespace {

const char* ColorOf(Tint tint) {
  switch (tint) {
    case Tint::kGood:
      return "\033[32m";
    case Tint::kWeak:
      return "\033[33m";
    case Tint::kBad:
      return "\033[31m";
    case Tint::kDim:
      return "\033[2m";
    case Tint::kHead:
      return "\033[1m";
    case Tint::kNone:
      break;
  }
  return "";
}

// Bytes of the UTF-8 character at the start of `text`; 0: it is none.
size_t CharacterBytes(const char* text, size_t bytes) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t length = lead < 0x80                    ? 1
                        : lead >= 0xc2 && lead <= 0xdf ? 2
                        : lead >= 0xe0 && lead <= 0xef ? 3
                        : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                       : 0;
  if (length > bytes) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
  }
  return length;
}

bool IsNumber(const Value& value) { return value.kind != Value::Kind::kText; }

std::string CsvField(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + '"';
}

void AppendRow(const std::vector<std::string>& cells,
               const std::vector<Value>* values,
               const std::vector<size_t>& widths,
               const std::vector<bool>& right, const TextStyle& style,
               const std::string& indent, std::string* out) {
  std::string line = indent;
  size_t owed = 0;  // blanks, if anything follows
  for (size_t i = 0; i < cells.size(); ++i) {
    if (i > 0) owed += 2;
    const size_t fill = widths[i] - Width(cells[i]);
    if (right[i]) owed += fill;
    if (!cells[i].empty()) {
      line.append(owed, ' ');
      owed = 0;
      line += Tinted(style, values == nullptr ? Tint::kHead : (*values)[i].tint,
                     cells[i]);
    }
    if (!right[i]) owed += fill;
  }
  absl::StrAppend(out, line, "\n");
}

}  // namespace

Value Value::Text(std::string text, Tint tint) {
  Value value;
  value.kind = Kind::kText;
  value.text = std::move(text);
  value.tint = tint;
  return value;
}

Value Value::Count(uint64_t number, Tint tint) {
  Value value;
  value.kind = Kind::kCount;
  value.number = number;
  value.tint = tint;
  return value;
}

Value Value::Bytes(uint64_t number, Tint tint) {
  Value value = Count(number, tint);
  value.kind = Kind::kBytes;
  return value;
}

Value Value::Hex(uint64_t number) {
  Value value = Count(number);
  value.kind = Kind::kHex;
  // Addresses and offsets, as one reads them.
  value.rising = true;
  return value;
}

Value Value::Share(double share) {
  Value value;
  value.kind = Kind::kShare;
  value.share = share;
  return value;
}

bool Value::Before(const Value& a, const Value& b) {
  if (a.kind == Kind::kUnknown || b.kind == Kind::kUnknown) {
    return a.kind != Kind::kUnknown && b.kind == Kind::kUnknown;
  }
  if (a.kind == Kind::kText) return a.text < b.text;
  if (a.kind == Kind::kShare) return a.share > b.share;
  if (a.rising) return a.number < b.number;
  return a.number > b.number;
}

std::string BytesText(uint64_t bytes, const TextStyle& style) {
  static constexpr std::array<const char*, 7> kUnits = {
      "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (style.bytes) return absl::StrCat(bytes);
  size_t unit = 0;
  uint64_t whole = bytes;
  while (unit + 1 < kUnits.size() && whole >= 1024) {
    whole >>= 10;
    ++unit;
  }
  if (whole << (10 * unit) == bytes) {
    return absl::StrCat(whole, " ", kUnits[unit]);
  }
  const double scaled = static_cast<double>(bytes) /
                        static_cast<double>(uint64_t{1} << (10 * unit));
  return scaled < 100 ? absl::StrFormat("%.2f %s", scaled, kUnits[unit])
                      : absl::StrFormat("%.1f %s", scaled, kUnits[unit]);
}

std::string HexText(uint64_t number) { return absl::StrFormat("0x%x", number); }

std::string Printable(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t bytes = CharacterBytes(text.data() + i, text.size() - i);
    const auto c = static_cast<unsigned char>(text[i]);
    // C0 and C1 control characters move the cursor, and worse.
    const bool control = c < 0x20 || c == 0x7f ||
                         (c == 0xc2 && bytes == 2 &&
                          static_cast<unsigned char>(text[i + 1]) < 0xa0);
    if (bytes == 0 || control) {
      out += '?';
      i += bytes == 0 ? 1 : bytes;
      continue;
    }
    out.append(text, i, bytes);
    i += bytes;
  }
  return out;
}

size_t Width(const std::string& text) {
  size_t columns = 0;
  bool escape = false;
  for (const char c : text) {
    if (c == '\033') escape = true;
    // Bytes that go on with a character take no column of their own.
    if (!escape && (static_cast<unsigned char>(c) & 0xc0) != 0x80) ++columns;
    if (c == 'm') escape = false;
  }
  return columns;
}

std::string Tinted(const TextStyle& style, Tint tint, const std::string& text) {
  if (!style.color || tint == Tint::kNone || text.empty()) return text;
  return absl::StrCat(ColorOf(tint), text, "\033[0m");
}

std::string ShownAs(const Value& value, const TextStyle& style) {
  switch (value.kind) {
    case Value::Kind::kText:
      return Printable(value.text);
    case Value::Kind::kCount:
      return absl::StrCat(value.number);
    case Value::Kind::kBytes:
      return BytesText(value.number, style);
    case Value::Kind::kHex:
      return HexText(value.number);
    case Value::Kind::kShare:
      return absl::StrFormat("%.1f", value.share);
    case Value::Kind::kUnknown:
      break;
  }
  return "-";
}

std::string TableText(const PlainTable& table, const TextStyle& style,
                      const std::string& indent) {
  const size_t columns = table.titles.size();
  std::vector<size_t> widths(columns);
  std::vector<bool> right(columns, !table.rows.empty());
  std::vector<std::vector<std::string>> cells;
  cells.reserve(table.rows.size() + table.totals.size());
  for (size_t i = 0; i < columns; ++i) widths[i] = Width(table.titles[i]);
  for (const auto* part : {&table.rows, &table.totals}) {
    for (const std::vector<Value>& row : *part) {
      std::vector<std::string>& shown = cells.emplace_back();
      for (size_t i = 0; i < columns; ++i) {
        shown.push_back(ShownAs(row[i], style));
        widths[i] = std::max(widths[i], Width(shown[i]));
        if (part == &table.rows && !IsNumber(row[i])) right[i] = false;
      }
    }
  }
  std::string out;
  AppendRow(table.titles, nullptr, widths, right, style, indent, &out);
  for (size_t i = 0; i < cells.size(); ++i) {
    const size_t total = i - table.rows.size();
    AppendRow(cells[i],
              i < table.rows.size() ? &table.rows[i] : &table.totals[total],
              widths, right, style, indent, &out);
  }
  return out;
}

std::string TableCsv(const PlainTable& table) {
  const TextStyle exact{.bytes = true};
  std::string out;
  for (size_t i = 0; i < table.titles.size(); ++i) {
    absl::StrAppend(&out, i == 0 ? "" : ",", CsvField(table.titles[i]));
  }
  absl::StrAppend(&out, "\r\n");
  for (const std::vector<Value>& row : table.rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      if (i > 0) out += ',';
      if (row[i].kind == Value::Kind::kText) {
        out += CsvField(row[i].text);
      } else if (row[i].kind != Value::Kind::kUnknown) {
        out += ShownAs(row[i], exact);
      }
    }
    absl::StrAppend(&out, "\r\n");
  }
  return out;
}

}  // namespace firsttouch::cli
