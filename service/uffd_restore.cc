#include "firsttouch/service/uffd_restore.h"

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/restore_groups.h"
#include "firsttouch/service/retention.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/service/uffd_drop.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/service/uffd_tracking.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Tells the image which pages guests write: those that `pages_of` returns for
// each group.
template <typename PagesOf>
void Teach(const SlotState& slot, PagesOf pages_of) {
  WorkingSet::Words words;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t pages = pages_of(index, group);
    if (pages == 0) return;
    words.resize(index + 1);
    words[index] = pages;
  });
  slot.image->working_set().LearnWritten(words);
}

// Tells the image which pages below `end_page` guests touch: those that are
// present. Retained pages are there in any case. Pages that were mapped because
// the set said so teach nothing new, since they are in it.
void TeachReads(SlotState& slot, uint64_t end_page) {
  slot.reads_to_teach.store(false, std::memory_order_relaxed);
  if (slot.image == nullptr) return;
  WorkingSet::Words words;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t pages = (group.present.load(std::memory_order_relaxed) |
                            group.dirty.load(std::memory_order_relaxed)) &
                           ~group.retained.load(std::memory_order_relaxed) &
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
  Kernel& kernel = *context.fault_pool.kernel;
  const uint64_t pages = slot.kernel_pages;
  const uintptr_t start = AddressOf(slot, 0);
  uint64_t touched = 0;
  const bool found = FindKernelWrites(context, slot).ok();
  if (found) {
    slot.pages.ForEachGroup([&](uint64_t, const PageGroup& group) {
      touched += std::popcount(group.present.load(std::memory_order_relaxed));
    });
  }
  bool locked = false;
  CallResult dropped;
  if (!found || touched != 0) {
    Count(slot.counters.kernel_calls);
    dropped = kernel.Madvise(start, pages * kPageBytes, kMadvDontNeed);
    locked = dropped.error == EINVAL;
  }
  if (found && !locked) {
    Teach(slot, [](uint64_t, const PageGroup& group) {
      return group.dirty.load(std::memory_order_relaxed);
    });
    TeachReads(slot, pages);
  }
  slot.pages.Forget(0, pages);
  if (locked) {
    // By mlockall(2): the kernel has populated all of it, so that what is there
    // tells nothing of the guest. The next lease teaches, by its first writes.
    Count(slot.counters.kernel_calls, 2);
    kernel.Munlock(start, pages * kPageBytes);
    dropped = DropMappedPages(kernel, start, pages * kPageBytes);
  }
  if (!dropped.ok()) {
    return CallFailed(context, slot, dropped.error, "MADV_DONTNEED", 0, pages);
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

// Whether ChangeRates counts a lease: one in four of a slot, outside the steady
// path. By chance, so that all of them are counted where different guests take
// turns.
bool IsCounted(Demotion& demotion) {
  demotion.chance = demotion.chance * 1664525 + 1013904223;
  return demotion.chance >> 30 == 0;
}

// The cost of restoring these pages of a group, in ns.
double RestoreNs(const UffdContext& context, const SlotState& slot,
                 uint64_t index, uint64_t pages) {
  const uint64_t of_image = WordMask(index, 0, slot.image_pages);
  return std::popcount(pages & of_image) * context.costs.restore_ns +
         std::popcount(pages & ~of_image) * context.costs.restore_zero_ns;
}

// What the memory of a page is worth now, per cycle.
double MemoryNs(const UffdContext& context) {
  return PageMemoryNs(
      context.retained_bytes_per_us,
      context.fault_pool.keeping_slots.load(std::memory_order_relaxed));
}

uint64_t WordOf(const WorkingSet::Words& words, uint64_t index) {
  return index < words.size() ? words[index] : 0;
}

void AddTo(WorkingSet::Words& words, uint64_t index, uint64_t pages) {
  if (index >= words.size()) words.resize(index + 1);
  words[index] |= pages;
}

// The pages of a group of which there is no reason to give them back: those
// that are worth keeping or, where that is not known, those that were changed
// in the last two sampling windows.
uint64_t WarmPages(const SlotState& slot, uint64_t index,
                   const PageGroup& group) {
  return slot.demotion.regular_version != 0
             ? WordOf(slot.demotion.regular_pages, index)
             : group.recent.load(std::memory_order_relaxed) |
                   group.previous.load(std::memory_order_relaxed);
}

// What one lease tells of which pages are worth keeping (retention.h).
class Retention {
 public:
  Retention(const UffdContext& context, SlotState& slot)
      : context_(context),
        slot_(slot),
        memory_ns_(MemoryNs(context)),
        least_changes_(slot.policy == nullptr
                           ? 0
                           : LeastChanges(context.costs, memory_ns_)) {
    Demotion& demotion = slot.demotion;
    if (least_changes_ == 0) {
      demotion.regular_version = 0;
      return;
    }
    ChangeRates& rates = slot.policy->rates();
    if (const uint64_t version = rates.version();
        version != demotion.regular_version) {
      demotion.regular_pages = rates.Regular();
      demotion.regular_version = version;
      if (slot.image_mapped) {
        slot.read_then_written = slot.policy->read_then_written();
      }
    }
    counts_ = demotion.regular_version == 0 || IsCounted(demotion);
  }

  // Notes what a lease did to a group: its dirty pages, those of them that it
  // changed, that it made dirty (`fresh`), and that were changed in the cycle
  // before, too (`again`).
  void Note(uint64_t index, uint64_t dirty, uint64_t changed,
            uint64_t really_changed, uint64_t fresh, uint64_t again) {
    if (least_changes_ == 0) return;
    if (counts_) AddTo(changed_, index, changed);
    if (slot_.demotion.regular_version == 0) return;
    const uint64_t stale = dirty & ~again &
                           ~WordOf(slot_.demotion.regular_pages, index) &
                           ~WordMask(index, 0, slot_.kernel_pages);
    if (stale != 0) {
      AddTo(stale_, index, stale);
      stale_pages_ += std::popcount(stale);
    }
    // Read, and not written: such pages are mapped clean the next time.
    const uint64_t only_read = fresh & ~really_changed;
    if (only_read != 0 && slot_.read_then_written != nullptr &&
        index * kPagesPerGroup < slot_.image_pages) {
      slot_.read_then_written[index].fetch_and(~only_read,
                                               std::memory_order_relaxed);
    }
  }

  // Passes on what was noted; of pages that are not worth keeping, decides
  // whether they are given back now.
  void End() {
    if (counts_) slot_.policy->rates().Add(changed_, least_changes_);
    Demotion& demotion = slot_.demotion;
    // What was not worth keeping after an earlier lease may be now.
    if (demotion.regular_version != 0) demotion.cold_pages.clear();
    // The steady cycles since the last call have kept the pages, too.
    const uint32_t cycles = slot_.window_cycles + 1;
    if (stale_pages_ == 0) {
      demotion.rent_ns = 0;
    } else {
      demotion.rent_ns += static_cast<double>(stale_pages_) *
                          (context_.costs.restore_ns + memory_ns_) *
                          (cycles - demotion.rent_cycles);
    }
    demotion.rent_cycles = cycles;
  }

  // Adds the pages that are not worth keeping to `demotion.cold_pages`.
  void GiveBack() {
    if (stale_pages_ == 0) return;
    Demotion& demotion = slot_.demotion;
    WorkingSet::Words& cold = demotion.cold_pages;
    cold.resize(std::max(cold.size(), stale_.size()));
    for (size_t index = 0; index < stale_.size(); ++index) {
      cold[index] |= stale_[index];
    }
    if (ShouldGiveBack(context_.costs, demotion.rent_ns, stale_pages_)) {
      demotion.due = true;
      demotion.rent_ns = 0;
    }
  }

  double memory_ns() const { return memory_ns_; }

 private:
  const UffdContext& context_;
  SlotState& slot_;
  const double memory_ns_;
  const uint32_t least_changes_;
  // Whether this lease is counted.
  bool counts_ = false;
  WorkingSet::Words changed_;
  WorkingSet::Words stale_;
  uint64_t stale_pages_ = 0;
};

// With asynchronous tracking, pages that leases have stopped changing cost no
// restoring, since they are protected again, but they stay private. Puts them
// into `demotion.cold_pages` once their memory has cost what giving them back
// and copying them again costs.
void FindColdPrivatePages(const UffdContext& context, SlotState& slot,
                          double memory_ns) {
  if (slot.kernel_pages == 0 || memory_ns == 0) return;
  uint64_t warm = 0;
  slot.pages.ForEachGroup([&](uint64_t index, const PageGroup& group) {
    warm += std::popcount(WarmPages(slot, index, group) |
                          group.dirty.load(std::memory_order_relaxed));
  });
  Demotion& demotion = slot.demotion;
  const uint64_t kept = slot.idle.pages.load(std::memory_order_relaxed);
  if (kept <= warm) return;
  const uint64_t cold = kept - warm;
  slot.async.rent_ns += static_cast<double>(cold) * memory_ns *
                        static_cast<double>(slot.window_cycles);
  PageCosts again = context.costs;
  again.drop_page_ns += again.kernel_copy_ns;
  if (!ShouldGiveBack(again, slot.async.rent_ns, cold)) return;
  slot.async.rent_ns = 0;
  // What is dropped keeps its protection, so that the next scans find no page
  // there.
  ProtectAll(context, slot);
  ForEachPrivateRegion(
      context, slot, slot.kernel_pages, [&](const PageRegion& region) {
        ForEachWordIn(slot, region, [&](uint64_t index, uint64_t pages) {
          const PageGroup& group = slot.pages.group(index);
          const uint64_t stale = pages & ~WarmPages(slot, index, group) &
                                 ~group.dirty.load(std::memory_order_relaxed);
          if (stale == 0) return;
          AddTo(demotion.cold_pages, index, stale);
          demotion.due = true;
        });
      });
}

// Where a slot keeps its small image, clean pages are better shared than copied
// with the others: the image is mapped before the next lease.
void StopCopying(SlotState& slot) {
  if (slot.image_copied) {
    slot.mapping_wanted.store(true, std::memory_order_relaxed);
  }
}

// Ends a sampling window: acts on what was counted in it.
absl::Status EndSamplingWindow(const UffdContext& context, SlotState& slot,
                               uint64_t keep_pages, double memory_ns) {
  uint64_t retained_pages = 0;
  uint64_t changing_pages = 0;
  double retained_ns = 0;
  uint64_t demotable = 0;
  StopCopying(slot);
  slot.demotion.cold_pages.clear();
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t dirty = group.dirty.load(std::memory_order_relaxed);
    const uint64_t recent = group.recent.load(std::memory_order_relaxed);
    const uint64_t known =
        recent | group.previous.load(std::memory_order_relaxed);
    const uint64_t retained = slot.tracking == Tracking::kSignal
                                  ? dirty
                                  : WarmPages(slot, index, group);
    retained_pages += std::popcount(retained);
    changing_pages += std::popcount(dirty | known);
    retained_ns += RestoreNs(context, slot, index, retained);
    const uint64_t cold =
        dirty & ~known & ~WordMask(index, 0, slot.kernel_pages);
    if (cold != 0) {
      AddTo(slot.demotion.cold_pages, index, cold);
      demotable += std::popcount(cold);
    }
  });
  const auto cycles = static_cast<double>(slot.window_cycles);
  // One fault of a copied image makes many pages dirty.
  if (slot.policy != nullptr && !slot.policy->fixed() && !slot.image_copied &&
      slot.window.pairs != 0) {
    const double private_pages = static_cast<double>(std::max(
        changing_pages, slot.idle.pages.load(std::memory_order_relaxed)));
    slot.policy->Vote(
        {.changed = static_cast<double>(slot.window_changed) / cycles,
         .regular = static_cast<double>(slot.window.regular) /
                    static_cast<double>(slot.window.pairs),
         .faulted = static_cast<double>(slot.window.faulted) / cycles,
         .retained = static_cast<double>(retained_pages),
         .restore_ns = slot.restore_ns != 0 ? slot.restore_ns
                       : retained_pages == 0
                           ? context.costs.restore_ns
                           : retained_ns / static_cast<double>(retained_pages),
         .pages = static_cast<double>(WrittenEnd(slot, keep_pages)),
         .private_pages = private_pages,
         .memory_ns = memory_ns},
        context.costs);
  }
  slot.demotion.due =
      demotable >= kWorthDemoting ||
      (demotable != 0 && ++slot.demotion.windows_put_off >= kPutOffWindows);
  absl::Status status;
  if (slot.tracking == Tracking::kAsync) {
    const double whole_scan_ns =
        context.costs.scan_ns +
        static_cast<double>(keep_pages) * context.costs.scan_page_ns;
    const double signals_ns =
        static_cast<double>(slot.window.signals) * context.costs.signal_ns;
    const bool tracks_all = slot.kernel_pages >= keep_pages;
    if (!tracks_all && signals_ns > cycles * whole_scan_ns) {
      // The dirty set churns behind the image, too.
      status = EnterAsync(context, slot, keep_pages);
    }
    if (status.ok()) FindColdPrivatePages(context, slot, memory_ns);
  }
  if (slot.window.windows_to_teach > 0 && slot.image != nullptr) {
    --slot.window.windows_to_teach;
    Teach(slot, [&](uint64_t index, const PageGroup& group) {
      return WarmPages(slot, index, group) &
             group.recent.load(std::memory_order_relaxed) &
             group.previous.load(std::memory_order_relaxed);
    });
  }
  slot.pages.NextSamplingWindow();
  BeginSamplingWindow(slot);
  return status;
}

