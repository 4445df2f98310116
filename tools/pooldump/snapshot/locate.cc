#include "firsttouch/tools/pooldump/snapshot/locate.h"

#include <algorithm>

#include "firsttouch/uffd/units.h"

namespace firsttouch::pooldump {

Location LocateInLayout(const PoolLayout& layout, uint64_t base,
                        uint64_t address) {
  Location where;
  where.set_address(address);
  if (address - base >= layout.reservation_bytes()) {
    where.set_place(Location::NO_POOL);
    return where;
  }
  const uint64_t first = layout.first_memory_offset_bytes();
  const uint64_t at = address - base;
  if (at < first) {
    where.set_place(Location::GUARD_BEFORE);
    where.set_offset_bytes(static_cast<int64_t>(at - first));
    return where;
  }
  const auto slot =
      static_cast<uint32_t>((at - first) / layout.slot_stride_bytes());
  const uint64_t offset = (at - first) % layout.slot_stride_bytes();
  where.set_slot(slot);
  where.set_instance(layout.InstanceOf(SlotIndex(slot)).value());
  where.set_memory(layout.MemoryOf(SlotIndex(slot)).value());
  where.set_offset_bytes(static_cast<int64_t>(offset));
  if (offset < layout.memory_bytes()) {
    where.set_place(Location::MEMORY);
    where.set_page(offset / kPageBytes);
  } else if (slot + 1 < layout.slots() &&
             offset >=
                 layout.slot_stride_bytes() - layout.unowned_guard_bytes()) {
    where.set_place(Location::GUARD_UNOWNED);
  } else {
    where.set_place(Location::GUARD_AFTER);
  }
  return where;
}

}  // namespace firsttouch::pooldump
