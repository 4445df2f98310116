#include "firsttouch/tools/cli/table.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

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

Value Value::Signed(int64_t number) {
  Value value = Count(static_cast<uint64_t>(number));
  value.kind = Kind::kSigned;
  value.rising = true;
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
  if (a.kind == Kind::kSigned) {
    return static_cast<int64_t>(a.number) < static_cast<int64_t>(b.number);
  }
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
    case Value::Kind::kSigned:
      return absl::StrCat(static_cast<int64_t>(value.number));
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

TableShape::TableShape(std::vector<std::string> titles, const TextStyle& style,
                       std::string indent)
    : titles_(std::move(titles)),
      style_(style),
      indent_(std::move(indent)),
      right_(titles_.size(), true) {
  for (const std::string& title : titles_) widths_.push_back(Width(title));
}

void TableShape::Measure(const std::vector<Value>& row, bool is_total) {
  for (size_t i = 0; i < widths_.size(); ++i) {
    widths_[i] = std::max(widths_[i], Width(ShownAs(row[i], style_)));
    // Where there are no rows, the sums alone tell what a column has. The first
    // column of sums is a title.
    const bool tells = !is_total || (!has_rows_ && i > 0);
    if (tells && !IsNumber(row[i])) right_[i] = false;
  }
  has_rows_ |= !is_total;
  has_cells_ = true;
}

std::string TableShape::Titles() const {
  std::vector<bool> right = right_;
  if (!has_cells_) right.assign(right.size(), false);
  std::string out;
  AppendRow(titles_, nullptr, widths_, right, style_, indent_, &out);
  return out;
}

std::string TableShape::Row(const std::vector<Value>& row) const {
  std::vector<std::string> cells;
  cells.reserve(row.size());
  for (const Value& value : row) cells.push_back(ShownAs(value, style_));
  std::string out;
  AppendRow(cells, &row, widths_, right_, style_, indent_, &out);
  return out;
}

std::string TableText(const PlainTable& table, const TextStyle& style,
                      const std::string& indent) {
  TableShape shape(table.titles, style, indent);
  for (const std::vector<Value>& row : table.rows) shape.Measure(row);
  for (const std::vector<Value>& row : table.totals) shape.Measure(row, true);
  std::string out = shape.Titles();
  for (const auto* part : {&table.rows, &table.totals}) {
    for (const std::vector<Value>& row : *part) out += shape.Row(row);
  }
  return out;
}

std::string CsvLine(const std::vector<Value>& row) {
  const TextStyle exact{.bytes = true};
  std::string out;
  for (size_t i = 0; i < row.size(); ++i) {
    if (i > 0) out += ',';
    if (row[i].kind == Value::Kind::kText) {
      out += CsvField(row[i].text);
    } else if (row[i].kind != Value::Kind::kUnknown) {
      out += ShownAs(row[i], exact);
    }
  }
  return out + "\r\n";
}

std::string CsvTitles(const std::vector<std::string>& titles) {
  std::vector<Value> row;
  row.reserve(titles.size());
  for (const std::string& title : titles) row.push_back(Value::Text(title));
  return CsvLine(row);
}

std::string TableCsv(const PlainTable& table) {
  std::string out = CsvTitles(table.titles);
  for (const std::vector<Value>& row : table.rows) out += CsvLine(row);
  return out;
}

std::string WrappedAt(size_t columns, size_t indent, const std::string& text) {
  std::string out;
  size_t column = indent;
  for (const std::string& word :
       std::vector<std::string>(absl::StrSplit(text, ' '))) {
    if (column > indent && column + 1 + Width(word) > columns) {
      absl::StrAppend(&out, "\n", std::string(indent, ' '));
      column = indent;
    } else if (!out.empty()) {
      out += ' ';
      ++column;
    }
    out += word;
    column += Width(word);
  }
  return out;
}

}  // namespace firsttouch::cli
