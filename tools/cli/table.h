// Tables: rows of a message, columns that say how to read a value from a row.
// Text, csv and sorting are made of the same columns.

#ifndef FIRSTTOUCH_TOOLS_CLI_TABLE_H_
#define FIRSTTOUCH_TOOLS_CLI_TABLE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace firsttouch::cli {

// Colours say nothing that the words do not.
enum class Tint { kNone, kGood, kWeak, kBad, kDim, kHead };

// How text is printed.
struct TextStyle {
  bool color = false;
  // Sizes as numbers of bytes instead of binary units.
  bool bytes = false;
  // Columns of the terminal that it goes to; 0: no terminal, any width will do.
  size_t columns = 0;
};

// A number or a text, with how it is shown.
struct Value {
  enum class Kind {
    kText,
    kCount,
    kSigned,
    kBytes,
    kHex,
    kRate,
    kCountChange,
    kBytesChange,
    kUnknown,
  };
  Kind kind = Kind::kUnknown;
  uint64_t number = 0;  // Of kSigned and of changes in two's complement.
  double rate = 0;
  std::string text;
  Tint tint = Tint::kNone;
  // Sorts the smallest first, where otherwise the largest number is.
  bool rising = false;

  static Value Text(std::string text, Tint tint = Tint::kNone);
  static Value Count(uint64_t number, Tint tint = Tint::kNone);
  // Sorts the smallest first.
  static Value Signed(int64_t number);
  static Value Bytes(uint64_t number, Tint tint = Tint::kNone);
  static Value Hex(uint64_t number);
  // Per second, with one decimal in text. What is not 0 never looks like 0.
  static Value Rate(double rate, Tint tint = Tint::kNone);
  // "+12", "-4 KiB": what was added. Sorts the largest growth first.
  static Value CountChange(int64_t number, Tint tint = Tint::kNone);
  static Value BytesChange(int64_t number, Tint tint = Tint::kNone);
  // Not to be had: "-", and nothing in csv.
  static Value Unknown() { return {}; }

  // Numbers: the larger one first (but for `rising`). Texts: in alphabetical
  // order. What is not known comes last.
  static bool Before(const Value& a, const Value& b);
};

// "4 GiB" where that is exact, "1.50 MiB" otherwise; "4294967296" with
// style.bytes.
std::string BytesText(uint64_t bytes, const TextStyle& style);

// A size among others of its column. `whole`: all of them are whole numbers of
// their units, and have no decimals ("128 KiB"); otherwise each has one
// ("97.7 KiB"), but for those below 1 KiB ("0 B").
std::string ColumnBytesText(uint64_t bytes, bool whole, const TextStyle& style);

// "0x180000000".
std::string HexText(uint64_t number);

// For a terminal: control characters become '?', and what is not UTF-8, too.
std::string Printable(const std::string& text);

// Columns that `text` takes on a terminal; colours take none.
size_t Width(const std::string& text);

// The start of `text`, without colours, that takes at most `columns` columns.
std::string Cut(const std::string& text, size_t columns);

// `text` in a colour, where the style has colours.
std::string Tinted(const TextStyle& style, Tint tint, const std::string& text);

std::string ShownAs(const Value& value, const TextStyle& style);

// A piece of a line, in one colour.
struct Piece {
  std::string text;
  Tint tint = Tint::kNone;
};

// What a table looks like once values were read.
struct PlainTable {
  std::vector<std::string> titles;
  // As many cells as titles each.
  std::vector<std::vector<Value>> rows;
  // Printed below the rows; not in csv. May be empty.
  std::vector<std::vector<Value>> totals;
};

// Lines that end with '\n' and never with a blank. Numbers stand at the right
// of their column.
std::string TableText(const PlainTable& table, const TextStyle& style,
                      const std::string& indent = "");

// Removes columns of `table` until it is no wider than `style.columns`, those
// with the largest of `ranks` first (one for each column; of equal ones the
// last goes first); a rank of 0 stays. Gives the titles of what was removed, in
// the table's order.
std::vector<std::string> FitTable(const TextStyle& style,
                                  std::vector<int> ranks, PlainTable* table);

// Cuts texts of the rows that take more than `columns` columns; they end with
// "..." then. They are printable afterwards.
void ShortenTexts(size_t columns, std::vector<std::vector<Value>>* rows);

// The widths of a table whose rows are not kept: each is measured first, and
// then printed.
class TableShape {
 public:
  TableShape(std::vector<std::string> titles, const TextStyle& style,
             std::string indent = "");

  void Measure(const std::vector<Value>& row, bool is_total = false);
  // Lines, as of TableText.
  std::string Titles() const;
  std::string Row(const std::vector<Value>& row) const;
  // The same as pieces, without the line feed.
  std::vector<Piece> TitlePieces() const;
  std::vector<Piece> RowPieces(const std::vector<Value>& row) const;
  // Columns that a cell takes, without the two blanks between it and the next.
  size_t WidthOf(size_t column) const;

 private:
  std::string Shown(const Value& value, size_t column) const;
  std::vector<Piece> Pieces(const std::vector<std::string>& cells,
                            const std::vector<Value>* values) const;

