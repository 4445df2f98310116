// Completions of a command line for shells.
//
// Threads: any.

#ifndef FIRSTTOUCH_TOOLS_CLI_COMPLETIONS_H_
#define FIRSTTOUCH_TOOLS_CLI_COMPLETIONS_H_

#include <string>

#include "firsttouch/tools/cli/program_facts.h"

namespace firsttouch::cli {

// For "bash" or "zsh", to be sourced.
std::string CompletionsOf(const ProgramFacts& app, const std::string& shell);

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_COMPLETIONS_H_
