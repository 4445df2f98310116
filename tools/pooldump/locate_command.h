// The command `locate`: what addresses are, of the command line or of a log.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_LOCATE_COMMAND_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_LOCATE_COMMAND_H_

#include <optional>

#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/answer.h"
#include "firsttouch/tools/pooldump/flags.h"
#include "firsttouch/tools/pooldump/stream.h"

namespace firsttouch::pooldump {

// May read standard input, all of it.
Answer AnswerLocate(const CommandLine& line);

// Reads a log from standard input line by line, and prints what is known of
// each before the next is read. Nothing: the addresses are on the command line.
std::optional<Answer> StreamLocate(const CommandLine& line,
                                   const cli::TextStyle& style,
                                   const Sink& sink);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_LOCATE_COMMAND_H_
