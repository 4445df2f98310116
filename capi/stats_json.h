// Statistics as JSON: numbers by name, in the order of control/counters.h.
//
// Threads: any. Not for signal handlers.

#ifndef FIRSTTOUCH_CAPI_STATS_JSON_H_
#define FIRSTTOUCH_CAPI_STATS_JSON_H_

#include <string>

#include "firsttouch/service/stats.h"

namespace firsttouch::capi {

// One object, in one line.
std::string ToJson(const SlotCounts& counts);
std::string ToJson(const ServiceStats& stats);

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_STATS_JSON_H_
