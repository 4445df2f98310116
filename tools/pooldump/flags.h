// The command line: from words to the Options message, and the texts that are
// made of the same description of it: help, the manual page, completions.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_FLAGS_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_FLAGS_H_

#include <optional>
#include <string>
#include <vector>

#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

inline constexpr int kExitOk = 0;
// The answer is bad news: `layout`: the pool does not fit here.
inline constexpr int kExitBadNews = 1;
// What was asked about cannot be read: no such process, no permission, ...
inline constexpr int kExitCannotRead = 2;
// The command line, or a file that describes a pool, is wrong.
inline constexpr int kExitUsage = cli::kExitUsage;

struct CommandLine {
  Options options;
  // The flag that set each field of options.pool(): "--memory-bytes".
  cli::FieldPlaces pool_places;

  // Set: nothing is to be done but to print this and end.
  std::optional<cli::Ending> ending;
};

// Parses the words behind the program's name. Never fails: what is wrong is in
// `ending`.
CommandLine ParseCommandLine(const std::vector<std::string>& words);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_FLAGS_H_
