// Processes and their slots, as text for people and as csv.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_PROCESS_TEXT_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_PROCESS_TEXT_H_

#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

// The columns of slots that `options` ask for: with rates where there are some
// (`rated`). InvalidArgument for a name that none has.
absl::StatusOr<cli::Columns<Slot>> SlotColumnsFor(const Options& options,
                                                  bool rated);
// Whether a process has been looked at more than once.
bool HasRates(const ProcessSnapshot& process);

// Texts. Tables have the columns, the rows and the mark of the sorted column
// that `options` ask for; where no columns are named, those that the terminal
// has room for.
std::string LiveText(const ProcessSnapshot& process, const Options& options,
                     const cli::TextStyle& style);
std::string CoreText(const CoreReport& report, const Options& options,
                     const cli::TextStyle& style);
std::string PsText(const PsReport& report, const Options& options,
                   const cli::TextStyle& style);
std::string DiffText(const DiffReport& report, const Options& options,
                     const cli::TextStyle& style);

// Slots of all pools, with the pool's name and number in front; with `batch`
// the time in front of that. Titles and rows apart, since a batch prints
// titles once.
std::string SlotsCsvTitles(const Options& options, bool rated);
std::string SlotsCsvRows(const ProcessSnapshot& process, const Options& options,
                         bool rated);
std::string PsCsv(const PsReport& report, const Options& options);
std::string DiffCsv(const DiffReport& report, const Options& options);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_PROCESS_TEXT_H_
