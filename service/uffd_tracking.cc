#include "firsttouch/service/uffd_tracking.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/service/uffd_drop.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Sets the bits of a region's pages in one plane.
void Note(SlotState& slot, const PageRegion& region,
          std::atomic<uint64_t> PageGroup::*plane) {
  ForEachWordIn(slot, region, [&](uint64_t index, uint64_t pages) {
    std::atomic<uint64_t>& word = slot.pages.group(index).*plane;
    // Most pages were found before.
    if ((pages & ~word.load(std::memory_order_relaxed)) != 0) {
      word.fetch_or(pages, std::memory_order_relaxed);
      slot.pages.NoteGroup(index);
    }
  });
}

// Notes the pages of a region that a scan found as written.
void NoteWritten(SlotState& slot, const PageRegion& region) {
  Note(slot, region, &PageGroup::dirty);
  Note(slot, region, &PageGroup::present);
}

// Whether the region has so many newly written pages in a row that they may be
// a page table that came since all was marked, with nothing in it.
bool MayBeNothing(const SlotState& slot, const PageRegion& region) {
  constexpr uint64_t kSuspicious = 32;
  if (region.end - region.start < kSuspicious * kPageBytes) return false;
  uint64_t fresh = 0;
  ForEachWordIn(slot, region, [&](uint64_t index, uint64_t pages) {
    fresh += std::popcount(
        pages & ~slot.pages.group(index).dirty.load(std::memory_order_relaxed));
  });
  return fresh >= kSuspicious;
}

// How far the kernel is to track: not behind the image where guests do not
// write anything. That part is a mapping of its own, which each scan would have
// to walk for nothing.
uint64_t AsyncEnd(const SlotState& slot, uint64_t size_pages) {
  const uint64_t image_end = std::min(slot.image_pages, size_pages);
  uint64_t end = WrittenEnd(slot, size_pages);
  const WorkingSet::Words written = slot.image->working_set().written();
  for (uint64_t index = image_end / kPagesPerGroup; index < written.size();
       ++index) {
    if ((written[index] & WordMask(index, image_end, size_pages)) != 0) {
      end = size_pages;
    }
  }
  return end;
}

}  // namespace

absl::Status FindKernelWrites(const UffdContext& context, SlotState& slot) {
  if (slot.kernel_pages == 0) return absl::OkStatus();
  const uintptr_t end = AddressOf(slot, slot.kernel_pages);
  Kernel& kernel = *context.fault_pool.kernel;
  PageRegion regions[256];
  // The kernel allocates as much memory as the vector offers room for.
  const size_t capacity = slot.async.found_regions < 12   ? 16
                          : slot.async.found_regions < 48 ? 64
                                                          : std::size(regions);
  const auto note = [&](const ScanResult& scan) {
    Count(slot.counters.kernel_calls, scan.calls);
    slot.async.found_regions = static_cast<uint32_t>(
        std::min<uint64_t>(scan.regions, std::size(regions)));
  };
  const auto failed = [&](const ScanResult& scan) {
    return CallFailed(context, slot, scan.error, "PAGEMAP_SCAN", 0,
                      slot.kernel_pages);
  };

  if (slot.tracking == Tracking::kAsync && slot.async.all_marked) {
    bool sure = true;
    ScanRequest unmarked = ScanRequest::Unmarked(slot.base, end);
    unmarked.flags = kPmScanCheckWpAsync;
    const ScanResult scan =
        ScanPages(kernel, context.pagemap_fd, unmarked, regions, capacity,
                  [&](const PageRegion& region) {
                    if (MayBeNothing(slot, region)) {
                      sure = false;
                      return false;
                    }
                    NoteWritten(slot, region);
                    return true;
                  });
    note(scan);
    if (!scan.ok()) return failed(scan);
    if (sure) {
      Count(slot.counters.pages_found, scan.pages);
      return absl::OkStatus();
    }
    slot.async.all_marked = false;
  }

  ScanRequest request = ScanRequest::Written(slot.base, end);
  // A page that was only read is reported once, found unchanged, and protected
  // with the others. Asking for the categories that would distinguish it makes
  // the kernel look up each page, which takes longer than the rest of the scan.
  request.report = 0;
  // Gives an error where the range is not registered any more, instead of
  // "nothing has changed".
  request.flags = kPmScanCheckWpAsync;
  if (slot.tracking == Tracking::kProfiling) {
    // Nothing is protected: a resident page is the file's page, a zero page, or
    // written.
    request = ScanRequest::Resident(slot.base, end);
    request.report = kPageIsFile | kPageIsPfnZero;
  }
  uint64_t written = 0;
  const ScanResult scan = ScanPages(
      kernel, context.pagemap_fd, request, regions, capacity,
      [&](const PageRegion& region) {
        if ((region.categories & (kPageIsFile | kPageIsPfnZero)) != 0) {
          Note(slot, region, &PageGroup::present);
        } else {
          NoteWritten(slot, region);
          written += (region.end - region.start) / kPageBytes;
        }
        return true;
      });
  note(scan);
  Count(slot.counters.pages_found, written);
  return scan.ok() ? absl::OkStatus() : failed(scan);
}

