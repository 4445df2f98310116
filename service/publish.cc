#include "firsttouch/service/publish.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "firsttouch/control/block.h"
#include "firsttouch/control/control_block.h"
#include "firsttouch/control/counters.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/service_pool.h"

namespace firsttouch {
namespace {

template <size_t kBytes>
void PutText(std::string_view text, char (&into)[kBytes]) {
  std::memcpy(into, text.data(), std::min(text.size(), kBytes));
}

// The offset of `member` in `record`.
template <typename Record, typename Member>
uint32_t OffsetIn(const Record& record, const Member& member) {
  return static_cast<uint32_t>(reinterpret_cast<const std::byte*>(&member) -
                               reinterpret_cast<const std::byte*>(&record));
}

// The fields that readers are told of; the names are part of the format.
std::vector<ControlField> SlotFields(const SlotState& slot) {
  std::vector<ControlField> fields;
  const auto add = [&](const char* name, const auto& member) {
    ControlField field = {};
    PutText(name, field.name);
    field.offset_bytes = OffsetIn(slot, member);
    field.bytes = sizeof(member);
    fields.push_back(field);
  };
  add("state", slot.lifecycle);
  add("tracking", slot.tracking);
  add("base", slot.base);
  add("size_bytes", slot.size_bytes);
  add("initial_bytes", slot.initial_bytes);
  add("kernel_pages", slot.kernel_pages);
  add("idle_pages", slot.idle.pages);
#define FIRSTTOUCH_ADD(name) add(#name, slot.counters.name);
  FIRSTTOUCH_SLOT_COUNTERS(FIRSTTOUCH_ADD)
#undef FIRSTTOUCH_ADD
  return fields;
}

// The names of all values, from 0 on. Of the one behind the last `name_of` says
// "unknown".
template <typename Enum>
std::vector<ControlName> AllNames(const char* (*name_of)(Enum)) {
  std::vector<ControlName> names;
  for (int value = 0;; ++value) {
    const std::string_view text = name_of(static_cast<Enum>(value));
    if (text == "unknown") return names;
    ControlName name = {};
    PutText(text, name.name);
    names.push_back(name);
  }
}

}  // namespace

void PublishPool(ServicePool& pool) {
  ControlHeader header = {};
  header.pool_id = pool.fault_pool.entry.pool_id;
  header.base = pool.reservation->base();
  header.reservation_bytes = pool.layout.reservation_bytes();
  header.first_memory_offset_bytes = pool.layout.first_memory_offset_bytes();
  header.slot_stride_bytes = pool.layout.slot_stride_bytes();
  const LayoutOptions& layout = pool.layout.options();
  header.max_memory_bytes = layout.max_memory_bytes;
  header.guard_before_bytes = layout.guard_before_bytes;
  header.guard_after_bytes = layout.guard_after_bytes;
  header.fault_around_bytes = layout.fault_around_bytes;
  header.page_bytes = layout.page_bytes;
  header.instances = layout.instances;
  header.memories_per_instance = layout.memories_per_instance;
  const SupplyTraits supply = pool.supply->traits();
  header.handler_threads = supply.handler_threads;
  header.retained_cycles = pool.options.retained_cycles;
  header.retained_pages_limit =
      pool.options.retained_pages_limit.value_or(kControlNone);
  header.resident_budget_bytes =
      pool.options.resident_budget_bytes.value_or(kControlNone);
  PutText(SupplyName(supply.kind), header.supply);
  PutText(supply.backing, header.backing);
  PutText(supply.resolve, header.resolve);
  PutText(SlotStrategyName(pool.options.strategy), header.strategy);
  PutText(pool.options.name, header.name);

  const SlotState& first = pool.slots[0];
  static constexpr PageGroup kGroup = {};
  header.planes = {
      .group_offset_bytes = first.pages.groups_offset_bytes(),
      .group_bytes = sizeof(PageGroup),
      .groups = first.pages.group_count(),
      .present = OffsetIn(kGroup, kGroup.present),
      .untracked = OffsetIn(kGroup, kGroup.untracked),
      .dirty = OffsetIn(kGroup, kGroup.dirty),
      .retained = OffsetIn(kGroup, kGroup.retained),
      .recent = OffsetIn(kGroup, kGroup.recent),
      .previous = OffsetIn(kGroup, kGroup.previous),
  };
  const std::vector<ControlField> fields = SlotFields(first);
  const std::vector<ControlName> states = AllNames(&SlotLifecycleName);
  const std::vector<ControlName> trackings = AllNames(&TrackingName);
  const std::string description = pool.Describe();
  pool.control->Publish(header, {.fields = fields,
                                 .states = states,
                                 .trackings = trackings,
                                 .description = description});
}

void PublishImage(ServicePool& pool, const SlotState& slot) {
  ControlBlock::ImageFacts facts;
  if (slot.image != nullptr) facts.id = slot.image->id();
  if (pool.control->image_id(pool.SlotNumber(slot)) == facts.id) return;
  std::optional<Digest> digest;
  if (slot.image != nullptr) {
    facts.size_bytes = slot.image->size_bytes();
    facts.stored_pages = slot.image->stored_pages();
    facts.name = slot.image->name();
    digest = slot.image->known_digest();
    if (digest.has_value()) facts.digest.emplace(digest->bytes);
  }
  pool.control->NoteImage(pool.SlotNumber(slot), facts);
}

}  // namespace firsttouch
