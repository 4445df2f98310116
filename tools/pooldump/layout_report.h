// A pool on paper: what `pooldump layout` says. Pure: nothing is created, and
// the machine is a message.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_LAYOUT_REPORT_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_LAYOUT_REPORT_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/tools/pooldump/config.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"

namespace firsttouch::pooldump {

struct LayoutReportOptions {
  // A line for each range instead of one for all equal ones.
  bool all = false;
  // With `all`: which slots, by their name; null for all of them.
  std::function<bool(const std::string&)> wanted;
  // With `all`: the ranges are counted and left out of the report.
  // ForEachRange tells them.
  bool leave_out = false;
};

// Constant time, but for `all`. Errors: those of LayoutOf; InvalidArgument if
// more ranges were listed than anybody reads.
absl::StatusOr<LayoutReport> MakeLayoutReport(
    const PlacedConfig& config, const Machine& machine,
    const LayoutReportOptions& options);

// Calls `visit` for each range of each slot that is wanted, without keeping
// any. `name` is the report's. False from `visit` ends it.
void ForEachRange(const PoolLayout& layout, const std::string& name,
                  const std::function<bool(const std::string&)>& wanted,
                  const std::function<bool(const LayoutReport::Range&)>& visit);

// How a slot is named everywhere: "tenants/7".
std::string SlotName(const std::string& pool, uint32_t slot);

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_LAYOUT_REPORT_H_
