// The map of an image as a picture (../picture).
//
// Errors: InvalidArgument, of a map that the picture refuses.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_MAP_PICTURE_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_MAP_PICTURE_H_

#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"
#include "firsttouch/tools/picture/picture.h"

namespace firsttouch::imagetool {

absl::StatusOr<std::string> TerminalPictureOf(
    const MapReport& report, const picture::TerminalOptions& options);

absl::StatusOr<std::string> SvgOf(const MapReport& report);
absl::StatusOr<std::string> HtmlOf(const MapReport& report);

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_MAP_PICTURE_H_
