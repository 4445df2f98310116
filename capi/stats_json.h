// Statistics as JSON: numbers by name, in the order of their declaration.
//
// Not by protobuf's printer, which the tools use: it writes numbers of 64 bits
// as strings, where firsttouch.h promises numbers. It would also need messages
// that repeat these structs, with descriptors, in a library whose only message
// is a lite one.
//
// Threads: any. Not for signal handlers.

#ifndef FIRSTTOUCH_CAPI_STATS_JSON_H_
#define FIRSTTOUCH_CAPI_STATS_JSON_H_

#include <string>

#include "firsttouch/init/image_store.h"
#include "firsttouch/service/stats.h"

namespace firsttouch::capi {

// One object, in one line.
std::string ToJson(const SlotCounts& counts);
std::string ToJson(const ServiceStats& stats);
std::string ToJson(const ImageStoreStats& stats);

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_STATS_JSON_H_
