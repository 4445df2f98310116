#include "firsttouch/service/uffd_restore.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/restore_groups.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/service/uffd_drop.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/service/uffd_tracking.h"

namespace firsttouch {
namespace {

// Tells the image which pages guests write: those that `pages_of` returns for
// each group.
template <typename PagesOf>
void Teach(const SlotState& slot, PagesOf pages_of) {
  WorkingSet::Words words;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t pages = pages_of(group);
    if (pages == 0) return;
    words.resize(index + 1);
    words[index] = pages;
  });
  slot.image->working_set().LearnWritten(words);
}

// Tells the image which pages below `end_page` guests touch: those that are
// present. Pages that were mapped because the set said so teach nothing new,
// since they are in it.
void TeachReads(SlotState& slot, uint64_t end_page) {
  slot.reads_to_teach.store(false, std::memory_order_relaxed);
  if (slot.image == nullptr) return;
  WorkingSet::Words words;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t pages = (group.present.load(std::memory_order_relaxed) |
                            group.dirty.load(std::memory_order_relaxed)) &
                           WordMask(index, 0, end_page);
    if (pages == 0) return;
    words.resize(index + 1);
    words[index] = pages;
  });
  slot.image->working_set().LearnRead(words);
}

// Ends a profiling lease: keeps the working set that it has shown, and nothing
// else.
absl::Status FinishProfilingLease(const UffdContext& context, SlotState& slot) {
  const uint64_t pages = slot.kernel_pages;
  if (FindKernelWrites(context, slot).ok()) {
    Teach(slot, [](const PageGroup& group) {
      return group.dirty.load(std::memory_order_relaxed);
    });
    TeachReads(slot, pages);
  }
  if (absl::Status status = DropRange(context, slot, 0, pages); !status.ok()) {
    return status;
  }
  slot.kernel_pages = 0;
  slot.tracking = Tracking::kSignal;
  slot.prefill_wanted = true;
  return RegisterForSignals(context, slot, 0, pages);
}

// Pages to demote are put off until there are this many, or for this many
// windows.
constexpr uint64_t kWorthDemoting = 8;
constexpr uint32_t kPutOffWindows = 8;

// The cost of restoring these pages of a group, in ns.
double RestoreNs(const SlotState& slot, uint64_t index, uint64_t pages) {
  const uint64_t of_image = WordMask(index, 0, slot.image_pages);
  return std::popcount(pages & of_image) * kRestoreNs +
         std::popcount(pages & ~of_image) * kRestoreZeroNs;
}

// Ends a sampling window: acts on what was counted in it.
absl::Status EndSamplingWindow(const UffdContext& context, SlotState& slot,
                               uint64_t keep_pages) {
  uint64_t retained_pages = 0;
  double retained_ns = 0;
  uint64_t demotable = 0;
  slot.demotion.cold_pages.clear();
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t dirty = group.dirty.load(std::memory_order_relaxed);
    const uint64_t recent = group.recent.load(std::memory_order_relaxed);
    const uint64_t known =
        recent | group.previous.load(std::memory_order_relaxed);
    const uint64_t retained =
        slot.tracking == Tracking::kSignal ? dirty : known;
    retained_pages += std::popcount(retained);
    retained_ns += RestoreNs(slot, index, retained);
    const uint64_t cold =
        dirty & ~known & ~WordMask(index, 0, slot.kernel_pages);
    if (cold != 0) {
      slot.demotion.cold_pages.resize(index + 1);
      slot.demotion.cold_pages[index] = cold;
      demotable += std::popcount(cold);
    }
  });
  const auto cycles = static_cast<double>(slot.window_cycles);
  if (slot.policy != nullptr && !slot.policy->fixed() &&
      slot.window.pairs != 0) {
    slot.policy->Vote(
        {.changed = static_cast<double>(slot.window_changed) / cycles,
         .regular = static_cast<double>(slot.window.regular) /
                    static_cast<double>(slot.window.pairs),
         .faulted = static_cast<double>(slot.window.faulted) / cycles,
         .retained = static_cast<double>(retained_pages),
         .restore_ns = retained_pages == 0
                           ? kRestoreNs
                           : retained_ns / static_cast<double>(retained_pages),
         .pages = static_cast<double>(WrittenEnd(slot, keep_pages))});
  }
  slot.demotion.due =
      demotable >= kWorthDemoting ||
      (demotable != 0 && ++slot.demotion.windows_put_off >= kPutOffWindows);
  absl::Status status;
  if (slot.tracking == Tracking::kAsync && slot.kernel_pages < keep_pages &&
      slot.window.signals * kSignalNs >
          cycles * (kScanNs + static_cast<double>(keep_pages) * kScanPageNs)) {
    // The dirty set churns behind the image, too.
    status = EnterAsync(context, slot, keep_pages);
  }
  if (slot.window.windows_to_teach > 0 && slot.image != nullptr) {
    --slot.window.windows_to_teach;
    Teach(slot, [](const PageGroup& group) {
      return group.recent.load(std::memory_order_relaxed) &
             group.previous.load(std::memory_order_relaxed);
    });
  }
  slot.pages.NextSamplingWindow();
  BeginSamplingWindow(slot);
  return status;
}

