// How imagetool opens images, and what it says of a file.
//
// Internal to this folder. Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_OPENING_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_OPENING_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/tools/imagetool/imagetool.pb.h"

namespace firsttouch::imagetool {

// What the commands that open images need.
struct OpenOptions {
  // Files among which parents are looked for, by their content's digest.
  std::vector<std::string> parents;
  ImageProgress progress;
};

// Copied and verified: a file that somebody changes meanwhile is an error, not
// a crash or a wrong answer.
OpenImageOptions ForOpening(const OpenOptions& options);

absl::StatusOr<ImageRef> Open(const std::string& path,
                              const OpenOptions& options);

// The error of an image that could not be opened, with what to do where a
// parent is not found.
absl::Status WithWayOut(absl::Status status, const OpenOptions& options);

// InvalidArgument where `out` is the file that is read: whoever mistypes a name
// must not lose that.
absl::Status CheckOutput(const std::string& in, const std::string& out);

uint64_t PagesOf(uint64_t bytes);

// Whatever a report has of others is fit for a terminal and for JSON: a file's
// name may be any bytes.
ImageReport ReportOf(const std::string& path, const ImageFileInfo& info);

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_OPENING_H_
