// What the handles of the C interface name: tables of pools, of the memories of
// each pool, and of images.
//
// A handle is two numbers: an entry of a table, and the serial number that the
// entry had when the handle was given out. An entry's number is odd while
// something is there, and grows by one when it comes and when it goes; 64 bits
// do not come round. So a handle that was released never fits again, whatever
// has come to its place. The upper bits of the entry tell which table it is of.
//
// A memory's entry is its slot: no lock and no search between two leases, and
// no allocation (steady_path.cc in service has what that is for). Entries lie
// in memory that is zero and not there before it is used.
//
// Threads: finding, from any; it takes no lock, and a thread that releases what
// another is about to find is the caller's race. Adding and removing images,
// pools: from any, under a lock. Signal handlers: finding only.

#ifndef FIRSTTOUCH_CAPI_REGISTRY_H_
#define FIRSTTOUCH_CAPI_REGISTRY_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/trap.h"

namespace firsttouch::capi {

// Which table: bits 56 to 63 of the entry.
inline constexpr uint64_t kPoolTag = uint64_t{0xf1} << 56;
inline constexpr uint64_t kMemoryTag = uint64_t{0xf2} << 56;
inline constexpr uint64_t kImageTag = uint64_t{0xf3} << 56;

// One slot of a pool, as the C interface sees it. In a cache line of its own:
// another thread's lease is in the next. Begins as zeroes.
struct alignas(64) MemoryEntry {
  // Odd while held.
  std::atomic<uint64_t> serial;
  // Has a Memory while it is held, which is never destroyed: a release gives
  // back the slot, and leaves this as it is.
  alignas(Memory) std::array<std::byte, sizeof(Memory)> place;
  ft_trap_callback trap_callback;
  void* trap_user;

  Memory& memory() { return *reinterpret_cast<Memory*>(&place); }
};

// A pool. Lives until its service and the last of its memories are gone.
class PoolRecord {
 public:
  PoolRecord() = default;
  PoolRecord(const PoolRecord&) = delete;
  PoolRecord& operator=(const PoolRecord&) = delete;
  ~PoolRecord();

  // Takes the service in. ResourceExhausted without memory for the entries.
  absl::Status Begin(std::unique_ptr<Service> service);

  Service& service() { return *service_; }
  const Service& service() const { return *service_; }
  uint32_t slots() const { return slots_; }
  MemoryEntry* entries() const { return entries_; }

  // Called in signal context with the record as TrapInfo::user: call what the
  // lease, or the pool, has for a callback.
  static TrapAction OnMemoryTrap(const TrapInfo& trap);
  static TrapAction OnPoolTrap(const TrapInfo& trap);

  // Of the pool; set before the service is made.
  ft_trap_callback trap_callback = nullptr;
  void* trap_user = nullptr;

  // The rest is the registry's.

  // What an entry's number is less than its handle's: handles of an earlier
  // pool in the same place have smaller ones. Even.
  uint64_t first_serial = 0;
  uint64_t table_index = 0;

  // Lets the service go.
  void DropService() { service_.reset(); }
  // How many memories are being released in ReleaseOfOrphan().
  uint32_t releases = 0;
  // Whether a memory is held, and the largest number of an entry.
  bool IsHeld() const;
  uint64_t LastSerial() const;

 private:
  std::unique_ptr<Service> service_;
  MemoryEntry* entries_ = nullptr;
  void* entry_room_ = nullptr;  // of calloc(3)
  uint32_t slots_ = 0;
  uint32_t memories_per_instance_ = 1;
};

inline constexpr uint32_t kMaxPools = 4096;

// One place of the table of pools, with all that acquire and release read of a
// pool, in one cache line: a guest that writes to some pages leaves nothing
// else in the first-level cache, and then each line more is some ns more.
struct alignas(64) PoolPlace {
  // Null: nothing is here. Written last when a pool comes.
  std::atomic<PoolRecord*> record{nullptr};
  // Odd while the pool's handle is valid; even with a record: the service is
  // gone, and memories are still held.
  std::atomic<uint64_t> serial{0};

