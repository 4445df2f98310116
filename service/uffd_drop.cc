#include "firsttouch/service/uffd_drop.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/uffd/batch_drop.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Dropped pages lose the kernel's mark.
void NoteUnmarked(SlotState& slot, uint64_t first_page) {
  if (first_page < slot.kernel_pages) slot.async.all_marked = false;
}

}  // namespace

PageSpan ResidentSpan(const SlotState& slot, uint64_t first_page,
                      uint64_t end_page) {
  uint64_t lowest = end_page;
  uint64_t past_highest = first_page;
  uint64_t pages = 0;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t there = (group.present.load(std::memory_order_relaxed) |
                            group.dirty.load(std::memory_order_relaxed) |
                            group.untracked.load(std::memory_order_relaxed)) &
                           WordMask(index, first_page, end_page);
    if (there == 0) return;
    const uint64_t base = index * kPagesPerGroup;
    lowest = std::min<uint64_t>(lowest, base + std::countr_zero(there));
    past_highest =
        std::max<uint64_t>(past_highest, base + std::bit_width(there));
    pages += std::popcount(there);
  });
  if (first_page < std::min(end_page, slot.kernel_pages)) {
    // Only the kernel knows which pages are present there.
    lowest = first_page;
    past_highest =
        std::max(past_highest, std::min(end_page, slot.kernel_pages));
  } else if (pages == 0) {
    return {};
  }
  return {lowest, past_highest, pages};
}

absl::Status NoteDropped(const UffdContext& context, SlotState& slot,
                         const PageSpan& span, int error) {
  if (error != 0) {
    return CallFailed(context, slot, error, "MADV_DONTNEED", span.first_page,
                      span.end_page - span.first_page);
  }
  if (span.first_page < slot.kept_pages) slot.idle.keeps_fewer = true;
  NoteUnmarked(slot, span.first_page);
  CountOwned(slot.counters.pages_dropped, span.known_pages);
  slot.pages.Forget(span.first_page, span.end_page);
  return absl::OkStatus();
}

absl::Status DropRange(const UffdContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t pages) {
  if (pages == 0) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const CallResult dropped =
      DropMappedPages(*context.fault_pool.kernel, AddressOf(slot, first_page),
                      pages * kPageBytes);
  if (!dropped.ok()) {
    return CallFailed(context, slot, dropped.error, "MADV_DONTNEED", first_page,
                      pages);
  }
  NoteUnmarked(slot, first_page);
  slot.pages.Forget(first_page, first_page + pages);
  return absl::OkStatus();
}

absl::Status DropPages(const UffdContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t end_page) {
  const PageSpan span = ResidentSpan(slot, first_page, end_page);
  if (span.empty()) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const CallResult dropped = DropMappedPages(
      *context.fault_pool.kernel, AddressOf(slot, span.first_page),
      (span.end_page - span.first_page) * kPageBytes);
  return NoteDropped(context, slot, span, dropped.error);
}

absl::Status DropEveryPage(const UffdContext& context, SlotState& slot,
                           uint64_t end_page) {
  slot.demotion.cold_pages.clear();
  slot.demotion.due = false;
  slot.idle.keeps_fewer = true;
  slot.prefill_wanted = slot.image != nullptr;
  return DropRange(context, slot, 0, end_page);
}

