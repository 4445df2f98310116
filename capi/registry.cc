#include "firsttouch/capi/registry.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/trap.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch::capi {
namespace {

// All that changes which handles are valid, but for leases.
struct Changes {
  Mutex mutex;
  std::vector<PoolRecord*> orphans ABSL_GUARDED_BY(mutex);
  std::vector<uint32_t> free_images ABSL_GUARDED_BY(mutex);
  uint32_t images ABSL_GUARDED_BY(mutex) = 0;
  // The number from which handles of memories of the next pool in a place
  // count.
  std::array<uint64_t, kMaxPools> next_serials ABSL_GUARDED_BY(mutex) = {};
};

// Never destroyed: a host may release what it has in a destructor of its own.
Changes& TheChanges() {
  static auto* const changes = new Changes;
  return *changes;
}

// Deletes the records of orphans none of whose memories is held any more.
void SweepOrphans(Changes& changes)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(changes.mutex) {
  std::erase_if(changes.orphans, [&](PoolRecord* record) {
    changes.mutex.AssertHeld();
    if (record->releases != 0 || record->IsHeld()) return false;
    // Even, and above all that were given out.
    changes.next_serials[record->table_index] =
        record->first_serial + ((record->LastSerial() + 1) & ~uint64_t{1});
    g_pools[record->table_index].record.store(nullptr,
                                              std::memory_order_release);
    delete record;
    return true;
  });
}

}  // namespace

std::array<PoolPlace, kMaxPools> g_pools;
std::array<std::atomic<ImageTable*>, kMaxImageTables> g_images;

PoolRecord::~PoolRecord() { free(entry_room_); }

absl::Status PoolRecord::Begin(std::unique_ptr<Service> service) {
  const PoolLayout& layout = service->layout();
  slots_ = layout.slots();
  memories_per_instance_ = layout.options().memories_per_instance;
  // Zeroes that are not there before they are used, as entries want it.
  entry_room_ = calloc(size_t{slots_} + 1, sizeof(MemoryEntry));
  if (entry_room_ == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for the handles of ", slots_,
                     " memories: make the pool for fewer instances"));
  }
  // calloc(3) aligns to less than entries do.
  entries_ = reinterpret_cast<MemoryEntry*>(
      (reinterpret_cast<uintptr_t>(entry_room_) + alignof(MemoryEntry) - 1) &
      ~(alignof(MemoryEntry) - 1));
  service_ = std::move(service);
  return absl::OkStatus();
}

TrapAction PoolRecord::OnMemoryTrap(const TrapInfo& trap) {
  const auto& record = *static_cast<const PoolRecord*>(trap.user);
  const MemoryEntry& entry =
      record.entries_[trap.instance * record.memories_per_instance_ +
                      trap.memory];
  return CallTrapCallback(entry.trap_callback, entry.trap_user, trap);
}

TrapAction PoolRecord::OnPoolTrap(const TrapInfo& trap) {
  const auto& record = *static_cast<const PoolRecord*>(trap.user);
  return CallTrapCallback(record.trap_callback, record.trap_user, trap);
}

bool PoolRecord::IsHeld() const {
  for (uint32_t slot = 0; slot < slots_; ++slot) {
    if ((entries_[slot].serial.load(std::memory_order_acquire) & 1) != 0) {
      return true;
    }
  }
  return false;
}

uint64_t PoolRecord::LastSerial() const {
  uint64_t last = 0;
  for (uint32_t slot = 0; slot < slots_; ++slot) {
    last =
        std::max(last, entries_[slot].serial.load(std::memory_order_relaxed));
  }
  return last;
}

