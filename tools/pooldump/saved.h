// Reports that were saved, to be looked at later.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SAVED_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SAVED_H_

#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

// What a command printed with --format=proto, json or textproto; the contents
// tell which. "-" is standard input. Errors name the file: of the system's
// calls; InvalidArgument for what is none of the three, or larger than 1 GiB.
absl::StatusOr<Report> ReadReport(const std::string& path);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SAVED_H_