absl::Status UnpoisonAtRelease(const UffdContext& context, SlotState& slot) {
  const uint32_t count =
      slot.poisoned_pages.count.load(std::memory_order_acquire);
  if (count == 0) return absl::OkStatus();
  Kernel& kernel = *context.fault_pool.kernel;
  const auto reset = [&](uintptr_t start, uint64_t bytes) -> absl::Status {
    Count(slot.counters.kernel_calls);
    const CallResult done =
        context.fault_pool.poison
            ? DropMappedPages(kernel, start, bytes)
            : kernel.Mprotect(start, bytes, PROT_READ | PROT_WRITE);
    if (!done.ok()) {
      return absl::ErrnoToStatus(
          done.error,
          absl::StrCat("taking back ", bytes, " trapping bytes at ",
                       absl::Hex(start), " of slot ",
                       SlotNumber(context.fault_pool, slot), " in pool \"",
                       context.fault_pool.name, "\""));
    }
    // Pages of the memory itself may have been among them.
    if (context.fault_pool.poison && start >= slot.base) {
      const uint64_t first_page = (start - slot.base) / kPageBytes;
      slot.pages.Forget(first_page, first_page + bytes / kPageBytes);
    }
    return absl::OkStatus();
  };
  absl::Status status;
  for (std::atomic<uintptr_t>& page : slot.poisoned_pages.page) {
    // The address is 0 where a handler thread has counted but not yet stored
    // it, or where there is none.
    const uintptr_t address = page.exchange(0, std::memory_order_acq_rel);
    if (address == 0) continue;
    if (status.ok()) status = reset(address, kPageBytes);
    // The page is still to be done.
    if (!status.ok()) page.store(address, std::memory_order_release);
  }
  if (count > PoisonedPages::kCapacity && status.ok()) {
    // More pages were poisoned than noted: treats everything behind the kept
    // pages.
    const uint64_t from = slot.kept_pages * kPageBytes;
    status = reset(slot.base + from, context.stride_bytes - from);
    const PoolEntry& entry = context.fault_pool.entry;
    if (status.ok() && &slot == context.fault_pool.slots &&
        entry.first_memory_offset_bytes > 0) {
      status = reset(entry.base, entry.first_memory_offset_bytes);
    }
  }
  if (status.ok()) {
    slot.has_poisoned_pages.store(false, std::memory_order_relaxed);
    slot.poisoned_pages.count.store(0, std::memory_order_release);
  }
  return status;
}

void AddColdPages(const SlotState& slot, DropBatch& batch) {
  for (uint64_t index = 0; index < slot.demotion.cold_pages.size(); ++index) {
    ForEachRun(slot.demotion.cold_pages[index],
               [&](uint64_t bit, uint64_t pages) {
                 batch.Add(AddressOf(slot, index * kPagesPerGroup + bit),
                           pages * kPageBytes);
               });
  }
}

void LeaveOutWarmPages(SlotState& slot) {
  for (uint64_t index = 0; index < slot.demotion.cold_pages.size(); ++index) {
    const PageGroup& group = slot.pages.group(index);
    const uint64_t dirty = group.dirty.load(std::memory_order_relaxed);
    const uint64_t by_kernel = WordMask(index, 0, slot.kernel_pages);
    // Pages that are not worth keeping are given back although they may just
    // have changed.
    const uint64_t warm = group.recent.load(std::memory_order_relaxed) &
                          (slot.demotion.regular_version == 0 ? ~uint64_t{0}
                           : index < slot.demotion.regular_pages.size()
                               ? slot.demotion.regular_pages[index]
                               : 0);
    slot.demotion.cold_pages[index] &= ~warm & (dirty ^ by_kernel);
  }
}

absl::Status NoteDemoted(const UffdContext& context, SlotState& slot,
                         const DropBatch::Result& dropped) {
  const WorkingSet::Words cold = std::exchange(slot.demotion.cold_pages, {});
  slot.demotion.due = false;
  slot.demotion.windows_put_off = 0;
  slot.demotion.rent_ns = 0;
  absl::Status status;
  uint64_t demoted = 0;
  for (uint64_t index = 0; index < cold.size(); ++index) {
    ForEachRun(cold[index], [&](uint64_t bit, uint64_t pages) {
      const uint64_t first = index * kPagesPerGroup + bit;
      const int error =
          dropped.ErrorOf(AddressOf(slot, first), pages * kPageBytes);
      if (error != 0) {
        status =
            CallFailed(context, slot, error, "MADV_DONTNEED", first, pages);
        return;
      }
      slot.pages.Forget(first, first + pages);
      NoteUnmarked(slot, first);
      demoted += pages;
    });
  }
  if (slot.kernel_pages > 0) slot.idle.keeps_fewer = true;
  CountOwned(slot.counters.pages_demoted, demoted);
  if (slot.image != nullptr) slot.image->working_set().ForgetWritten(cold);
  return status;
}

}  // namespace firsttouch
