// What imagetool says, as text for people. Texts in reports are fit to print
// already (commands.h). map_picture.h has the map.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_TEXT_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_TEXT_H_

#include <string>

#include "firsttouch/tools/imagetool/imagetool.pb.h"
#include "firsttouch/tools/pooldump/table.h"

namespace firsttouch::imagetool {

std::string TextOf(const ImageReport& report, const pooldump::TextStyle& style);
std::string TextOf(const BuildReport& report, const pooldump::TextStyle& style);
std::string TextOf(const ListReport& report, const pooldump::TextStyle& style);
std::string TextOf(const DiffReport& report, const pooldump::TextStyle& style);
std::string TextOf(const VerifyReport& report,
                   const pooldump::TextStyle& style);
std::string TextOf(const PackReport& report, const pooldump::TextStyle& style);
std::string TextOf(const StatsReport& report, const pooldump::TextStyle& style);

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_TEXT_H_