// Fewer pages say little of what each takes.
constexpr uint64_t kPagesToTime = 32;

// Follows lower times at once and higher ones slowly: what interrupts a restore
// is not part of its cost.
void NoteRestoreTime(SlotState& slot, uint64_t ns, uint64_t pages) {
  constexpr float kRise = 1.05f;
  const float now = static_cast<float>(ns) / static_cast<float>(pages);
  slot.restore_ns =
      slot.restore_ns == 0 ? now : std::min(now, slot.restore_ns * kRise);
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
    StopCopying(slot);
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
  Retention retention(context, slot);
  // With kAsync, pages are restored that the kernel has just copied.
  const bool timed =
      context.times_restores && !async && dirty_pages >= kPagesToTime;
  const uint64_t begun_ns = timed ? MonotonicNanos() : 0;
  const Restored restored = RestoreGroups(
      slot,
      [&](uint64_t index, PageGroup& group, uint64_t dirty,
          uint64_t really_changed) {
        const uint64_t fresh =
            dirty & ~group.retained.load(std::memory_order_relaxed);
        // Where neighbours were copied along, the first write to a page that
        // ended as it was cannot be told from none.
        const uint64_t changed =
            slot.image_copied ? really_changed : really_changed | fresh;
        changed_pages += std::popcount(changed);
        first_writes += std::popcount(fresh);
        late_writes += std::popcount(changed & ~WarmPages(slot, index, group));
        if (fresh != 0) group.retained.store(dirty, std::memory_order_relaxed);
        const uint64_t regular =
            changed & group.last.load(std::memory_order_relaxed);
        regular_pages += std::popcount(regular);
        group.last.store(changed, std::memory_order_relaxed);
        retention.Note(index, dirty, changed, really_changed, fresh, regular);
        if (async) {
          const uint64_t by_kernel = WordMask(index, 0, slot.kernel_pages);
          protect_costs.dirty += std::popcount(dirty & by_kernel);
          protect_costs.regular += std::popcount(regular & by_kernel);
          wasted_ns +=
              RestoreNs(context, slot, index, dirty & by_kernel & ~changed);
          first_writes_by_signal += std::popcount(fresh & ~by_kernel);
        }
        NoteChanged(group, changed);
      },
      [](PageGroup& group) {
        if (group.last.load(std::memory_order_relaxed) != 0) {
          group.last.store(0, std::memory_order_relaxed);
        }
      });
  if (timed && restored.pages >= kPagesToTime) {
    NoteRestoreTime(slot, MonotonicNanos() - begun_ns, restored.pages);
  }
  if (first_writes != 0 && slot.image != nullptr) {
    slot.window.windows_to_teach = 2;
    if (changed_pages != 0 && !slot.image->working_set().known()) {
      Teach(slot, [](uint64_t, const PageGroup& group) {
        return group.last.load(std::memory_order_relaxed);
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
        wasted_ns + (slot.async.all_marked ? 0 : context.costs.exact_scan_ns));
    if (ShouldProtectAll(slot.async.wasted_ns, protect_costs, context.costs)) {
      ProtectAll(context, slot);
    }
  } else {
    slot.window.faulted += first_writes;
  }
  retention.End();
  absl::Status status;
  if (++slot.window_cycles >= context.window_cycles) {
    status =
        EndSamplingWindow(context, slot, keep_pages, retention.memory_ns());
  }
  retention.GiveBack();
  slot.window.last_noted_at = slot.window_cycles;
  return status;
}

}  // namespace firsttouch
