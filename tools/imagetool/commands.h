// What imagetool does, without its command line and without printing: each
// function gives the message that is printed as text or JSON. build.h and
// page_map_report.h have two more.
//
// Errors are those of init/image_file.h and init/wasm/wasm_image.h: one line
// that names the file, the value and the rule. Files are written under their
// name when they are whole, or not at all, and never over what is read. Texts
// in messages have no control characters and are UTF-8, whatever files hold.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_COMMANDS_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_COMMANDS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"
#include "firsttouch/tools/imagetool/opening.h"

namespace firsttouch::imagetool {

absl::StatusOr<ImageReport> Info(const std::string& path);
absl::StatusOr<ListReport> List(const std::string& path);
absl::StatusOr<DiffReport> Diff(const std::string& a, const std::string& b,
                                const OpenOptions& options);
// A file that is damaged or not to be read is part of the report.
VerifyReport Verify(const std::vector<std::string>& paths,
                    const OpenOptions& options);
absl::StatusOr<ImageReport> Merge(const std::string& path,
                                  const std::string& out,
                                  const OpenOptions& options, bool replace);
absl::StatusOr<PackReport> Pack(const std::string& path, const std::string& out,
                                const PackOptions& options);
absl::StatusOr<ImageReport> Unpack(const std::string& packed,
                                   const std::string& out,
                                   const UnpackOptions& options);
StatsReport Stats(const std::vector<std::string>& paths,
                  const OpenOptions& options);
}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_COMMANDS_H_
