// From a command line to a report.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_COMMANDS_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_COMMANDS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/flags.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"
#include "firsttouch/tools/pooldump/stream.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch::pooldump {

struct Answer {
  int exit_code = kExitOk;
  // One line, without a line feed, that says what is wrong and what to do;
  // empty where there is a report.
  std::string error;
  // Filtered and sorted.
  Report report;
};

// Does what the command line asks for, but for printing, --watch and
// --interval. May read standard input (`locate` without an address).
Answer MakeAnswer(const CommandLine& line, Kernel& kernel);

// Does it and prints, where that needs memory in proportion to what is printed
// or read otherwise: `layout --all`, and `locate` of a log, whose lines are
// printed as they come. Nothing: this is not one of these.
std::optional<Answer> Stream(const CommandLine& line, Kernel& kernel,
                             const cli::TextStyle& style, const Sink& sink);

// Error and exit code of a process, a core or an image that cannot be read.
Answer CannotRead(const absl::Status& status);
// The same of a command line, or of a file that it names, that is wrong.
Answer WrongUsage(const absl::Status& status);

// All addresses in a text: "0x" and up to 16 hexadecimal digits, or 9 to 16
// such digits that stand alone. In their order, with the line, from 1.
struct AddressInText {
  uint64_t address = 0;
  uint64_t line = 0;
};
std::vector<AddressInText> AddressesIn(const std::string& text);

// "0x7f00", "7f00": hexadecimal in either case. InvalidArgument otherwise.
absl::StatusOr<uint64_t> ParseAddress(const std::string& word);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_COMMANDS_H_
