#include "firsttouch/service/held_memory.h"

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/memory_pages.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

absl::Status TooLarge(const ServicePool& pool, uint64_t size_bytes,
                      uint64_t delta_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(
      "growing from ", InPages(size_bytes), " by ", delta_bytes,
      " bytes exceeds max_memory_bytes ", InPages(pool.layout.memory_bytes()),
      " of pool \"", pool.options.name,
      "\": raise LayoutOptions::max_memory_bytes"));
}

}  // namespace

absl::Status CheckUsable(const SlotState& slot) {
  if ((slot.exceptions.load(std::memory_order_relaxed) & kSlotBroken) == 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      "an earlier Reset or Snapshot of this memory failed: release it");
}

absl::StatusOr<uint64_t> GrowBy(ServicePool& pool, SlotState& slot,
                                uint64_t delta_bytes) {
  if (absl::Status status = pool.CheckProcess(); !status.ok()) return status;
  const MemorySupply::GrowthLock lock(*pool.supply, slot);
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  uint64_t before = slot.size_bytes.load(std::memory_order_relaxed);
  do {
    if (delta_bytes > pool.layout.memory_bytes() ||
        before > pool.layout.memory_bytes() - delta_bytes) {
      return TooLarge(pool, before, delta_bytes);
    }
    absl::Status status =
        pool.supply->Open(slot, PagesRoundedUp(before + delta_bytes).value());
    if (!status.ok()) return status;
  } while (!slot.size_bytes.compare_exchange_weak(before, before + delta_bytes,
                                                  std::memory_order_seq_cst));
  Count(slot.counters.grows);
  pool.supply->NoteGrown(slot, before, before + delta_bytes);
  return before;
}

absl::Status GrowTo(ServicePool& pool, SlotState& slot,
                    uint64_t new_size_bytes) {
  if (absl::Status status = pool.CheckProcess(); !status.ok()) return status;
  const MemorySupply::GrowthLock lock(*pool.supply, slot);
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  uint64_t before = slot.size_bytes.load(std::memory_order_relaxed);
  do {
    if (new_size_bytes < before) {
      return absl::InvalidArgumentError(absl::StrCat(
          "new_size_bytes ", new_size_bytes, " is below the present size of ",
          before, " bytes: a memory does not shrink"));
    }
    if (new_size_bytes > pool.layout.memory_bytes()) {
      return TooLarge(pool, before, new_size_bytes - before);
    }
    absl::Status status =
        pool.supply->Open(slot, PagesRoundedUp(new_size_bytes).value());
    if (!status.ok()) return status;
  } while (!slot.size_bytes.compare_exchange_weak(before, new_size_bytes,
                                                  std::memory_order_seq_cst));
  Count(slot.counters.grows);
  pool.supply->NoteGrown(slot, before, new_size_bytes);
  return absl::OkStatus();
}

absl::Status MakeSlotReady(ServicePool& pool, SlotState& slot,
                           uint64_t offset_bytes, uint64_t bytes,
                           Access access) {
  if (absl::Status status = pool.CheckProcess(); !status.ok()) return status;
  if (access == Access::kExecute) {
    return absl::InvalidArgumentError(
        "access kExecute: no page of a pool can be executed; use kRead or "
        "kWrite");
  }
  const uint64_t size_bytes = slot.size_bytes.load(std::memory_order_relaxed);
  if (offset_bytes > size_bytes || bytes > size_bytes - offset_bytes) {
    return absl::OutOfRangeError(absl::StrCat(
        "the range of ", bytes, " bytes at offset ", offset_bytes,
        " does not end within the memory's size of ", size_bytes, " bytes"));
  }
  if (bytes == 0) return absl::OkStatus();
  return pool.supply->MakeReady(slot, offset_bytes, bytes, access);
}

MemoryPages CountSlotPages(const ServicePool& pool, SlotState& slot) {
  if (!pool.InOwnerProcess()) return {};
  return pool.supply->CountPages(slot);
}

}  // namespace firsttouch