  // Of the record and its service; valid as long as `record` is there, and
  // `pool` and `first_slot` as long as the service or the slot's lease is.
  ServicePool* pool = nullptr;
  SlotState* first_slot = nullptr;
  MemoryEntry* entries = nullptr;
  uint64_t first_serial = 0;
  uint32_t slots = 0;
  // Of the handles of its memories, without the slot; fixed.
  uint64_t memory_entry = 0;
};
static_assert(sizeof(PoolPlace) == 64);
extern std::array<PoolPlace, kMaxPools> g_pools;

// Takes a pool in, whose callbacks know the record's address already.
// ResourceExhausted where all places are taken.
absl::StatusOr<ft_pool> AddPool(std::unique_ptr<PoolRecord> record);

// Drops the pool's service; the record goes with the last memory. False where
// the handle is not valid.
bool RemovePool(ft_pool pool);

// Releases a memory of a pool whose handle has been given up, and deletes the
// pool's record with its last memory. Sets *found to whether the handle is
// valid.
absl::Status ReleaseOfOrphan(ft_memory memory, bool* found);

// The place of a pool's handle, or null.
inline PoolPlace* FindPlace(ft_pool pool) {
  const uint64_t index = pool.entry ^ kPoolTag;
  if (index >= kMaxPools) [[unlikely]] {
    return nullptr;
  }
  PoolPlace& place = g_pools[index];
  if (place.serial.load(std::memory_order_acquire) != pool.serial ||
      (pool.serial & 1) == 0) [[unlikely]] {
    return nullptr;
  }
  return &place;
}

// The pool of a handle, or null.
inline PoolRecord* FindPool(ft_pool pool) {
  const PoolPlace* const place = FindPlace(pool);
  return place == nullptr ? nullptr
                          : place->record.load(std::memory_order_acquire);
}

// A memory that is held: the place of its pool, and its own entry. Null for a
// handle that is not valid.
struct FoundMemory {
  const PoolPlace* place = nullptr;
  MemoryEntry* entry = nullptr;
};
inline FoundMemory LocateMemory(ft_memory memory) {
  const uint64_t index = (memory.entry ^ kMemoryTag) >> 32;
  const auto slot = static_cast<uint32_t>(memory.entry);
  if (index >= kMaxPools) [[unlikely]] {
    return {};
  }
  const PoolPlace& place = g_pools[index];
  if (place.record.load(std::memory_order_acquire) == nullptr ||
      slot >= place.slots) [[unlikely]] {
    return {};
  }
  MemoryEntry& entry = place.entries[slot];
  if ((memory.serial & 1) == 0 ||
      entry.serial.load(std::memory_order_acquire) !=
          memory.serial - place.first_serial) [[unlikely]] {
    return {};
  }
  return {&place, &entry};
}

// The entry of a memory that is held, or null.
inline MemoryEntry* FindMemory(ft_memory memory) {
  return LocateMemory(memory).entry;
}

// Gives the handle of a memory that has just been constructed in the entry of
// the slot with this number.
inline void HoldMemory(const PoolPlace& place, uint32_t slot,
                       const ft_memory_options& options, ft_memory* handle) {
  MemoryEntry& entry = place.entries[slot];
  // Without a callback nobody looks at these.
  if (options.trap_callback != nullptr) {
    entry.trap_callback = options.trap_callback;
    entry.trap_user = options.trap_user;
  }
  const uint64_t serial = entry.serial.load(std::memory_order_relaxed) + 1;
  entry.serial.store(serial, std::memory_order_release);
  handle->entry = place.memory_entry | slot;
  handle->serial = serial + place.first_serial;
}

// The handle of the memory in the entry is not valid from here on. Before the
// memory is released: then the entry is its next lease's, or gone with the
// pool.
inline void LetGoOfEntry(MemoryEntry& entry) {
  entry.serial.store(entry.serial.load(std::memory_order_relaxed) + 1,
                     std::memory_order_release);
}

// Images are in tables of so many, which are made as they are needed, and stay.
inline constexpr uint32_t kImagesPerTable = 1024;
inline constexpr uint32_t kMaxImageTables = 4096;

struct ImageEntry {
  std::atomic<uint64_t> serial{0};  // odd while there is an image
  ImageRef image;
};
using ImageTable = std::array<ImageEntry, kImagesPerTable>;
extern std::array<std::atomic<ImageTable*>, kMaxImageTables> g_images;

// The image of a handle in its place, or null. The place is empty from the
// release of the handle on.
inline const ImageRef* FindImage(ft_image image) {
  const uint64_t index = image.entry ^ kImageTag;
  if (index >= uint64_t{kImagesPerTable} * kMaxImageTables) [[unlikely]] {
    return nullptr;
  }
  ImageTable* const table =
      g_images[index / kImagesPerTable].load(std::memory_order_acquire);
  if (table == nullptr) [[unlikely]] {
    return nullptr;
  }
  const ImageEntry& entry = (*table)[index % kImagesPerTable];
  if (entry.serial.load(std::memory_order_acquire) != image.serial ||
      (image.serial & 1) == 0) [[unlikely]] {
    return nullptr;
  }
  return &entry.image;
}

// The same as a reference of the caller's own; null for a handle that is not
// valid. Takes a lock: also right while others release it.
ImageRef CopyImage(ft_image image);

// ResourceExhausted where there are more than four million.
absl::StatusOr<ft_image> AddImage(ImageRef image);

// Takes the image out of its place; null where the handle is not valid. The
// caller drops it.
ImageRef RemoveImage(ft_image image);

}  // namespace firsttouch::capi

#endif  // FIRSTTOUCH_CAPI_REGISTRY_H_
