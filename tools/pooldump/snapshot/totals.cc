#include "firsttouch/tools/pooldump/snapshot/totals.h"

#include <cstdint>

#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

uint64_t Faults(const Counters& counters) {
  return counters.minor_faults() + counters.missing_read_faults() +
         counters.missing_write_faults() + counters.write_protect_faults();
}

void AddToTotals(const Slot& slot, Totals& totals) {
  totals.set_slots(totals.slots() + 1);
  switch (slot.state()) {
    case Slot::TRIMMING:
      totals.set_trimming(totals.trimming() + 1);
      [[fallthrough]];
    case Slot::FREE:
      totals.set_free(totals.free() + 1);
      break;
    case Slot::HELD:
      totals.set_held(totals.held() + 1);
      break;
    case Slot::RETURNING:
      totals.set_returning(totals.returning() + 1);
      break;
    case Slot::PARKED:
      totals.set_parked(totals.parked() + 1);
      break;
    case Slot::QUARANTINED:
      totals.set_quarantined(totals.quarantined() + 1);
      break;
    default:
      break;
  }
  totals.set_size_bytes(totals.size_bytes() + slot.size_bytes());
  if (slot.has_resident_bytes()) {
    totals.set_resident_bytes(totals.resident_bytes() + slot.resident_bytes());
    totals.set_private_bytes(totals.private_bytes() + slot.private_bytes());
    totals.set_shared_bytes(totals.shared_bytes() + slot.shared_bytes());
  }
  if (slot.has_pages()) {
    PageCounts& pages = *totals.mutable_pages();
    pages.set_clean(pages.clean() + slot.pages().clean());
    pages.set_untracked(pages.untracked() + slot.pages().untracked());
    pages.set_dirty(pages.dirty() + slot.pages().dirty());
    pages.set_hot(pages.hot() + slot.pages().hot());
    pages.set_changed_lately(pages.changed_lately() +
                             slot.pages().changed_lately());
  }
  Counters& sums = *totals.mutable_counters();
  if (slot.counters().faults_unknown()) sums.set_faults_unknown(true);
  for (const NamedCounter& counter : kSlotCounters) {
    (sums.*counter.set)((sums.*counter.get)() +
                        (slot.counters().*counter.get)());
  }
  if (slot.torn()) totals.set_torn(totals.torn() + 1);
}

}  // namespace firsttouch::pooldump
