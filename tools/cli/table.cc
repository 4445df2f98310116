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
      // Legible on white, too, which yellow is not.
      return "\033[35m";
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

constexpr std::array<const char*, 7> kUnits = {"B",   "KiB", "MiB", "GiB",
                                               "TiB", "PiB", "EiB"};

// The largest unit that is not larger than the size.
size_t UnitOf(uint64_t bytes) {
  size_t unit = 0;
  for (; unit + 1 < kUnits.size() && bytes >= 1024; bytes >>= 10) ++unit;
  return unit;
}

bool IsWhole(uint64_t bytes) {
  const size_t shift = 10 * UnitOf(bytes);
  return bytes >> shift << shift == bytes;
}

bool IsSize(const Value& value) {
  return value.kind == Value::Kind::kBytes ||
         value.kind == Value::Kind::kBytesChange;
}

uint64_t Magnitude(uint64_t signed_number) {
  return static_cast<int64_t>(signed_number) < 0 ? uint64_t{0} - signed_number
                                                 : signed_number;
}

const char* Sign(uint64_t signed_number) {
  const auto number = static_cast<int64_t>(signed_number);
  return number < 0 ? "-" : number > 0 ? "+" : "";
}

std::string LineOf(const std::vector<Piece>& pieces, const TextStyle& style) {
  std::string line;
  for (const Piece& piece : pieces) {
    line += Tinted(style, piece.tint, piece.text);
  }
  return line + "\n";
}

std::string RateText(double rate) {
  return rate > 0 && rate < 0.05 ? "<0.1" : absl::StrFormat("%.1f", rate);
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

Value Value::Rate(double rate, Tint tint) {
  Value value;
  value.kind = Kind::kRate;
  value.rate = rate;
  value.tint = tint;
  return value;
}

Value Value::CountChange(int64_t number, Tint tint) {
  Value value = Count(static_cast<uint64_t>(number), tint);
  value.kind = Kind::kCountChange;
  return value;
}

Value Value::BytesChange(int64_t number, Tint tint) {
  Value value = CountChange(number, tint);
  value.kind = Kind::kBytesChange;
  return value;
}

bool Value::Before(const Value& a, const Value& b) {
  if (a.kind == Kind::kUnknown || b.kind == Kind::kUnknown) {
    return a.kind != Kind::kUnknown && b.kind == Kind::kUnknown;
  }
  if (a.kind == Kind::kText) return a.text < b.text;
  if (a.kind == Kind::kRate) return a.rate > b.rate;
  if (a.kind == Kind::kCountChange || a.kind == Kind::kBytesChange) {
    return static_cast<int64_t>(a.number) > static_cast<int64_t>(b.number);
  }
  if (a.kind == Kind::kSigned) {
    return static_cast<int64_t>(a.number) < static_cast<int64_t>(b.number);
  }
  if (a.rising) return a.number < b.number;
  return a.number > b.number;
}

std::string BytesText(uint64_t bytes, const TextStyle& style) {
  if (style.bytes) return absl::StrCat(bytes);
  const size_t unit = UnitOf(bytes);
  if (IsWhole(bytes)) {
    return absl::StrCat(bytes >> (10 * unit), " ", kUnits[unit]);
  }
  const double scaled = static_cast<double>(bytes) /
                        static_cast<double>(uint64_t{1} << (10 * unit));
  return scaled < 100 ? absl::StrFormat("%.2f %s", scaled, kUnits[unit])
                      : absl::StrFormat("%.1f %s", scaled, kUnits[unit]);
}

std::string ColumnBytesText(uint64_t bytes, bool whole,
                            const TextStyle& style) {
  if (whole || style.bytes || bytes < 1024) return BytesText(bytes, style);
  size_t unit = UnitOf(bytes);
  double scaled = static_cast<double>(bytes) /
                  static_cast<double>(uint64_t{1} << (10 * unit));
  // It would be rounded to 1024.0.
  if (scaled >= 1023.95 && unit + 1 < kUnits.size()) {
    scaled /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", scaled, kUnits[unit]);
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

std::string Cut(const std::string& text, size_t columns) {
  size_t seen = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) == 0x80) continue;
    if (seen++ == columns) return text.substr(0, i);
  }
  return text;
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
    case Value::Kind::kRate:
      return RateText(value.rate);
    case Value::Kind::kCountChange:
      return absl::StrCat(Sign(value.number), Magnitude(value.number));
    case Value::Kind::kBytesChange:
      return absl::StrCat(Sign(value.number),
                          BytesText(Magnitude(value.number), style));
    case Value::Kind::kUnknown:
      break;
  }
  return "-";
}

std::vector<std::string> FitTable(const TextStyle& style,
                                  std::vector<int> ranks, PlainTable* table) {
  std::vector<std::string> removed;
  if (style.columns == 0) return removed;
  TableShape shape(table->titles, style);
  for (const auto& row : table->rows) shape.Measure(row);
  for (const auto& row : table->totals) shape.Measure(row, true);
  std::vector<bool> stays(ranks.size(), true);
  while (true) {
    size_t width = 0;
    size_t worst = ranks.size();
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (!stays[i]) continue;
      width += (width == 0 ? 0 : 2) + shape.WidthOf(i);
      if (ranks[i] > 0 && (worst == ranks.size() || ranks[i] >= ranks[worst])) {
        worst = i;
      }
    }
    if (width <= style.columns || worst == ranks.size()) break;
    stays[worst] = false;
  }
  const auto keep = [&stays](auto* cells) {
    size_t kept = 0;
    for (size_t i = 0; i < stays.size(); ++i) {
      if (stays[i]) std::swap((*cells)[kept++], (*cells)[i]);
    }
    cells->resize(kept);
  };
  for (size_t i = 0; i < stays.size(); ++i) {
    if (!stays[i]) removed.push_back(table->titles[i]);
  }
  keep(&table->titles);
  for (auto& row : table->rows) keep(&row);
  for (auto& row : table->totals) keep(&row);
  return removed;
}

