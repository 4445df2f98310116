// The manual page of a program.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_CLI_MANUAL_PAGE_H_
#define FIRSTTOUCH_TOOLS_CLI_MANUAL_PAGE_H_

#include <string>

#include "firsttouch/tools/cli/program_facts.h"

namespace firsttouch::cli {

// In roff, of all commands and options.
std::string ManualPageOf(const ProgramFacts& app);

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_MANUAL_PAGE_H_
