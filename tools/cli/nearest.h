// What somebody may have meant.

#ifndef FIRSTTOUCH_TOOLS_CLI_NEAREST_H_
#define FIRSTTOUCH_TOOLS_CLI_NEAREST_H_

#include <string>
#include <vector>

namespace firsttouch::cli {

// The one of `names` from which `word` differs least, by letters that are
// changed, missing, too many, or swapped with their neighbour; empty where more
// than a third of them is. Of several, the first. Pure.
std::string Nearest(const std::string& word,
                    const std::vector<std::string>& names);

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_NEAREST_H_
