#include "firsttouch/service/reclaim.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/pool/slot_allocator.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/service/background_reclaim.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_returns.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/batch_drop.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// The minimum of the default limit on retained pages: 1024 pages, 4 MiB.
constexpr uint64_t kMinRetainedPagesLimit = 1024;

// The number of slots whose pages are given back together, with one TLB
// shootdown for all of them. An acquire of one of them waits for all.
constexpr size_t kTrimmedTogether = 32;

// Waits for the slots whose pages another thread is giving back: that thread no
// longer counts them among what idle slots keep, and may not have ended yet.
void WaitForTrims(const SlotState* slots, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    for (SlotLifecycle now = slots[i].lifecycle.Load(std::memory_order_acquire);
         now == SlotLifecycle::kTrimming ||
         now == SlotLifecycle::kTrimmingParked;
         now = slots[i].lifecycle.Load(std::memory_order_acquire)) {
      sched_yield();
    }
  }
}

// Quarantines an idle slot whose trim failed; `before` is its state before the
// trim.
void QuarantineIdle(ServicePool& pool, SlotState& slot, SlotLifecycle before) {
  ForgetIdle(pool, slot);
  slot.lifecycle.Move(SlotLifecycle::kQuarantined);
  // A kFree slot is taken out when the allocator would hand it out.
  if (before == SlotLifecycle::kParked) {
    pool.allocator->Quarantine(pool.SlotNumber(slot));
  }
}

// Gives back the pages of some slots with as few calls as the kernel allows;
// skips slots that are leased by now. Adds the bytes that it gave back to
// `bytes`.
absl::Status TrimSlots(ServicePool& pool, std::span<SlotState* const> slots,
                       uint64_t* bytes) {
  struct Claimed {
    SlotState* slot;
    SlotLifecycle before;
    PageSpan span;
  };
  std::vector<Claimed> claimed;
  DropBatch batch;
  for (SlotState* const slot : slots) {
    const std::optional<SlotLifecycle> before = slot->lifecycle.BeginTrim();
    if (!before.has_value()) continue;
    const PageSpan span = pool.supply->KeptSpan(*slot);
    batch.Add(slot->base + span.first_page * kPageBytes,
              (span.end_page - span.first_page) * kPageBytes);
    claimed.push_back({slot, *before, span});
  }
  if (claimed.empty()) return absl::OkStatus();
  const DropBatch::Result dropped = batch.Drop(pool.kernel);
  Count(claimed.front().slot->counters.kernel_calls, dropped.calls);

  absl::Status failure;
  for (const Claimed& one : claimed) {
    SlotState& slot = *one.slot;
    const int error =
        one.span.empty()
            ? 0
            : dropped.ErrorOf(
                  slot.base + one.span.first_page * kPageBytes,
                  (one.span.end_page - one.span.first_page) * kPageBytes);
    if (absl::Status status = pool.supply->NoteDropped(slot, one.span, error);
        !status.ok()) {
      failure.Update(status);
      QuarantineIdle(pool, slot, one.before);
      continue;
    }
    const uint64_t pages = ForgetIdle(pool, slot);
    CountOwned(slot.counters.pages_trimmed, pages);
    *bytes += pages * kPageBytes;
    slot.lifecycle.Move(one.before);
  }
  return failure;
}

// Notes that a slot keeps `after` pages, where it has kept `before`.
void CountKeeping(ServicePool& pool, uint64_t before, uint64_t after) {
  std::atomic<uint32_t>& slots = pool.fault_pool.keeping_slots;
  if (before == 0 && after != 0) slots.fetch_add(1, std::memory_order_relaxed);
  if (before != 0 && after == 0) slots.fetch_sub(1, std::memory_order_relaxed);
}

// UnbindSlot() for an idle slot whose image is no longer in use. Adds the
// private bytes of the slot to `bytes`.
void UnbindIdle(ServicePool& pool, SlotState& slot,
                std::vector<std::shared_ptr<const Image>>& dropped,
                uint64_t* bytes) {
  const std::optional<SlotLifecycle> before = slot.lifecycle.BeginTrim();
  if (!before.has_value()) return;
  slot.exceptions.fetch_and(static_cast<uint8_t>(~kSlotImageUnused),
                            std::memory_order_relaxed);
  if (slot.remap_wanted || (slot.image != nullptr && !slot.image->in_use())) {
    const uint64_t pages = slot.idle.pages.load(std::memory_order_relaxed);
    dropped.push_back(UnbindSlot(pool, slot));
    if (slot.place_lost) {
      QuarantineIdle(pool, slot, *before);
      return;
    }
    CountOwned(slot.counters.pages_trimmed, pages);
    *bytes += pages * kPageBytes;
  }
  slot.lifecycle.Move(*before);
}

}  // namespace

