#include "firsttouch/tools/cli/program_facts.h"

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/match.h"

namespace firsttouch::cli {

std::vector<std::string> FlagsOf(const CommandFacts& command) {
  std::vector<std::string> flags;
  for (const OptionFacts& option : command.options) {
    for (const std::string& name : option.names) {
      flags.push_back("--" + name);
    }
  }
  return flags;
}

std::string FirstSentence(const std::string& text) {
  const size_t end = text.find(". ");
  if (end != std::string::npos) return text.substr(0, end);
  return absl::EndsWith(text, ".") ? text.substr(0, text.size() - 1) : text;
}

}  // namespace firsttouch::cli
