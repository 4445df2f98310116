// Which pool of several a user means.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_POOL_CHOICE_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_POOL_CHOICE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/pooldump/snapshot/block_reader.h"

namespace firsttouch::pooldump {

// Whether `reader` is called so: by its name, or by its number, "#2". Empty
// means any.
inline bool IsCalled(const BlockReader& reader, const std::string& wanted) {
  return wanted.empty() || reader.name() == wanted ||
         wanted == absl::StrCat("#", reader.header().pool_id);
}

// For errors: each pool's name, and its number where the name does not tell it
// from the others. `Pool` has a `reader`.
template <typename Pool>
std::string PoolNames(const std::vector<Pool>& pools) {
  std::map<std::string, int> times;
  for (const Pool& pool : pools) ++times[pool.reader.name()];
  std::string text;
  for (const Pool& pool : pools) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", "\"", pool.reader.name(),
                    "\"");
    if (times[pool.reader.name()] > 1) {
      absl::StrAppend(&text, " (#", pool.reader.header().pool_id, ")");
    }
  }
  return text;
}

// What is said where several pools are left.
inline constexpr char kNameOne[] =
    ": name one by --pool=NAME or --pool=#NUMBER";

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_POOL_CHOICE_H_
