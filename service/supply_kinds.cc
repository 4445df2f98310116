#include "firsttouch/service/supply_kinds.h"

namespace firsttouch {

const char* SupplyName(Supply supply) {
  switch (supply) {
    case Supply::kUserfaultfd:
      return "userfaultfd";
    case Supply::kMappingsDrop:
      return "mappings-drop";
    case Supply::kMappingsScan:
      return "mappings-scan";
  }
  return "unknown";
}

const char* BackingName(Backing backing) {
  return backing == Backing::kShared ? "shared" : "copied";
}

const char* ResolveName(Resolve resolve) {
  return resolve == Resolve::kInThread ? "in-thread" : "handler-thread";
}

const char* TrackingName(Tracking tracking) {
  switch (tracking) {
    case Tracking::kSignal:
      return "signal";
    case Tracking::kAsync:
      return "async";
    case Tracking::kProfiling:
      return "profiling";
  }
  return "unknown";
}

}  // namespace firsttouch