uint64_t RetainedPagesLimit(const ServicePool& pool, uint64_t keep_pages) {
  if (pool.options.resident_budget_bytes == uint64_t{0}) return 0;
  return pool.options.retained_pages_limit.value_or(
      std::max(kMinRetainedPagesLimit, keep_pages / 2));
}

void NoteIdle(ServicePool& pool, SlotState& slot) {
  const uint64_t pages = pool.supply->KeptPages(slot);
  const uint64_t before = slot.idle.pages.load(std::memory_order_relaxed);
  if (pages == before) return;
  slot.idle.pages.store(pages, std::memory_order_relaxed);
  CountKeeping(pool, before, pages);
  pool.kept_by_slots.fetch_add(static_cast<int64_t>(pages - before),
                               std::memory_order_relaxed);
}

uint64_t ForgetIdle(ServicePool& pool, SlotState& slot) {
  const uint64_t pages = slot.idle.pages.exchange(0, std::memory_order_relaxed);
  CountKeeping(pool, pages, 0);
  if (pages != 0) {
    pool.kept_by_slots.fetch_sub(static_cast<int64_t>(pages),
                                 std::memory_order_relaxed);
  }
  return pages;
}

void WakeIfOverBudget(ServicePool& pool) {
  const int64_t kept = pool.kept_by_slots.load(std::memory_order_relaxed);
  if (kept > 0 && static_cast<uint64_t>(kept) * kPageBytes >
                      *pool.options.resident_budget_bytes) {
    // Ensures that background reclaim finds the slot in kReturning, or later.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    pool.background_reclaim->Wake();
  }
}

absl::Status DropKept(ServicePool& pool, SlotState& slot) {
  const PageSpan span = pool.supply->KeptSpan(slot);
  int error = 0;
  if (!span.empty()) {
    Count(slot.counters.kernel_calls);
    error =
        DropMappedPages(pool.kernel, slot.base + span.first_page * kPageBytes,
                        (span.end_page - span.first_page) * kPageBytes)
            .error;
  }
  return pool.supply->NoteDropped(slot, span, error);
}

void PutOffDemotion(ServicePool& pool, const SlotState& slot) {
  const uint32_t name = pool.SlotNumber(slot) + 1;
  for (std::atomic<uint32_t>& cell : pool.put_off) {
    uint32_t there = cell.load(std::memory_order_relaxed);
    if (there == name) return;
    if (there == 0 &&
        cell.compare_exchange_strong(there, name, std::memory_order_relaxed)) {
      return;
    }
  }
  // No room: the end of the slot's next sampling window is soon enough.
}

absl::Status Demote(ServicePool& pool, SlotState& slot) {
  struct Cold {
    SlotState* slot;
    // Checks other slots, which are idle; not the caller's.
    std::optional<SlotLifecycle> before;
  };
  std::vector<Cold> all = {{&slot, std::nullopt}};
  for (std::atomic<uint32_t>& cell : pool.put_off) {
    const uint32_t name = cell.exchange(0, std::memory_order_relaxed);
    if (name == 0 || name == pool.SlotNumber(slot) + 1) continue;
    SlotState& other = pool.slots[name - 1];
    // The thread that holds the slot puts it off again, or comes here itself.
    const std::optional<SlotLifecycle> before = other.lifecycle.BeginTrim();
    if (before.has_value()) all.push_back({&other, before});
  }
  DropBatch batch;
  for (const Cold& one : all) {
    pool.supply->AddColdPages(*one.slot, batch);
  }
  const DropBatch::Result dropped = batch.Drop(pool.kernel);
  Count(slot.counters.kernel_calls, dropped.calls);
  absl::Status own;
  for (const Cold& one : all) {
    absl::Status status = pool.supply->NoteDemoted(*one.slot, dropped);
    if (!one.before.has_value()) {
      own = status;
    } else if (status.ok()) {
      NoteIdle(pool, *one.slot);
      one.slot->lifecycle.Move(*one.before);
    } else {
      QuarantineIdle(pool, *one.slot, *one.before);
    }
  }
  return own;
}

void DropWhatIsDistrusted(ServicePool& pool) {
  if (!pool.supply->DistrustsPages()) return;
  for (uint32_t i = 0; i < pool.layout.slots(); ++i) {
    pool.slots[i].exceptions.fetch_or(kSlotDistrusted,
                                      std::memory_order_relaxed);
  }
  // Free slots keep pages for a lease that begins on the steady path.
  TrimTo(pool, 0, nullptr).IgnoreError();
}

void HeedDistrust(SlotState& slot) {
  if ((slot.exceptions.load(std::memory_order_relaxed) & kSlotDistrusted) ==
      0) {
    return;
  }
  slot.exceptions.fetch_or(kSlotDropped, std::memory_order_relaxed);
  slot.exceptions.fetch_and(static_cast<uint8_t>(~kSlotDistrusted),
                            std::memory_order_relaxed);
}

