// A message as JSON.

#ifndef FIRSTTOUCH_TOOLS_CLI_JSON_H_
#define FIRSTTOUCH_TOOLS_CLI_JSON_H_

#include <string>

#include "absl/status/statusor.h"
#include "google/protobuf/message.h"

namespace firsttouch::cli {

// In protobuf's JSON, several lines: field names as in the .proto file, fields
// without a value included.
absl::StatusOr<std::string> AsJson(const google::protobuf::Message& message);
// The same in one line, which ends with a line feed.
absl::StatusOr<std::string> AsJsonLine(
    const google::protobuf::Message& message);

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_JSON_H_
