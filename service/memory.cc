#include "firsttouch/service/memory.h"

#include <atomic>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/held_memory.h"
#include "firsttouch/service/releases.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/snapshot.h"
#include "firsttouch/service/steady_path.h"

namespace firsttouch {
namespace {

absl::Status Released(const char* what) {
  return absl::FailedPreconditionError(absl::StrCat(
      what, ": the memory was released (or moved from): nothing is held"));
}

}  // namespace

void Memory::Drop() { Release().IgnoreError(); }

uint64_t Memory::size_bytes() const {
  return slot_ == nullptr ? 0
                          : slot_->size_bytes.load(std::memory_order_acquire);
}

uint64_t Memory::max_bytes() const {
  return slot_ == nullptr ? 0 : pool_->layout.memory_bytes();
}

uint32_t Memory::instance() const {
  if (slot_ == nullptr) return kNoMemory;
  return pool_->SlotNumber(*slot_) /
         pool_->layout.options().memories_per_instance;
}

uint32_t Memory::memory_index() const {
  if (slot_ == nullptr) return kNoMemory;
  return pool_->SlotNumber(*slot_) %
         pool_->layout.options().memories_per_instance;
}

SlotCounts Memory::stats() const {
  SlotCounts counts;
  if (slot_ != nullptr) AddSlotCounters(slot_->counters, counts);
  return counts;
}

absl::Status Memory::Grow(uint64_t new_size_bytes) {
  if (slot_ == nullptr) return Released("Grow");
  return GrowTo(*pool_, *slot_, new_size_bytes);
}

absl::StatusOr<uint64_t> Memory::GrowBy(uint64_t delta_bytes) {
  if (slot_ == nullptr) return Released("GrowBy");
  return firsttouch::GrowBy(*pool_, *slot_, delta_bytes);
}

absl::Status Memory::Reset() {
  if (slot_ == nullptr) return Released("Reset");
  return ResetSlot(*pool_, *slot_);
}

absl::StatusOr<ImageRef> Memory::Snapshot(std::string name) const {
  if (slot_ == nullptr) return Released("Snapshot");
  return SnapshotSlot(*pool_, *slot_, std::move(name), /*delta=*/false);
}

absl::StatusOr<ImageRef> Memory::SnapshotDelta(std::string name) const {
  if (slot_ == nullptr) return Released("SnapshotDelta");
  return SnapshotSlot(*pool_, *slot_, std::move(name), /*delta=*/true);
}

absl::Status Memory::MakeReady(uint64_t offset_bytes, uint64_t bytes,
                               Access access) const {
  if (slot_ == nullptr) return Released("MakeReady");
  return MakeSlotReady(*pool_, *slot_, offset_bytes, bytes, access);
}

MemoryPages Memory::CountPages() const {
  return slot_ == nullptr ? MemoryPages{} : CountSlotPages(*pool_, *slot_);
}

void Memory::DropAtRelease() {
  if (slot_ == nullptr) return;
  slot_->exceptions.fetch_or(kSlotDropped, std::memory_order_relaxed);
}

absl::Status Memory::Release() {
  if (slot_ == nullptr) return Released("Release");
  ServicePool* const pool = std::exchange(pool_, nullptr);
  base_ = nullptr;
  return ReleaseSlot(*pool, *std::exchange(slot_, nullptr));
}

}  // namespace firsttouch
