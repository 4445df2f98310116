// The list of pools. Not on the fault path: see lookup.cc.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "firsttouch/locator/locator.h"
#include "firsttouch/locator/lookup.h"
#include "firsttouch/locator/table.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

using locator_internal::g_chunks;
using locator_internal::kChunks;
using locator_internal::PoolRecord;

constexpr uint64_t kAddressSpaceBytes = uint64_t{1} << kLocatorAddressBits;

struct Registry {
  // Held while g_chunks is written.
  Mutex mutex;
  size_t pools ABSL_GUARDED_BY(mutex) = 0;
  PoolRecord* records ABSL_GUARDED_BY(mutex) = nullptr;
};

// Never destroyed: a pool may be unregistered at exit.
Registry& TheRegistry() {
  static Registry& registry = *new Registry;
  return registry;
}

std::string Name(const PoolEntry& entry) {
  return absl::StrFormat("pool %u [%#x, %#x)", entry.pool_id, entry.base,
                         entry.base + entry.bytes);
}

// floor((2^64 - 1) / divisor); see Divide in lookup.cc.
uint64_t Reciprocal(uint64_t divisor) {
  return std::numeric_limits<uint64_t>::max() / divisor;
}

// The pool that has addresses in the chunk, or null. The caller holds the lock.
const PoolEntry* PoolIn(size_t chunk) {
  const PoolRecord* const record =
      chunk < kChunks ? g_chunks[chunk].load(std::memory_order_relaxed)
                      : nullptr;
  return record == nullptr ? nullptr
                           : record->entry.load(std::memory_order_relaxed);
}

// A record for the pool: one that no pool uses any more, or a new one.
PoolRecord* RecordFor(const PoolEntry& entry, Registry& registry)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(registry.mutex) {
  PoolRecord* record = registry.records;
  while (record != nullptr && record->in_use) record = record->older;
  if (record == nullptr) {
    record = new PoolRecord;
    record->older = registry.records;
    registry.records = record;
  }
  record->in_use = true;
  const uint64_t version = record->version.load(std::memory_order_relaxed);
  record->version.store(version + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  record->base.store(entry.base, std::memory_order_relaxed);
  record->bytes.store(entry.bytes, std::memory_order_relaxed);
  record->entry.store(&entry, std::memory_order_relaxed);
  record->version.store(version + 2, std::memory_order_release);
  return record;
}

size_t FirstChunk(const PoolEntry& entry) {
  return entry.base / kLocatorChunkBytes;
}

size_t LastChunk(const PoolEntry& entry) {
  return (entry.base + entry.bytes - 1) / kLocatorChunkBytes;
}

}  // namespace

