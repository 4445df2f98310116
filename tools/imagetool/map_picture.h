// The map of an image as a picture (../picture).
//
// Errors: InvalidArgument, of a map that the picture refuses.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_MAP_PICTURE_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_MAP_PICTURE_H_

#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"
#include "firsttouch/tools/picture/picture.h"

namespace firsttouch::imagetool {

// `style` says how the size in the title is printed.
absl::StatusOr<std::string> TerminalPictureOf(
    const MapReport& report, const picture::TerminalOptions& options,
    const cli::TextStyle& style);
absl::StatusOr<std::string> SvgOf(const MapReport& report,
                                  const cli::TextStyle& style);
absl::StatusOr<std::string> HtmlOf(const MapReport& report,
                                   const cli::TextStyle& style);

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_MAP_PICTURE_H_
