// What is done with idle slots: private pages are given back, and counted.

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/uffd/batch_drop.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Slots whose pages are given back together: the kernel then interrupts the
// other cores once for all of them. Whoever wants one of them waits for all.
constexpr size_t kTrimmedTogether = 32;

// Waits for the slots whose pages another thread is giving back: it has counted
// them out of what idle slots keep, and may not have ended yet.
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

}  // namespace

void ServicePool::QuarantineIdle(SlotState& slot, SlotLifecycle before) {
  ForgetIdle(slot);
  slot.lifecycle.Move(SlotLifecycle::kQuarantined);
  // A free one is taken out by whoever gets it from the allocator.
  if (before == SlotLifecycle::kParked) {
    allocator_->Quarantine(SlotNumber(slot));
  }
}

absl::Status ServicePool::TrimSlots(std::span<SlotState* const> slots,
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
    const PageSpan span = supply_->KeptSpan(*slot);
    batch.Add(slot->base + span.first_page * kPageBytes,
              (span.end_page - span.first_page) * kPageBytes);
    claimed.push_back({slot, *before, span});
  }
  if (claimed.empty()) return absl::OkStatus();
  const DropBatch::Result dropped = batch.Drop(kernel_);
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
    if (absl::Status status = supply_->NoteDropped(slot, one.span, error);
        !status.ok()) {
      failure.Update(status);
      QuarantineIdle(slot, one.before);
      continue;
    }
    const uint64_t pages = ForgetIdle(slot);
    CountOwned(slot.counters.pages_trimmed, pages);
    *bytes += pages * kPageBytes;
    slot.lifecycle.Move(one.before);
  }
  return failure;
}

void ServicePool::UnbindIdle(SlotState& slot,
                             std::vector<std::shared_ptr<const Image>>& dropped,
                             uint64_t* bytes) {
  const std::optional<SlotLifecycle> before = slot.lifecycle.BeginTrim();
  if (!before.has_value()) return;
  slot.exceptions.fetch_and(static_cast<uint8_t>(~kSlotImageUnused),
                            std::memory_order_relaxed);
  if (slot.remap_wanted || (slot.image != nullptr && !slot.image->in_use())) {
    const uint64_t pages = slot.idle_pages.load(std::memory_order_relaxed);
    dropped.push_back(Unbind(slot));
    if (slot.place_lost) {
      QuarantineIdle(slot, *before);
      return;
    }
    CountOwned(slot.counters.pages_trimmed, pages);
    *bytes += pages * kPageBytes;
  }
  slot.lifecycle.Move(*before);
}

void ServicePool::LetGoOfImage(
    const Image& image, std::vector<std::shared_ptr<const Image>>& dropped) {
  if (!InOwnerProcess()) return;
  const auto has_it = [&](const SlotState& slot) {
    return slot.image_id.load(std::memory_order_seq_cst) == image.id();
  };
  bool any = false;
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    if (!has_it(slots_[i])) continue;
    any = true;
    slots_[i].exceptions.fetch_or(kSlotImageUnused, std::memory_order_seq_cst);
  }
  if (!any) return;
  // A release that does not see the mark is in kParking, or has ended.
  steady_.fence.Heavy();
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    SlotState& slot = slots_[i];
    while (has_it(slot)) {
      const SlotLifecycle lifecycle =
          slot.lifecycle.Load(std::memory_order_acquire);
      // These are moments. A slot that is leased or returning lets go by
      // itself.
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
      UnbindIdle(slot, dropped, &bytes);
      // Somebody may use it again.
      if (image.in_use()) return;
    }
  }
}

absl::StatusOr<uint64_t> ServicePool::Trim() {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  // What the end of an image's last handle has left, since it could not be
  // unmapped then.
  uint64_t unbound = 0;
  std::vector<std::shared_ptr<const Image>> dropped;
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    if (slots_[i].image_id.load(std::memory_order_relaxed) != 0) {
      UnbindIdle(slots_[i], dropped, &unbound);
    }
  }
  // TrimTo leaves out the slots that the pool's own thread trims at that
  // moment. Those it finds in that thread's hands before count with their
  // pages once they are out; those that come into them meanwhile lose theirs.
  WaitForTrims(slots_.get(), layout_.slots());
  absl::StatusOr<uint64_t> trimmed =
      TrimTo(options_.resident_budget_bytes.value_or(0), nullptr);
  WaitForTrims(slots_.get(), layout_.slots());
  if (!trimmed.ok()) return trimmed;
  return *trimmed + unbound;
}