absl::Status PreparePoolEntry(PoolEntry* entry) {
  if (entry->base == 0 || entry->base % kLocatorChunkBytes != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: base %#x is not a multiple of 4 GiB above 0; map the pool "
        "with Reservation",
        entry->pool_id, entry->base));
  }
  if (entry->bytes == 0 || entry->base >= kAddressSpaceBytes ||
      entry->bytes > kAddressSpaceBytes - entry->base) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: base %#x + %u bytes is empty or ends above the %u-bit "
        "address space",
        entry->pool_id, entry->base, entry->bytes, kLocatorAddressBits));
  }
  if (entry->slots == 0 || entry->memories_per_instance == 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: slots %u and memories_per_instance %u must not be 0",
        entry->pool_id, entry->slots, entry->memories_per_instance));
  }
  if (entry->slots % entry->memories_per_instance != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: slots %u is not a multiple of memories_per_instance %u",
        entry->pool_id, entry->slots, entry->memories_per_instance));
  }
  if (entry->slot_stride_bytes == 0 ||
      entry->slot_stride_bytes % kPageBytes != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: slot_stride_bytes %u is not a multiple of the page size %u "
        "above 0",
        entry->pool_id, entry->slot_stride_bytes, kPageBytes));
  }
  if (entry->first_memory_offset_bytes % kPageBytes != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: first_memory_offset_bytes %u is not a multiple of the page "
        "size %u",
        entry->pool_id, entry->first_memory_offset_bytes, kPageBytes));
  }
  if (entry->max_memory_bytes == 0 ||
      entry->max_memory_bytes > entry->slot_stride_bytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: max_memory_bytes %u is not in [1, slot_stride_bytes %u]",
        entry->pool_id, entry->max_memory_bytes, entry->slot_stride_bytes));
  }
  if (entry->unowned_guard_bytes >
      entry->slot_stride_bytes - entry->max_memory_bytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: unowned_guard_bytes %u is more than the guard between two "
        "memories, slot_stride_bytes %u - max_memory_bytes %u",
        entry->pool_id, entry->unowned_guard_bytes, entry->slot_stride_bytes,
        entry->max_memory_bytes));
  }
  // Uses division instead of multiplication, so that nothing can overflow.
  if (entry->bytes < entry->first_memory_offset_bytes ||
      (entry->bytes - entry->first_memory_offset_bytes) %
              entry->slot_stride_bytes !=
          0 ||
      (entry->bytes - entry->first_memory_offset_bytes) /
              entry->slot_stride_bytes !=
          entry->slots) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: bytes %u is not first_memory_offset_bytes %u + slots %u * "
        "slot_stride_bytes %u",
        entry->pool_id, entry->bytes, entry->first_memory_offset_bytes,
        entry->slots, entry->slot_stride_bytes));
  }
  if (entry->first_size_bytes == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("pool %u: first_size_bytes is null", entry->pool_id));
  }
  if (entry->size_stride_bytes % alignof(std::atomic<uint64_t>) != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "pool %u: size_stride_bytes %u is not a multiple of %u", entry->pool_id,
        entry->size_stride_bytes, alignof(std::atomic<uint64_t>)));
  }
  entry->slot_stride_reciprocal = Reciprocal(entry->slot_stride_bytes);
  entry->memories_per_instance_reciprocal =
      Reciprocal(entry->memories_per_instance);
  return absl::OkStatus();
}

absl::Status RegisterPool(PoolEntry* entry) {
  Registry& registry = TheRegistry();
  MutexLock lock(&registry.mutex);
  // Under the lock, and before anything is written: an entry that is already
  // registered is being read.
  const size_t first = entry->base / kLocatorChunkBytes;
  if (PoolIn(first) == entry) {
    return absl::AlreadyExistsError(
        absl::StrCat(Name(*entry), " is registered already"));
  }
  if (absl::Status status = PreparePoolEntry(entry); !status.ok()) {
    return status;
  }
  for (size_t chunk = FirstChunk(*entry); chunk <= LastChunk(*entry); ++chunk) {
    const PoolEntry* const other = PoolIn(chunk);
    if (other != nullptr) {
      return absl::AlreadyExistsError(absl::StrCat(
          Name(*entry), " has addresses in the same 4 GiB as ", Name(*other),
          "; unregister that one before its memory is unmapped, and begin "
          "each pool at a multiple of 4 GiB behind the other's last"));
    }
  }
  PoolRecord* const record = RecordFor(*entry, registry);
  for (size_t chunk = FirstChunk(*entry); chunk <= LastChunk(*entry); ++chunk) {
    g_chunks[chunk].store(record, std::memory_order_release);
  }
  ++registry.pools;
  return absl::OkStatus();
}

void UnregisterPool(const PoolEntry* entry) {
  Registry& registry = TheRegistry();
  MutexLock lock(&registry.mutex);
  const size_t first = FirstChunk(*entry);
  if (PoolIn(first) != entry) return;
  PoolRecord* const record = g_chunks[first].load(std::memory_order_relaxed);
  for (size_t chunk = first; chunk <= LastChunk(*entry); ++chunk) {
    g_chunks[chunk].store(nullptr, std::memory_order_release);
  }
  record->in_use = false;
  --registry.pools;
}

size_t RegisteredPools() {
  Registry& registry = TheRegistry();
  MutexLock lock(&registry.mutex);
  return registry.pools;
}

}  // namespace firsttouch