absl::StatusOr<ft_pool> AddPool(std::unique_ptr<PoolRecord> record) {
  Changes& changes = TheChanges();
  const MutexLock lock(&changes.mutex);
  SweepOrphans(changes);
  for (uint64_t index = 0; index < kMaxPools; ++index) {
    PoolPlace& place = g_pools[index];
    if (place.record.load(std::memory_order_relaxed) != nullptr) continue;
    record->table_index = index;
    record->first_serial = changes.next_serials[index];
    place.pool = &PoolOf(record->service());
    place.first_slot = place.pool->slots.get();
    place.entries = record->entries();
    place.first_serial = record->first_serial;
    place.slots = record->slots();
    place.memory_entry = kMemoryTag | index << 32;
    place.record.store(record.release(), std::memory_order_release);
    const uint64_t serial =
        place.serial.fetch_add(1, std::memory_order_release) + 1;
    return ft_pool{.entry = kPoolTag | index, .serial = serial};
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "this process has ", kMaxPools,
      " pools, which is all that the C interface has room for: destroy one"));
}

bool RemovePool(ft_pool pool) {
  Changes& changes = TheChanges();
  PoolRecord* record = nullptr;
  {
    const MutexLock lock(&changes.mutex);
    record = FindPool(pool);
    if (record == nullptr) return false;
    g_pools[record->table_index].serial.fetch_add(1, std::memory_order_seq_cst);
  }
  // Not under the lock: an image's source may be destroyed by this.
  record->DropService();
  const MutexLock lock(&changes.mutex);
  changes.orphans.push_back(record);
  SweepOrphans(changes);
  return true;
}

absl::Status ReleaseOfOrphan(ft_memory memory, bool* found) {
  Changes& changes = TheChanges();
  PoolRecord* record = nullptr;
  Memory held;
  {
    const MutexLock lock(&changes.mutex);
    const FoundMemory held_in = LocateMemory(memory);
    *found = held_in.entry != nullptr;
    if (!*found) return absl::OkStatus();
    record = held_in.place->record.load(std::memory_order_relaxed);
    ++record->releases;
    held = std::move(held_in.entry->memory());
    LetGoOfEntry(*held_in.entry);
  }
  absl::Status status = held.Release();  // not under the lock, as above
  const MutexLock lock(&changes.mutex);
  --record->releases;
  SweepOrphans(changes);
  return status;
}

ImageRef CopyImage(ft_image image) {
  const MutexLock lock(&TheChanges().mutex);
  const ImageRef* const found = FindImage(image);
  return found == nullptr ? nullptr : *found;
}

absl::StatusOr<ft_image> AddImage(ImageRef image) {
  Changes& changes = TheChanges();
  const MutexLock lock(&changes.mutex);
  uint32_t index = changes.images;
  if (!changes.free_images.empty()) {
    index = changes.free_images.back();
    changes.free_images.pop_back();
  } else {
    if (index == kImagesPerTable * kMaxImageTables) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "this process has ", index,
          " handles of images, which is all that the C interface has room for: "
          "release some"));
    }
    if (index % kImagesPerTable == 0) {
      g_images[index / kImagesPerTable].store(new ImageTable,
                                              std::memory_order_release);
    }
    // So that a release need not allocate.
    changes.free_images.reserve(index + 1);
    ++changes.images;
  }
  ImageEntry& entry = (*g_images[index / kImagesPerTable].load(
      std::memory_order_relaxed))[index % kImagesPerTable];
  entry.image = std::move(image);
  const uint64_t serial =
      entry.serial.fetch_add(1, std::memory_order_release) + 1;
  return ft_image{.entry = kImageTag | index, .serial = serial};
}

ImageRef RemoveImage(ft_image image) {
  Changes& changes = TheChanges();
  const MutexLock lock(&changes.mutex);
  if (FindImage(image) == nullptr) return nullptr;
  const auto index = static_cast<uint32_t>(image.entry ^ kImageTag);
  ImageEntry& entry = (*g_images[index / kImagesPerTable].load(
      std::memory_order_relaxed))[index % kImagesPerTable];
  entry.serial.fetch_add(1, std::memory_order_release);
  changes.free_images.push_back(index);
  return std::move(entry.image);
}

}  // namespace firsttouch::capi
