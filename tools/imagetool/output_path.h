// Where files are written that the command line names, and what they are
// called.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_IMAGETOOL_OUTPUT_PATH_H_
#define FIRSTTOUCH_TOOLS_IMAGETOOL_OUTPUT_PATH_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace firsttouch::imagetool {

// "a/guest.ftimg": "a/guest.ftimg.zst", and back. FailedPrecondition: packed
// does not end in ".zst".
std::string PackedName(const std::string& path);
absl::StatusOr<std::string> UnpackedName(const std::string& packed);

// Where a file is written that the command line names: "-" is standard output.
std::string OutputPath(const std::string& path);

// Whether two paths name the same output: a file, or standard output. Asks the
// file system about links.
bool SameOutput(const std::string& a, const std::string& b);

// Writes a text under a name, whole or not at all; "-" is standard output.
absl::Status WriteTextFile(const std::string& path, const std::string& text);

}  // namespace firsttouch::imagetool

#endif  // FIRSTTOUCH_TOOLS_IMAGETOOL_OUTPUT_PATH_H_