// Notes how far upwards the guest has touched the pages that it grew into.
void NoteGrowth(SlotState& slot, uint64_t keep_pages, uint64_t size_pages) {
  uint64_t page = keep_pages;
  while (page < size_pages) {
    const PageGroup& group = slot.pages.GroupOf(page);
    const uint64_t touched = group.dirty.load(std::memory_order_relaxed) |
                             group.present.load(std::memory_order_relaxed);
    const uint64_t bit = page % kPagesPerGroup;
    const uint64_t run = std::countr_one(touched >> bit);
    page += run;
    if (bit + run < kPagesPerGroup) break;
  }
  slot.growth.pages_before = slot.growth.pages;
  slot.growth.pages =
      static_cast<uint32_t>(std::min(page, size_pages) - keep_pages);
}

}  // namespace

absl::Status RestorePages(const UffdContext& context, SlotState& slot,
                          uint64_t keep_pages, uint64_t size_pages,
                          uint64_t retained_pages_limit) {
  slot.filled.store(false, std::memory_order_relaxed);
  if (slot.reads_to_teach.load(std::memory_order_relaxed)) {
    TeachReads(slot, keep_pages);
  }
  // Pages that were grown into are dropped first, so that nothing below has to
  // look at them.
  if (size_pages > keep_pages) {
    NoteGrowth(slot, keep_pages, size_pages);
    if (absl::Status status = DropPages(context, slot, keep_pages, size_pages);
        !status.ok()) {
      return status;
    }
  }
  if (slot.tracking == Tracking::kProfiling) {
    if (absl::Status status = FinishProfilingLease(context, slot);
        !status.ok()) {
      return status;
    }
  }
  if (absl::Status status = SettleUntracked(context, slot, keep_pages);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = FindKernelWrites(context, slot); !status.ok()) {
    return status;
  }
  uint64_t dirty_pages = 0;
  uint64_t unsure_first = keep_pages;
  uint64_t unsure_end = 0;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t dirty = group.dirty.load(std::memory_order_acquire);
    dirty_pages += std::popcount(dirty);
    // Dirty without being present: a fill failed half-way. The page may or may
    // not be there, so touching it could fault.
    const uint64_t unsure =
        dirty & ~group.present.load(std::memory_order_relaxed);
    if (unsure != 0) {
      const uint64_t base = index * kPagesPerGroup;
      unsure_first =
          std::min<uint64_t>(unsure_first, base + std::countr_zero(unsure));
      unsure_end = base + std::bit_width(unsure);
    }
  });
  if (dirty_pages > retained_pages_limit) {
    slot.prefill_wanted = slot.image != nullptr;
    return DropPages(context, slot, 0, keep_pages);
  }
  if (unsure_first < unsure_end) {
    if (absl::Status status =
            DropPages(context, slot, unsure_first, unsure_end);
        !status.ok()) {
      return status;
    }
  }
  uint64_t first_writes = 0;
  uint64_t late_writes = 0;
  uint64_t first_writes_by_signal = 0;
  double wasted_ns = 0;
  ProtectCosts protect_costs = {.pages = slot.kernel_pages};
  const bool async = slot.tracking == Tracking::kAsync;
  uint64_t changed_pages = 0;
  uint64_t regular_pages = 0;
  RestoreGroups(
      slot,
      [&](uint64_t index, PageGroup& group, uint64_t dirty,
          uint64_t really_changed) {
        const uint64_t fresh =
            dirty & ~group.retained.load(std::memory_order_relaxed);
        const uint64_t changed = really_changed | fresh;
        changed_pages += std::popcount(changed);
        first_writes += std::popcount(fresh);
        late_writes += std::popcount(
            changed & ~group.recent.load(std::memory_order_relaxed) &
            ~group.previous.load(std::memory_order_relaxed));
        if (fresh != 0) group.retained.store(dirty, std::memory_order_relaxed);
        const uint64_t regular =
            changed & group.last.load(std::memory_order_relaxed);
        regular_pages += std::popcount(regular);
        group.last.store(changed, std::memory_order_relaxed);
        if (async) {
          const uint64_t by_kernel = WordMask(index, 0, slot.kernel_pages);
          protect_costs.dirty += std::popcount(dirty & by_kernel);
          protect_costs.regular += std::popcount(regular & by_kernel);
          wasted_ns += RestoreNs(slot, index, dirty & by_kernel & ~changed);
          first_writes_by_signal += std::popcount(fresh & ~by_kernel);
        }
        NoteChanged(group, changed);
      },
      [](PageGroup& group) {
        if (group.last.load(std::memory_order_relaxed) != 0) {
          group.last.store(0, std::memory_order_relaxed);
        }
      });
  if (first_writes != 0 && slot.image != nullptr) {
    slot.window.windows_to_teach = 2;
    if (!slot.image->working_set().known()) {
      Teach(slot, [](const PageGroup& group) {
        return group.dirty.load(std::memory_order_relaxed);
      });
    }
  }
  slot.window_changed += changed_pages;
  if (slot.window.last_noted_at == slot.window_cycles) {
    slot.window.regular += regular_pages;
    ++slot.window.pairs;
  }
  if (async) {
    slot.window.faulted += late_writes;
    slot.window.signals += first_writes_by_signal;
    slot.async.wasted_ns += static_cast<uint64_t>(
        wasted_ns + (slot.async.all_marked ? 0 : kExactScanNs));
    if (ShouldProtectAll(slot.async.wasted_ns, protect_costs)) {
      ProtectAll(context, slot);
    }
  } else {
    slot.window.faulted += first_writes;
  }
  absl::Status status;
  if (++slot.window_cycles >= context.window_cycles) {
    status = EndSamplingWindow(context, slot, keep_pages);
  }
  slot.window.last_noted_at = slot.window_cycles;
  return status;
}

}  // namespace firsttouch
