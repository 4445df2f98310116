// From a command line to a report.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_COMMANDS_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_COMMANDS_H_

#include <optional>

#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/answer.h"
#include "firsttouch/tools/pooldump/flags.h"
#include "firsttouch/tools/pooldump/stream.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch::pooldump {

// Does what the command line asks for, but for printing, --watch and
// --interval. May read standard input (`locate` without an address).
Answer MakeAnswer(const CommandLine& line, Kernel& kernel);

// Does it and prints, where that needs memory in proportion to what is printed
// or read otherwise: `layout --all`, and `locate` of a log, whose lines are
// printed as they come. Nothing: this is not one of these.
std::optional<Answer> Stream(const CommandLine& line, Kernel& kernel,
                             const cli::TextStyle& style, const Sink& sink);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_COMMANDS_H_