void LetGoOfImage(ServicePool& pool, const Image& image,
                  std::vector<std::shared_ptr<const Image>>& dropped) {
  if (!pool.InOwnerProcess()) return;
  const auto has_it = [&](const SlotState& slot) {
    return slot.image_id.load(std::memory_order_seq_cst) == image.id();
  };
  bool any = false;
  for (uint32_t i = 0; i < pool.layout.slots(); ++i) {
    if (!has_it(pool.slots[i])) continue;
    any = true;
    pool.slots[i].exceptions.fetch_or(kSlotImageUnused,
                                      std::memory_order_seq_cst);
  }
  if (!any) return;
  // A release that does not see the mark is in kParking, or has ended.
  pool.steady.fence.Heavy();
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < pool.layout.slots(); ++i) {
    SlotState& slot = pool.slots[i];
    while (has_it(slot)) {
      const SlotLifecycle lifecycle =
          slot.lifecycle.Load(std::memory_order_acquire);
      // These states pass quickly. A slot that is leased or returning unbinds
      // the image by itself.
      if (lifecycle == SlotLifecycle::kParking ||
          lifecycle == SlotLifecycle::kTrimming ||
          lifecycle == SlotLifecycle::kTrimmingParked) {
        sched_yield();
        continue;
      }
      if (lifecycle != SlotLifecycle::kFree &&
          lifecycle != SlotLifecycle::kParked) {
        break;
      }
      UnbindIdle(pool, slot, dropped, &bytes);
      // The image may be in use again.
      if (image.in_use()) return;
    }
  }
}

absl::StatusOr<uint64_t> TrimPool(ServicePool& pool) {
  if (absl::Status status = pool.CheckProcess(); !status.ok()) return status;
  // Unbinds images that could not be unmapped when their last handles were
  // dropped.
  uint64_t unbound = 0;
  std::vector<std::shared_ptr<const Image>> dropped;
  for (uint32_t i = 0; i < pool.layout.slots(); ++i) {
    if (pool.slots[i].image_id.load(std::memory_order_relaxed) != 0) {
      UnbindIdle(pool, pool.slots[i], dropped, &unbound);
    }
  }
  // TrimTo skips the slots that the pool's own thread is trimming. The wait
  // before it has the slots that are being trimmed already counted when they
  // are done; the wait after it makes sure that those whose trim began
  // meanwhile have lost their pages.
  WaitForTrims(pool.slots.get(), pool.layout.slots());
  absl::StatusOr<uint64_t> trimmed =
      TrimTo(pool, pool.options.resident_budget_bytes.value_or(0), nullptr);
  WaitForTrims(pool.slots.get(), pool.layout.slots());
  if (!trimmed.ok()) return trimmed;
  return *trimmed + unbound;
}

absl::StatusOr<uint64_t> TrimTo(ServicePool& pool, uint64_t budget,
                                bool* more) {
  if (absl::Status status = pool.CheckProcess(); !status.ok()) return status;
  struct Idle {
    uint64_t released_ns;
    uint64_t pages;
    SlotState* slot;
  };
  std::vector<Idle> idle;
  uint64_t kept = 0;
  uint64_t returning = 0;
  for (uint32_t i = 0; i < pool.layout.slots(); ++i) {
    SlotState& slot = pool.slots[i];
    // This load and BackgroundReclaim::Wake are in one total order.
    const SlotLifecycle lifecycle =
        slot.lifecycle.Load(std::memory_order_seq_cst);
    const uint64_t pages = slot.idle.pages.load(std::memory_order_relaxed);
    if (lifecycle == SlotLifecycle::kReturning ||
        lifecycle == SlotLifecycle::kParking) {
      returning += pages * kPageBytes;
    }
    if (pages == 0 || (lifecycle != SlotLifecycle::kFree &&
                       lifecycle != SlotLifecycle::kParked)) {
      continue;
    }
    idle.push_back(
        {slot.idle.released_ns.load(std::memory_order_relaxed), pages, &slot});
    kept += pages * kPageBytes;
  }
  if (more != nullptr) *more = returning != 0 && kept + returning > budget;
  if (kept <= budget) return 0;
  std::sort(idle.begin(), idle.end(), [](const Idle& a, const Idle& b) {
    return a.released_ns < b.released_ns;
  });
  std::vector<SlotState*> victims;
  for (const Idle& one : idle) {
    if (kept <= budget) break;
    victims.push_back(one.slot);
    kept -= one.pages * kPageBytes;
  }
  uint64_t bytes = 0;
  absl::Status failure;
  for (std::span<SlotState* const> rest(victims); !rest.empty();) {
    const size_t count = std::min(rest.size(), kTrimmedTogether);
    failure.Update(TrimSlots(pool, rest.first(count), &bytes));
    rest = rest.subspan(count);
  }
  if (!failure.ok()) return failure;
  return bytes;
}

}  // namespace firsttouch
