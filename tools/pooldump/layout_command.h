// The command `layout`: a pool on paper.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_LAYOUT_COMMAND_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_LAYOUT_COMMAND_H_

#include "absl/status/statusor.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/answer.h"
#include "firsttouch/tools/pooldump/config.h"
#include "firsttouch/tools/pooldump/flags.h"
#include "firsttouch/tools/pooldump/stream.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch::pooldump {

// The pool of --config and of the flags that are put over it.
absl::StatusOr<PlacedConfig> ConfigOf(const CommandLine& line);

Answer AnswerLayout(const CommandLine& line, Kernel& kernel);

// Prints all ranges of a layout, none of which is kept.
Answer StreamLayout(const CommandLine& line, Kernel& kernel,
                    const cli::TextStyle& style, const Sink& sink);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_LAYOUT_COMMAND_H_
