// Prints what is too much to be kept: rows as they come.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_STREAM_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_STREAM_H_

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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

// `locate` of a text as json, textproto or proto: what PrintReport would print
// of the whole LocateReport, made while the text is read. What is found can be
// printed at once. The text itself, which comes last, waits in a temporary file
// that has no name.
class LocateStream {
 public:
  // Errors of the system's calls name the temporary file.
  static absl::StatusOr<LocateStream> Open(Format format,
                                           const std::string& source);

  // A line of the text, printable, without its line feed, and what is found in
  // it. Appends to `out` what is to be printed; some may wait for more.
  absl::Status Add(const std::string& line,
                   const std::vector<LocateReport::Found>& found,
                   std::string* out);
  // Appends to `out` what waits. To be called before the caller waits.
  absl::Status Print(std::string* out);
  // Prints the rest. Errors: as Add; OutOfRange for a text that is too large
  // for proto (2 GiB). `wrong` gets what the sink says.
  absl::Status Finish(const Sink& sink, std::string* wrong);

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  LocateStream(Format format, std::unique_ptr<std::FILE, CloseFile> file)
      : format_(format), file_(std::move(file)) {}

  absl::Status Begin(const std::string& source);
  absl::Status AddFound(const LocateReport::Found& found, std::string* out);
  absl::Status Spool();

  const Format format_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::string lines_;   // Not in the file yet.
  uint64_t bytes_ = 0;  // In the file.
  bool any_found_ = false;
  Report together_;        // With what was found and waits, for json.
  size_t head_bytes_ = 0;  // Of head_, which is gone once it is printed.
  // What stands before the first that is found, between the last and the text,
  // and behind the text.
  std::string head_, middle_, tail_;
};

// A table as csv, line by line.
template <typename Row>
std::string CsvTitlesOf(const cli::Columns<Row>& columns) {
  std::vector<std::string> titles;
  for (const cli::Column<Row>& column : columns) titles.push_back(column.name);
  return cli::CsvTitles(titles);
}
template <typename Row>
std::string CsvLineOf(const cli::Columns<Row>& columns, const Row& row) {
  return cli::CsvLine(cli::CellsOf(columns, row));
}

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_STREAM_H_