  const std::vector<std::string> titles_;
  const TextStyle style_;
  const std::string indent_;
  // With sizes as whole numbers, and with a decimal.
  std::vector<size_t> whole_widths_;
  std::vector<size_t> widths_;
  std::vector<bool> whole_;  // All sizes are whole numbers of their units.
  std::vector<bool> right_;  // The column stands at the right.
  bool has_rows_ = false;
  bool has_cells_ = false;
};

// A line of TableCsv.
std::string CsvLine(const std::vector<Value>& row);
std::string CsvTitles(const std::vector<std::string>& titles);

// `text`, which begins at column `indent`, broken at blanks into lines of at
// most `columns` columns where words allow it; further ones begin with as many
// blanks.
std::string WrappedAt(size_t columns, size_t indent, const std::string& text);

// RFC 4180: a line of titles, then the rows, ended by "\r\n" each. Sizes in
// bytes, hexadecimal numbers as they are shown.
std::string TableCsv(const PlainTable& table);

template <typename Row>
struct Column {
  // On the command line, in csv and in the documents.
  std::string name;
  // In text. Empty: the name.
  std::string title;
  std::function<Value(const Row&)> value;
  // Where there is no room for all columns, the largest ranks are left out
  // first; 0 never is.
  int rank = 0;
};

template <typename Row>
using Columns = std::vector<Column<Row>>;

// The column of that name or title. InvalidArgument lists the names that there
// are.
template <typename Row>
absl::StatusOr<const Column<Row>*> FindColumn(const Columns<Row>& columns,
                                              const std::string& name) {
  std::string names;
  for (const Column<Row>& column : columns) {
    if (column.name == name || (!name.empty() && column.title == name)) {
      return &column;
    }
    absl::StrAppend(&names, names.empty() ? "" : ", ", column.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no column \"", name, "\"; there are ", names));
}

// The columns of these names or titles, in their order, each once.
// InvalidArgument lists the names that there are. The name "all" stands for all
// of them.
template <typename Row>
absl::StatusOr<Columns<Row>> ChooseColumns(
    const Columns<Row>& columns, const std::vector<std::string>& names) {
  Columns<Row> chosen;
  for (const std::string& name : names) {
    if (name == "all" && names.size() == 1) return columns;
    const absl::StatusOr<const Column<Row>*> column = FindColumn(columns, name);
    if (!column.ok()) return column.status();
    const bool twice = std::any_of(
        chosen.begin(), chosen.end(),
        [&](const Column<Row>& one) { return one.name == (*column)->name; });
    if (!twice) chosen.push_back(**column);
  }
  return chosen;
}

// Sorts `rows` (something with random access iterators) by a column; "-" in
// front of its name: the other way round. Rows that are equal stay in order. An
// empty `sort` changes nothing.
template <typename Row, typename Rows>
absl::Status SortRows(const Columns<Row>& columns, const std::string& sort,
                      Rows* rows) {
  if (sort.empty()) return absl::OkStatus();
  const bool backwards = sort.front() == '-';
  const absl::StatusOr<const Column<Row>*> column =
      FindColumn(columns, backwards ? sort.substr(1) : sort);
  if (!column.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--sort: ", column.status().message()));
  }
  std::vector<std::pair<Value, size_t>> keys;
  keys.reserve(static_cast<size_t>(rows->size()));
  for (const Row& row : *rows) {
    keys.emplace_back((*column)->value(row), keys.size());
  }
  std::stable_sort(keys.begin(), keys.end(),
                   [backwards](const auto& a, const auto& b) {
                     return backwards ? Value::Before(b.first, a.first)
                                      : Value::Before(a.first, b.first);
                   });
  Rows sorted;
  sorted.Reserve(static_cast<int>(keys.size()));
  for (const auto& [key, index] : keys) {
    sorted.Add()->Swap(&(*rows)[static_cast<int>(index)]);
  }
  rows->Swap(&sorted);
  return absl::OkStatus();
}

template <typename Row>
std::vector<Value> CellsOf(const Columns<Row>& columns, const Row& row) {
  std::vector<Value> cells;
  cells.reserve(columns.size());
  for (const Column<Row>& column : columns) cells.push_back(column.value(row));
  return cells;
}

template <typename Row, typename Rows>
PlainTable MakeTable(const Columns<Row>& columns, const Rows& rows, bool csv) {
  PlainTable table;
  for (const Column<Row>& column : columns) {
    table.titles.push_back(csv || column.title.empty() ? column.name
                                                       : column.title);
  }
  table.rows.reserve(static_cast<size_t>(rows.size()));
  for (const Row& row : rows) {
    table.rows.push_back(CellsOf(columns, row));
  }
  return table;
}

// The mark behind the title of the column by which a table is sorted: "v" where
// values fall from row to row, "^" where they rise. `value` is one of them.
const char* SortMark(const Value& value, bool backwards);

// Puts it there. `sort` is as SortRows takes it.
template <typename Row>
void MarkSorted(const Columns<Row>& columns, const std::string& sort,
                PlainTable* table) {
  if (sort.empty() || table->rows.empty()) return;
  const bool backwards = sort.front() == '-';
  const std::string name = backwards ? sort.substr(1) : sort;
  for (size_t i = 0; i < columns.size(); ++i) {
    if (columns[i].name != name && columns[i].title != name) continue;
    absl::StrAppend(&table->titles[i], " ",
                    SortMark(table->rows.front()[i], backwards));
    return;
  }
}

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_TABLE_H_