void ProtectAll(const UffdContext& context, SlotState& slot) {
  // Protects all pages, present or not: see SlotState::async.
  const ScanRequest request = ScanRequest::UnmarkedAndProtect(
      slot.base, AddressOf(slot, slot.kernel_pages));
  const ScanResult scan =
      ScanPages(*context.fault_pool.kernel, context.pagemap_fd, request,
                nullptr, 0, [](const PageRegion&) { return true; });
  Count(slot.counters.kernel_calls, scan.calls);
  slot.async.wasted_ns = 0;
  if (!scan.ok()) return;
  slot.async.all_marked = true;
  slot.pages.Forget(0, slot.kernel_pages);
}

uint64_t ForEachPrivateRegion(
    const UffdContext& context, SlotState& slot, uint64_t end_page,
    absl::FunctionRef<void(const PageRegion& region)> visit) {
  ScanRequest request =
      ScanRequest::PrivateCopies(slot.base, AddressOf(slot, end_page));
  // Excludes pages that are only swapped: protected pages that were dropped
  // look like that.
  request.any_of = kPageIsPresent;
  request.none_of |= kPageIsPfnZero;
  request.report = 0;
  PageRegion regions[64];
  const ScanResult scan =
      ScanPages(*context.fault_pool.kernel, context.pagemap_fd, request,
                regions, 64, [&](const PageRegion& region) {
                  visit(region);
                  return true;
                });
  Count(slot.counters.kernel_calls, scan.calls);
  return scan.pages;
}

uint64_t WrittenEnd(const SlotState& slot, uint64_t size_pages) {
  const uint64_t image_end = std::min(slot.image_pages, size_pages);
  uint64_t end = image_end;
  slot.pages.ForEachGroup([&](uint64_t index, const PageGroup& group) {
    const uint64_t known = group.dirty.load(std::memory_order_relaxed) |
                           group.recent.load(std::memory_order_relaxed) |
                           group.previous.load(std::memory_order_relaxed);
    if ((known & WordMask(index, image_end, size_pages)) != 0) {
      end = size_pages;
    }
  });
  return end;
}

absl::Status EnterAsync(const UffdContext& context, SlotState& slot,
                        uint64_t end) {
  const uint64_t first = slot.kernel_pages;
  if (absl::Status status = Unregister(context, slot, context.fault_pool.uffd,
                                       first, end - first);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = Register(context, slot, context.async_uffd,
                                     kUffdRegisterWp, first, end - first);
      !status.ok()) {
    return status;
  }
  if (slot.tracking != Tracking::kAsync) {
    slot.tracking = Tracking::kAsync;
    CountOwned(slot.counters.tracking_changes);
  }
  slot.kernel_pages = end;
  slot.idle.keeps_fewer = true;
  ProtectAll(context, slot);
  return absl::OkStatus();
}

absl::Status LeaveKernelTracking(const UffdContext& context, SlotState& slot,
                                 uint64_t new_end) {
  const uint64_t end = slot.kernel_pages;
  if (end <= new_end) return absl::OkStatus();
  if (absl::Status status = DropRange(context, slot, new_end, end - new_end);
      !status.ok()) {
    return status;
  }
  if (absl::Status status =
          Unregister(context, slot, context.async_uffd, new_end, end - new_end);
      !status.ok()) {
    return status;
  }
  slot.kernel_pages = new_end;
  if (new_end == 0) {
    slot.tracking = Tracking::kSignal;
    slot.prefill_wanted = true;
    CountOwned(slot.counters.tracking_changes);
  }
  return RegisterForSignals(context, slot, new_end, end);
}

