#include "firsttouch/service/leases.h"

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/pool/slot_allocator.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/parked_slot.h"
#include "firsttouch/service/publish.h"
#include "firsttouch/service/reclaim.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/slot_returns.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/steady_path.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// The values of FaultHandlerChanges() at which this thread's signals were found
// unblocked, and our handler was found in place.
thread_local uint32_t t_unblocked_at = 0;
thread_local uint32_t t_in_place_at = 0;

// Makes the thread ready for guest code, or says why it cannot be. Its signals
// are checked once, and again after each change that we know of.
absl::Status ReadyThread(SignalOwnership signals) {
  if (absl::Status status = EnsureAlternateStack(); !status.ok()) {
    return status;
  }
  const uint32_t changes = FaultHandlerChanges();
  if (t_unblocked_at != changes) {
    if (absl::Status status = CheckSignalsUnblocked(); !status.ok()) {
      return status;
    }
    t_unblocked_at = changes;
    NoteThreadReady();
  }
  // The host's own handler is the host's responsibility.
  if (signals == SignalOwnership::kInstall && t_in_place_at != changes) {
    if (absl::Status status = CheckFaultHandler(); !status.ok()) return status;
    t_in_place_at = changes;
  }
  return absl::OkStatus();
}

absl::Status CheckMemoryOptions(const ServicePool& pool,
                                const MemoryOptions& options) {
  const uint64_t size_bytes = options.initial_bytes();
  if (size_bytes > pool.layout.memory_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "size_bytes ", InPages(size_bytes), " exceeds max_memory_bytes ",
        InPages(pool.layout.memory_bytes()), " of pool \"", pool.options.name,
        "\": ask for less, or raise LayoutOptions::max_memory_bytes"));
  }
  if (options.image == nullptr) return absl::OkStatus();
  if (options.image->size_bytes() > size_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("image \"", options.image->name(), "\" of ",
                     InPages(options.image->size_bytes()),
                     " bytes is larger than size_bytes ", InPages(size_bytes),
                     " of the memory: raise MemoryOptions::size_bytes"));
  }
  if (absl::Status status = options.image->CheckProcess(); !status.ok()) {
    return status;
  }
  return pool.supply->CheckImage(*options.image);
}

absl::Status CheckAcquireOne(const ServicePool& pool,
                             const MemoryOptions& options) {
  if (absl::Status status = pool.CheckProcess(); !status.ok()) return status;
  if (absl::Status status = ReadyThread(pool.options.signals); !status.ok()) {
    return status;
  }
  const uint32_t per_instance = pool.layout.options().memories_per_instance;
  if (per_instance != 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "pool \"", pool.options.name, "\" has memories_per_instance ",
        per_instance,
        ": an instance is acquired as a whole, by AcquireInstance"));
  }
  return CheckMemoryOptions(pool, options);
}

absl::StatusOr<uint32_t> TakeFromAllocator(ServicePool& pool, uint64_t key,
                                           absl::Time deadline) {
  absl::StatusOr<SlotAllocator::Pick> pick =
      pool.allocator->Acquire(key, deadline);
  if (!pick.ok()) {
    return absl::Status(pick.status().code(),
                        absl::StrCat("pool \"", pool.options.name,
                                     "\": ", pick.status().message()));
  }
  return pick->slot;
}

// `surely`: waits for slots that may or may not become parked. That takes no
// longer than a steady release, or a trim.
std::optional<uint32_t> ClaimAnyParked(ServicePool& pool, bool surely) {
  for (uint32_t i = 0; i < pool.layout.slots(); ++i) {
    SlotState& slot = pool.slots[i];
    SlotLifecycle lifecycle = slot.lifecycle.Load(std::memory_order_acquire);
    while (surely && (lifecycle == SlotLifecycle::kParking ||
                      lifecycle == SlotLifecycle::kTrimmingParked)) {
      sched_yield();
      lifecycle = slot.lifecycle.Load(std::memory_order_acquire);
    }
    if (lifecycle == SlotLifecycle::kParked && slot.lifecycle.TakeParked())
      return i;
  }
  return std::nullopt;
}

