// Prints what is too much to be kept: rows as they come.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_STREAM_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_STREAM_H_

#include <functional>
#include <string>
#include <vector>

#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

// Takes a piece of output. Gives what went wrong, or nothing.
using Sink = std::function<std::string(const std::string&)>;

// Calls back with each range, in the same order each time, until that gives
// false.
using Ranges =
    std::function<void(const std::function<bool(const LayoutReport::Range&)>&)>;

// Prints a layout whose ranges are not in `report`: what PrintReport would
// print if they were. Text asks for the ranges twice. Gives what went wrong, or
// nothing.
std::string StreamRanges(const LayoutReport& report, Format format,
                         const cli::TextStyle& style, const Ranges& ranges,
                         const Sink& sink);

// A table as csv, line by line.
template <typename Row>
std::string CsvTitlesOf(const cli::Columns<Row>& columns) {
  std::vector<std::string> titles;
  for (const cli::Column<Row>& column : columns) titles.push_back(column.name);
  return cli::CsvTitles(titles);
}
template <typename Row>
std::vector<cli::Value> CellsOf(const cli::Columns<Row>& columns,
                                const Row& row) {
  std::vector<cli::Value> cells;
  cells.reserve(columns.size());
  for (const cli::Column<Row>& column : columns) {
    cells.push_back(column.value(row));
  }
  return cells;
}
template <typename Row>
std::string CsvLineOf(const cli::Columns<Row>& columns, const Row& row) {
  return cli::CsvLine(CellsOf(columns, row));
}

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_STREAM_H_
