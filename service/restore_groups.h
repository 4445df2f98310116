// Restores the dirty pages of a slot, group by group. In a header, so that the
// steady cycle (steady_path.cc) and a restore that has more to count
// (uffd_restore.cc) each have the loop to themselves.
//
// For the slot's owner, with no fill in flight.

#ifndef FIRSTTOUCH_SERVICE_RESTORE_GROUPS_H_
#define FIRSTTOUCH_SERVICE_RESTORE_GROUPS_H_

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "firsttouch/service/page_states.h"
#include "firsttouch/service/restore_page.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// In a steady cycle this writes nothing.
inline void NoteChanged(PageGroup& group, uint64_t changed) {
  const uint64_t recent = group.recent.load(std::memory_order_relaxed);
  if ((changed & ~recent) != 0) {
    group.recent.store(recent | changed, std::memory_order_relaxed);
  }
}

// The number of pages that were restored. (Counted one by one: on a baseline
// x86-64 without POPCNT, counting bits is a function call.)
struct Restored {
  uint64_t pages = 0;
  uint64_t changed_pages = 0;
};

// Restores these pages of one group, in the direction that the slot has for
// this restore; returns which of them had changed.
inline uint64_t RestoreGroup(SlotState& slot, uint64_t index, uint64_t bits,
                             Restored& restored) {
  const uint64_t first_page = index * kPagesPerGroup;
  const uint64_t stored = StoredPages(slot, index);
  auto* const memory =
      reinterpret_cast<std::byte*>(slot.base + first_page * kPageBytes);
  const bool downwards = !slot.restored_downwards;
  uint64_t changed = 0;
  bool unreadable = false;
  while (bits != 0) {
    const int bit =
        downwards ? 63 - std::countl_zero(bits) : std::countr_zero(bits);
    bits &= ~(uint64_t{1} << bit);
    std::byte* const page = memory + bit * kPageBytes;
    const bool was_changed =
        (stored >> bit & 1) != 0
            ? RestorePage(page, StoredPage(slot, first_page + bit), downwards,
                          &unreadable)
            : RestoreZeroPage(page, downwards);
    changed |= uint64_t{was_changed} << bit;
    ++restored.pages;
    restored.changed_pages += was_changed;
  }
  // The image's file was cut short: pages that cannot be restored are dropped,
  // and the next touch of such a page finds that nothing can fill it.
  if (unreadable) [[unlikely]] {
    slot.exceptions.fetch_or(kSlotDropped, std::memory_order_relaxed);
  }
  return changed;
}

// Goes through the groups of a slot, the pages of each, and the lines of each
// page in the opposite direction to the last time, and restores the dirty ones.
// Calls done(index, group, dirty, changed) after each group that has dirty
// pages, and none(group) for each that has none.
template <typename Done, typename None>
Restored RestoreGroups(SlotState& slot, Done done, None none) {
  Restored restored;
  const auto restore = [&](uint64_t index, PageGroup& group) {
    const uint64_t dirty = group.dirty.load(std::memory_order_relaxed);
    if (dirty == 0) {
      none(group);
      return;
    }
    done(index, group, dirty, RestoreGroup(slot, index, dirty, restored));
  };
  if (slot.restored_downwards) {
    slot.pages.ForEachGroup(restore);
  } else {
    slot.pages.ForEachGroupDown(restore);
  }
  slot.restored_downwards = !slot.restored_downwards;
  CountOwned(slot.counters.pages_restored, restored.pages);
  return restored;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_RESTORE_GROUPS_H_
