// A report as text for people and in the formats for programs.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_PRINT_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_PRINT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

// Whether a name is to be shown; null: all are.
using Filter = std::function<bool(const std::string&)>;

// Of options.filter(). InvalidArgument for a regular expression that is none.
absl::StatusOr<Filter> MakeFilter(const Options& options);
// Whether it keeps a slot that an address lies in.
bool Keeps(const Filter& filter, const Location& location);

// Leaves out what options.filter() does not find in the names of slots and
// images, sorts by options.sort(), and, but for text, keeps options.limit()
// rows. InvalidArgument for a regular expression or a column that is none.
absl::Status FilterAndSort(const Options& options, Report* report);

// The report in options.format(). Text has colours where the style has. The
// other formats are the same whatever the style.
absl::StatusOr<std::string> PrintReport(const Report& report,
                                        const Options& options,
                                        const cli::TextStyle& style);

// The picture of `map` and `image` for a file: an HTML page, or SVG.
absl::StatusOr<std::string> PictureFile(const Report& report, bool html,
                                        const cli::TextStyle& style);

// Of PrintReport's text, the part for a layout, and so on.
std::string LayoutText(const LayoutReport& report, const cli::TextStyle& style);
// Its parts, where the ranges are printed one by one: what is above them, their
// columns, their sum, and what is below them.
std::string LayoutHead(const LayoutReport& report, const cli::TextStyle& style);
cli::Columns<LayoutReport::Range> ShownRangeColumns(bool repeats, bool named);
std::vector<cli::Value> RangeTotal(
    const cli::Columns<LayoutReport::Range>& columns, uint64_t bytes);
std::string LayoutTail(const LayoutReport& report, const cli::TextStyle& style);
// A line below that of a text in which an address stands.
std::string FoundBelow(const LocateReport::Found& found,
                       const cli::TextStyle& style);
std::string LocateText(const LocateReport& report, const cli::TextStyle& style);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_PRINT_H_