absl::Status AdjustTracking(const UffdContext& context, SlotState& slot,
                            uint64_t size_pages) {
  // The kernel would fill an image that is not mapped with zeroes. The choice
  // may have changed since the slot was bound: the next lease maps the image.
  const Tracking wanted = slot.policy == nullptr || !slot.image_mapped
                              ? Tracking::kSignal
                              : slot.policy->tracking();
  if (slot.tracking == Tracking::kProfiling) return absl::OkStatus();
  if (slot.tracking == wanted) {
    return LeaveKernelTracking(context, slot,
                               std::min(slot.kernel_pages, size_pages));
  }
  if (wanted == Tracking::kSignal) {
    return LeaveKernelTracking(context, slot, 0);
  }
  // The caller drops the pages beyond the new bounds that the planes know of.
  return EnterAsync(context, slot, AsyncEnd(slot, size_pages));
}

absl::Status SettleUntracked(const UffdContext& context, SlotState& slot,
                             uint64_t end_page) {
  if (!slot.any_untracked.load(std::memory_order_relaxed)) {
    return absl::OkStatus();
  }
  uint64_t lowest = end_page;
  uint64_t past_highest = 0;
  absl::Status status;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t mask = WordMask(index, 0, end_page);
    const uint64_t present = group.present.load(std::memory_order_relaxed);
    // A fill was not completed: it is unknown whether the page is present, and
    // if it were protected now, only the kernel would know of it.
    const uint64_t unsure =
        group.untracked.load(std::memory_order_relaxed) & ~present & mask;
    ForEachRun(unsure, [&](uint64_t bit, uint64_t pages) {
      if (!status.ok()) return;
      const uint64_t first = index * kPagesPerGroup + bit;
      status = DropPages(context, slot, first, first + pages);
    });
    const uint64_t untracked =
        group.untracked.load(std::memory_order_relaxed) & mask;
    if (untracked == 0) return;
    const uint64_t base = index * kPagesPerGroup;
    lowest = std::min<uint64_t>(lowest, base + std::countr_zero(untracked));
    past_highest = base + std::bit_width(untracked);
  });
  if (!status.ok()) return status;
  if (lowest >= past_highest) {
    slot.any_untracked.store(false, std::memory_order_relaxed);
    return absl::OkStatus();
  }

  bool scanned = false;
  if (context.pagemap_fd >= 0) {
    // Untracked pages that are still the kernel's zero page have not been
    // written; all others have.
    ScanRequest request;
    request.start = AddressOf(slot, lowest);
    request.end = AddressOf(slot, past_highest);
    request.any_of = kPageIsPresent | kPageIsSwapped;
    request.none_of = kPageIsPfnZero;
    request.report = kPageIsPresent | kPageIsSwapped;
    PageRegion regions[64];
    const ScanResult scan = ScanPages(
        *context.fault_pool.kernel, context.pagemap_fd, request, regions, 64,
        [&](const PageRegion& region) {
          ForEachWordIn(slot, region, [&](uint64_t index, uint64_t pages) {
            PageGroup& group = slot.pages.group(index);
            const uint64_t written =
                pages & group.untracked.load(std::memory_order_relaxed);
            group.dirty.fetch_or(written, std::memory_order_relaxed);
            group.untracked.fetch_and(~written, std::memory_order_relaxed);
          });
          return true;
        });
    Count(slot.counters.kernel_calls, scan.calls);
    scanned = scan.ok();
  }

  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t untracked = group.untracked.load(std::memory_order_relaxed) &
                               WordMask(index, 0, end_page);
    if (untracked == 0) return;
    const auto settle = [&](uint64_t bit, uint64_t pages) {
      if (!status.ok()) return;
      const uint64_t first = index * kPagesPerGroup + bit;
      bool is_protected = false;
      if (scanned) {
        is_protected =
            WriteProtectRange(*context.fault_pool.kernel,
                              context.fault_pool.uffd, AddressOf(slot, first),
                              pages * kPageBytes, kUffdWriteProtectWp, {})
                .ok();
        Count(slot.counters.kernel_calls);
      }
      if (!is_protected) {
        status = DropPages(context, slot, first, first + pages);
        if (!status.ok()) return;
      }
      group.untracked.fetch_and(~WordMask(index, first, first + pages),
                                std::memory_order_relaxed);
    };
    // Pages that a write elsewhere has made writable are restored in any case,
    // and must not be protected for that.
    const uint64_t dirty = group.dirty.load(std::memory_order_acquire);
    group.untracked.fetch_and(~(untracked & dirty), std::memory_order_relaxed);
    const uint64_t unchanged = untracked & ~dirty;
    // No call may cross the end of the image's mapping.
    const uint64_t in_image = WordMask(index, 0, slot.image_pages);
    ForEachRun(unchanged & in_image, settle);
    ForEachRun(unchanged & ~in_image, settle);
  });
  if (status.ok()) {
    slot.any_untracked.store(false, std::memory_order_relaxed);
  }
  return status;
}

}  // namespace firsttouch
