// What somebody may have meant.

#ifndef FIRSTTOUCH_TOOLS_CLI_NEAREST_H_
#define FIRSTTOUCH_TOOLS_CLI_NEAREST_H_

#include <string>
#include <vector>

namespace firsttouch::cli {

// The one of `names` from which `word` differs least, by letters that are
// changed, missing, too many, or swapped with their neighbour. Where more than
// a third of them is: the only one that begins with `word`; empty if there is
// none, or are several. Of several that differ as little, the first. Pure.
std::string Nearest(const std::string& word,
                    const std::vector<std::string>& names);

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_NEAREST_H_
