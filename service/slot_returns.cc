#include "firsttouch/service/slot_returns.h"

#include <atomic>
#include <cstdint>
#include <memory>

#include "firsttouch/init/image.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/publish.h"
#include "firsttouch/service/reclaim.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"

namespace firsttouch {
namespace {

// The key by which the allocator knows a free slot. Not taken from the slot's
// image, which may be unbound at any time once the slot is idle.
uint64_t AffinityKey(const SlotState& slot) {
  const uint64_t id = slot.image_id.load(std::memory_order_relaxed);
  return id == SlotState::kAbandoned ? 0 : id;
}

}  // namespace

void LetGoOfSlot(ServicePool& pool, const SlotState& slot, bool failed) {
  const uint32_t members = pool.layout.options().memories_per_instance;
  const uint32_t instance = pool.SlotNumber(slot) / members;
  pool.allocator->ReturnMember(
      instance, members, AffinityKey(pool.slots[instance * members]), failed);
}

void ReturnSlot(ServicePool& pool, SlotState& slot, SlotLifecycle lifecycle) {
  // In this order: a thread that sees that the slot has left kReturning also
  // sees this.
  slot.returning.fetch_add(1, std::memory_order_relaxed);
  if (lifecycle == SlotLifecycle::kQuarantined) ForgetIdle(pool, slot);
  slot.lifecycle.Move(lifecycle);
  LetGoOfSlot(pool, slot, lifecycle == SlotLifecycle::kQuarantined);
  // The last access to this object: from here on it may be deleted.
  slot.returning.fetch_sub(1, std::memory_order_release);
}

void AbandonSlot(ServicePool& pool, SlotState& slot) {
  Abandon(slot);
  slot.initial_bytes = 0;
  // Makes the next lease prepare the slot, whatever it asks for.
  slot.other_tracking_wanted = true;
  ForgetIdle(pool, slot);
  PublishImage(pool, slot);
}

void GiveUpSlot(ServicePool& pool, SlotState& slot) {
  if (slot.place_lost) {
    ReturnSlot(pool, slot, SlotLifecycle::kQuarantined);
    return;
  }
  if (slot.remap_wanted) AbandonSlot(pool, slot);
  ReturnSlot(pool, slot, SlotLifecycle::kFree);
}

std::shared_ptr<const Image> UnbindSlot(ServicePool& pool, SlotState& slot) {
  std::shared_ptr<const Image> image = slot.image;
  AbandonSlot(pool, slot);
  // After an error the slot is mapped anew before its next lease, and the
  // kernel's reference to the image ends only then, too.
  if (pool.supply->Unbind(slot).ok()) slot.remap_wanted = false;
  return image;
}

}  // namespace firsttouch
