// What a command comes to: a report, or what is wrong.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_ANSWER_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_ANSWER_H_

#include <string>

#include "absl/status/status.h"
#include "firsttouch/tools/pooldump/flags.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

struct Answer {
  int exit_code = kExitOk;
  // One line, without a line feed, that says what is wrong and what to do;
  // empty where there is a report.
  std::string error;
  // Filtered and sorted.
  Report report;
};

// Error and exit code of a process, a core or an image that cannot be read.
Answer CannotRead(const absl::Status& status);
// The same of a command line, or of a file that it names, that is wrong.
Answer WrongUsage(const absl::Status& status);

// What a status says, without line feeds.
std::string OneLine(const absl::Status& status);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_ANSWER_H_
