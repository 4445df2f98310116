// Reads messages in protobuf's text format, with errors that say where.

#ifndef FIRSTTOUCH_TOOLS_CLI_TEXT_FILE_H_
#define FIRSTTOUCH_TOOLS_CLI_TEXT_FILE_H_

#include <cstddef>
#include <functional>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/message.h"

namespace firsttouch::cli {

// Where each field comes from, for errors: "pool.textproto:3:1".
using FieldPlaces = std::map<std::string, std::string>;

// Reads `text` into `message`. InvalidArgument is one line that begins with
// "`name`:LINE:COLUMN: ", both counted from 1. `places` (may be null) gets
// where the fields of the message itself stand.
absl::Status ParseText(const std::string& name, const std::string& text,
                       google::protobuf::Message* message, FieldPlaces* places);

// All of a file; "-" is standard input. Errors name it: of the system's calls,
// and InvalidArgument if it is larger than `most_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     size_t most_bytes);

// Calls `take` with each line of standard input, without its line feed. More is
// read only when all that is there was taken: `more_is_read` is false for the
// last line of what was. The first error, of reading or of `take`, ends it.
absl::Status ForEachLineOfInput(
    const std::function<absl::Status(const std::string& line,
                                     bool more_is_read)>& take);

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_TEXT_FILE_H_