void ShortenTexts(size_t columns, std::vector<std::vector<Value>>* rows) {
  constexpr char kMark[] = "...";
  constexpr size_t kMarkColumns = sizeof(kMark) - 1;
  for (std::vector<Value>& row : *rows) {
    for (Value& value : row) {
      if (value.kind != Value::Kind::kText) continue;
      std::string shown = Printable(value.text);
      if (Width(shown) <= columns || columns < kMarkColumns) continue;
      value.text = Cut(shown, columns - kMarkColumns) + kMark;
    }
  }
}

TableShape::TableShape(std::vector<std::string> titles, const TextStyle& style,
                       std::string indent)
    : titles_(std::move(titles)),
      style_(style),
      indent_(std::move(indent)),
      whole_(titles_.size(), true),
      right_(titles_.size(), true) {
  for (const std::string& title : titles_) widths_.push_back(Width(title));
  whole_widths_ = widths_;
}

void TableShape::Measure(const std::vector<Value>& row, bool is_total) {
  for (size_t i = 0; i < titles_.size(); ++i) {
    const Value& value = row[i];
    if (IsSize(value)) {
      const uint64_t bytes = value.kind == Value::Kind::kBytes
                                 ? value.number
                                 : Magnitude(value.number);
      if (!IsWhole(bytes)) whole_[i] = false;
      const size_t sign = value.kind == Value::Kind::kBytes ? 0 : 1;
      widths_[i] = std::max(
          widths_[i], sign + Width(ColumnBytesText(bytes, false, style_)));
      whole_widths_[i] = std::max(
          whole_widths_[i], sign + Width(ColumnBytesText(bytes, true, style_)));
    } else {
      const size_t width = Width(ShownAs(value, style_));
      widths_[i] = std::max(widths_[i], width);
      whole_widths_[i] = std::max(whole_widths_[i], width);
    }
    // Where there are no rows, the sums alone tell what a column has. The first
    // column of sums is a title.
    const bool tells = !is_total || (!has_rows_ && i > 0);
    if (tells && !IsNumber(value)) right_[i] = false;
  }
  has_rows_ |= !is_total;
  has_cells_ = true;
}

size_t TableShape::WidthOf(size_t column) const {
  return whole_[column] ? whole_widths_[column] : widths_[column];
}

std::string TableShape::Shown(const Value& value, size_t column) const {
  if (value.kind == Value::Kind::kBytes) {
    return ColumnBytesText(value.number, whole_[column], style_);
  }
  if (value.kind == Value::Kind::kBytesChange) {
    return absl::StrCat(
        Sign(value.number),
        ColumnBytesText(Magnitude(value.number), whole_[column], style_));
  }
  return ShownAs(value, style_);
}

std::vector<Piece> TableShape::Pieces(const std::vector<std::string>& cells,
                                      const std::vector<Value>* values) const {
  std::vector<Piece> pieces;
  if (!indent_.empty()) pieces.push_back({indent_});
  size_t owed = 0;  // Blanks, if anything follows.
  for (size_t i = 0; i < cells.size(); ++i) {
    if (i > 0) owed += 2;
    const size_t fill = WidthOf(i) - Width(cells[i]);
    // Titles of a table without any cell stand at the left.
    const bool right = right_[i] && has_cells_;
    if (right) owed += fill;
    if (!cells[i].empty()) {
      if (owed > 0) pieces.push_back({std::string(owed, ' ')});
      owed = 0;
      pieces.push_back(
          {cells[i], values == nullptr ? Tint::kHead : (*values)[i].tint});
    }
    if (!right) owed += fill;
  }
  return pieces;
}

std::vector<Piece> TableShape::TitlePieces() const {
  return Pieces(titles_, nullptr);
}

std::vector<Piece> TableShape::RowPieces(const std::vector<Value>& row) const {
  std::vector<std::string> cells;
  cells.reserve(row.size());
  for (size_t i = 0; i < row.size(); ++i) cells.push_back(Shown(row[i], i));
  return Pieces(cells, &row);
}

std::string TableShape::Titles() const { return LineOf(TitlePieces(), style_); }

std::string TableShape::Row(const std::vector<Value>& row) const {
  return LineOf(RowPieces(row), style_);
}

const char* SortMark(const Value& value, bool backwards) {
  const bool rises = value.rising || value.kind == Value::Kind::kText ||
                     value.kind == Value::Kind::kSigned;
  return rises == backwards ? "v" : "^";
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
    } else if (row[i].kind == Value::Kind::kRate) {
      absl::StrAppend(&out, row[i].rate);
    } else if (row[i].kind == Value::Kind::kCountChange ||
               row[i].kind == Value::Kind::kBytesChange) {
      absl::StrAppend(&out, static_cast<int64_t>(row[i].number));
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