absl::StatusOr<uint64_t> ServicePool::TrimTo(uint64_t budget, bool* more) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  struct Idle {
    uint64_t released_ns;
    uint64_t pages;
    SlotState* slot;
  };
  std::vector<Idle> idle;
  uint64_t kept = 0;
  uint64_t returning = 0;
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    SlotState& slot = slots_[i];
    // In one order with BackgroundReclaim::Wake.
    const SlotLifecycle lifecycle =
        slot.lifecycle.Load(std::memory_order_seq_cst);
    const uint64_t pages = slot.idle_pages.load(std::memory_order_relaxed);
    if (lifecycle == SlotLifecycle::kReturning ||
        lifecycle == SlotLifecycle::kParking) {
      returning += pages * kPageBytes;
    }
    if (pages == 0 || (lifecycle != SlotLifecycle::kFree &&
                       lifecycle != SlotLifecycle::kParked)) {
      continue;
    }
    idle.push_back(
        {slot.released_ns.load(std::memory_order_relaxed), pages, &slot});
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
    failure.Update(TrimSlots(rest.first(count), &bytes));
    rest = rest.subspan(count);
  }
  if (!failure.ok()) return failure;
  return bytes;
}

absl::Status ServicePool::DropKept(SlotState& slot) {
  const PageSpan span = supply_->KeptSpan(slot);
  int error = 0;
  if (!span.empty()) {
    Count(slot.counters.kernel_calls);
    error = DropMappedPages(kernel_, slot.base + span.first_page * kPageBytes,
                            (span.end_page - span.first_page) * kPageBytes)
                .error;
  }
  return supply_->NoteDropped(slot, span, error);
}

void ServicePool::NoteIdle(SlotState& slot) {
  const uint64_t pages = supply_->KeptPages(slot);
  const uint64_t before = slot.idle_pages.load(std::memory_order_relaxed);
  if (pages == before) return;
  slot.idle_pages.store(pages, std::memory_order_relaxed);
  kept_by_slots_.fetch_add(static_cast<int64_t>(pages - before),
                           std::memory_order_relaxed);
}

uint64_t ServicePool::ForgetIdle(SlotState& slot) {
  const uint64_t pages = slot.idle_pages.exchange(0, std::memory_order_relaxed);
  if (pages != 0) {
    kept_by_slots_.fetch_sub(static_cast<int64_t>(pages),
                             std::memory_order_relaxed);
  }
  return pages;
}

void ServicePool::WakeIfOverBudget() {
  const int64_t kept = kept_by_slots_.load(std::memory_order_relaxed);
  if (kept > 0 && static_cast<uint64_t>(kept) * kPageBytes >
                      *options_.resident_budget_bytes) {
    // Background reclaim finds the slot in kReturning, or later.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    background_reclaim_->Wake();
  }
}

void ServicePool::PutOffDemotion(const SlotState& slot) {
  const uint32_t name = SlotNumber(slot) + 1;
  for (std::atomic<uint32_t>& cell : put_off_) {
    uint32_t there = cell.load(std::memory_order_relaxed);
    if (there == name) return;
    if (there == 0 &&
        cell.compare_exchange_strong(there, name, std::memory_order_relaxed)) {
      return;
    }
  }
  // No room: the end of its next sampling window is soon enough.
}

absl::Status ServicePool::Demote(SlotState& slot) {
  struct Cold {
    SlotState* slot;
    // Of idle slots; not of the caller's.
    std::optional<SlotLifecycle> before;
  };
  std::vector<Cold> all = {{&slot, std::nullopt}};
  for (std::atomic<uint32_t>& cell : put_off_) {
    const uint32_t name = cell.exchange(0, std::memory_order_relaxed);
    if (name == 0 || name == SlotNumber(slot) + 1) continue;
    SlotState& other = slots_[name - 1];
    // The thread that has it puts it off again, or comes here itself.
    const std::optional<SlotLifecycle> before = other.lifecycle.BeginTrim();
    if (before.has_value()) all.push_back({&other, before});
  }
  DropBatch batch;
  for (const Cold& one : all) {
    supply_->AddColdPages(*one.slot, batch);
  }
  const DropBatch::Result dropped = batch.Drop(kernel_);
  Count(slot.counters.kernel_calls, dropped.calls);
  absl::Status own;
  for (const Cold& one : all) {
    absl::Status status = supply_->NoteDemoted(*one.slot, dropped);
    if (!one.before.has_value()) {
      own = status;
    } else if (status.ok()) {
      NoteIdle(*one.slot);
      one.slot->lifecycle.Move(*one.before);
    } else {
      QuarantineIdle(*one.slot, *one.before);
    }
  }
  return own;
}

}  // namespace firsttouch
