// Which pool of several a user means.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_POOL_CHOICE_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_POOL_CHOICE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/pooldump/snapshot/block_reader.h"

namespace firsttouch::pooldump {

struct PoolName {
  std::string name;
  uint32_t number = 0;
};

// Whether a pool is called so: by its name, or by its number, "#2". Empty means
// any.
inline bool IsCalled(const PoolName& pool, const std::string& wanted) {
  return wanted.empty() || pool.name == wanted ||
         wanted == absl::StrCat("#", pool.number);
}

inline bool IsCalled(const BlockReader& reader, const std::string& wanted) {
  return IsCalled(PoolName{reader.name(), reader.header().pool_id}, wanted);
}

// For errors: each pool's name, and its number where the name does not tell it
// from the others.
inline std::string PoolNames(const std::vector<PoolName>& pools) {
  std::map<std::string, int> times;
  for (const PoolName& pool : pools) ++times[pool.name];
  std::string text;
  for (const PoolName& pool : pools) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", "\"", pool.name, "\"");
    if (times[pool.name] > 1) absl::StrAppend(&text, " (#", pool.number, ")");
  }
  return text;
}

// The same; `Pool` has a `reader`.
template <typename Pool>
std::string PoolNames(const std::vector<Pool>& pools) {
  std::vector<PoolName> names;
  for (const Pool& pool : pools) {
    names.push_back({pool.reader.name(), pool.reader.header().pool_id});
  }
  return PoolNames(names);
}

// What is said where several pools are left.
inline constexpr char kNameOne[] =
    ": name one by --pool=NAME or --pool=#NUMBER";

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_POOL_CHOICE_H_