absl::StatusOr<uint32_t> TakeInstance(ServicePool& pool,
                                      const MemoryOptions& first) {
  const uint64_t key = first.image == nullptr ? 0 : first.image->id();
  if (!pool.steady.parks) return TakeFromAllocator(pool, key, first.deadline);
  absl::StatusOr<uint32_t> slot =
      TakeFromAllocator(pool, key, absl::InfinitePast());
  if (slot.ok()) return slot;
  // Slots that other threads have parked are free, too. service_pool.h says why
  // this search misses none.
  pool.steady.waiting.fetch_add(1, std::memory_order_seq_cst);
  std::optional<uint32_t> parked = ClaimAnyParked(pool, /*surely=*/false);
  if (!parked.has_value()) {
    pool.steady.fence.Heavy();
    parked = ClaimAnyParked(pool, /*surely=*/true);
  }
  if (!parked.has_value()) slot = TakeFromAllocator(pool, key, first.deadline);
  pool.steady.waiting.fetch_sub(1, std::memory_order_relaxed);
  if (parked.has_value()) return *parked;
  return slot;
}

// After an error call GiveUpSlot().
absl::Status PrepareSlot(ServicePool& pool, SlotState& slot,
                         const MemoryOptions& options) {
  const uint64_t size_bytes = options.initial_bytes();
  const uint64_t size_pages = PagesRoundedUp(size_bytes).value();
  DropWhatIsDistrusted(pool);
  HeedDistrust(slot);
  if (absl::Status status = pool.supply->Bind(slot, options.image, size_pages);
      !status.ok()) {
    return status;
  }
  PublishImage(pool, slot);
  slot.kept_pages = size_pages;
  if (slot.prefill_wanted) {
    pool.supply->Prefill(slot, size_pages,
                         RetainedPagesLimit(pool, size_pages));
    NoteIdle(pool, slot);
  }
  slot.initial_bytes = size_bytes;
  slot.remap_wanted = false;
  // Another thread may have set that one since.
  slot.exceptions.fetch_and(kSlotDistrusted, std::memory_order_relaxed);
  BeginLease(slot, TermsOf(options));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Memory> AcquireAny(ServicePool& pool,
                                  const MemoryOptions& options,
                                  SlotState* own) {
  if (absl::Status status = CheckAcquireOne(pool, options); !status.ok()) {
    if (own != nullptr) ReturnSlot(pool, *own, SlotLifecycle::kFree);
    return status;
  }
  absl::StatusOr<uint32_t> instance =
      own != nullptr ? pool.SlotNumber(*own) : TakeInstance(pool, options);
  while (instance.ok() && !pool.slots[*instance].lifecycle.TakeFree()) {
    pool.allocator->Quarantine(*instance);
    instance = TakeInstance(pool, options);
  }
  if (!instance.ok()) return instance.status();
  SlotState& slot = pool.slots[*instance];
  if (absl::Status status = PrepareSlot(pool, slot, options); !status.ok()) {
    GiveUpSlot(pool, slot);
    return status;
  }
  return pool.MemoryOf(slot);
}

absl::StatusOr<std::vector<Memory>> AcquireInstance(
    ServicePool& pool, std::span<const MemoryOptions> options) {
  if (absl::Status status = pool.CheckProcess(); !status.ok()) return status;
  if (absl::Status status = ReadyThread(pool.options.signals); !status.ok()) {
    return status;
  }
  const uint32_t per_instance = pool.layout.options().memories_per_instance;
  if (options.size() != per_instance) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.size(), " memories asked for in pool \"", pool.options.name,
        "\", whose memories_per_instance is ", per_instance,
        ": give exactly one MemoryOptions for each"));
  }
  for (const MemoryOptions& one : options) {
    if (absl::Status status = CheckMemoryOptions(pool, one); !status.ok()) {
      return status;
    }
  }
  SlotState* const own = ClaimOwn(pool, options[0].image.get());
  absl::StatusOr<uint32_t> instance =
      own != nullptr ? pool.SlotNumber(*own) : TakeInstance(pool, options[0]);
  if (!instance.ok()) return instance.status();
  std::vector<Memory> memories;
  memories.reserve(per_instance);
  absl::Status failure;
  for (uint32_t i = 0; i < per_instance; ++i) {
    SlotState& slot = pool.slots[*instance * per_instance + i];
    if (!slot.lifecycle.TakeFree()) {
      failure.Update(absl::InternalError(absl::StrCat(
          "slot ", pool.SlotNumber(slot), " of pool \"", pool.options.name,
          "\" could not be trimmed and is quarantined")));
      LetGoOfSlot(pool, slot, /*failed=*/true);
      continue;
    }
    if (failure.ok()) failure = PrepareSlot(pool, slot, options[i]);
    if (!failure.ok()) {
      GiveUpSlot(pool, slot);
      continue;
    }
    memories.push_back(pool.MemoryOf(slot));
  }
  if (!failure.ok()) return failure;
  return memories;
}

}  // namespace firsttouch
