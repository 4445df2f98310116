#include "firsttouch/capi/stats_json.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "firsttouch/control/counters.h"
#include "firsttouch/service/stats.h"

namespace firsttouch::capi {
namespace {

// Without the brackets.
std::string Members(const SlotCounts& counts) {
  std::string text;
#define FIRSTTOUCH_MEMBER(name)                    \
  absl::StrAppend(&text, text.empty() ? "" : ", ", \
                  "\"" #name "\": ", counts.name);
  FIRSTTOUCH_SLOT_COUNTERS(FIRSTTOUCH_MEMBER)
#undef FIRSTTOUCH_MEMBER
  return text;
}

}  // namespace

std::string ToJson(const SlotCounts& counts) {
  return absl::StrCat("{", Members(counts), "}");
}

std::string ToJson(const ServiceStats& stats) {
  return absl::StrCat("{", Members(stats), ", \"slots\": ", stats.slots,
                      ", \"slots_in_use\": ", stats.slots_in_use,
                      ", \"idle_private_bytes\": ", stats.idle_private_bytes,
                      ", \"slots_quarantined\": ", stats.slots_quarantined,
                      ", \"fault_latency\": [",
                      absl::StrJoin(stats.fault_latency, ", "), "]}");
}

}  // namespace firsttouch::capi
