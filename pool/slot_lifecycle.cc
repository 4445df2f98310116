#include "firsttouch/pool/slot_lifecycle.h"

namespace firsttouch {

const char* SlotLifecycleName(SlotLifecycle lifecycle) {
  switch (lifecycle) {
    case SlotLifecycle::kFree:
      return "free";
    case SlotLifecycle::kLeased:
      return "leased";
    case SlotLifecycle::kReturning:
    case SlotLifecycle::kParking:
      return "returning";
    case SlotLifecycle::kQuarantined:
      return "quarantined";
    case SlotLifecycle::kParked:
      return "parked";
    case SlotLifecycle::kTrimming:
    case SlotLifecycle::kTrimmingParked:
      return "trimming";
  }
  return "unknown";
}

}  // namespace firsttouch
