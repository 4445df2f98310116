// What imagetool says, as text for people. Texts in reports are fit to print
// already (commands.h). map_picture.h has the map.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_TEXT_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_TEXT_H_

#include <string>
#include <utility>
#include <vector>

#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"

namespace firsttouch::imagetool {

std::string TextOf(const ImageReport& report, const cli::TextStyle& style);
std::string TextOf(const BuildReport& report, const cli::TextStyle& style);
std::string TextOf(const ListReport& report, const cli::TextStyle& style);
std::string TextOf(const DiffReport& report, const cli::TextStyle& style);
std::string TextOf(const VerifyReport& report, const cli::TextStyle& style);
std::string TextOf(const PackReport& report, const cli::TextStyle& style);
std::string TextOf(const StatsReport& report, const cli::TextStyle& style);

// The main table of a report as csv (cli::TableCsv): names of columns are those
// of the fields in imagetool.proto.
std::string CsvOf(const ImageReport& report);
std::string CsvOf(const BuildReport& report);
std::string CsvOf(const ListReport& report);
std::string CsvOf(const DiffReport& report);
std::string CsvOf(const VerifyReport& report);
std::string CsvOf(const PackReport& report);
std::string CsvOf(const StatsReport& report);
std::string CsvOf(const MapReport& report);

// The names of these columns, by the commands that print them.
std::vector<std::pair<std::string, std::vector<std::string>>> CsvColumns();

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_TEXT_H_
