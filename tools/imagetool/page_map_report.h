// `imagetool map`: what each page of an image is.
//
// commands.h has what is true of all commands. Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_PAGE_MAP_REPORT_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_PAGE_MAP_REPORT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"

namespace firsttouch::imagetool {

// InvalidArgument if one of `outputs` is the file itself.
absl::StatusOr<MapReport> Map(const std::string& path,
                              const std::vector<std::string>& outputs);

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_PAGE_MAP_REPORT_H_
