#include "firsttouch/service/slot_ops.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/service/drift.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/restore_groups.h"
#include "firsttouch/service/sabotage.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/batch_drop.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

uintptr_t AddressOf(const SlotState& slot, uint64_t page) {
  return slot.base + page * kPageBytes;
}

absl::Status Failed(const SlotOpsContext& context, const SlotState& slot,
                    int error, const char* call, uint64_t first_page,
                    uint64_t pages) {
  const char* way_out = "";
  if (error == ENOMEM) {
    way_out =
        "; out of memory, or of mappings (vm.max_map_count: a slot with an "
        "image needs two)";
  }
  return absl::ErrnoToStatus(
      error, absl::StrCat(call, " of ", pages * kPageBytes, " bytes at offset ",
                          first_page * kPageBytes, " of slot ",
                          &slot - context.core.slots, " in pool \"",
                          context.core.name, "\"", way_out));
}

// Nothing is known to be registered there any more: sees to it that no touch
// succeeds. The slot is never used again.
void MakeInaccessible(const SlotOpsContext& context, const SlotState& slot,
                      uint64_t first_page, uint64_t pages) {
  context.core.kernel->Mprotect(AddressOf(slot, first_page), pages * kPageBytes,
                                PROT_NONE);
}

absl::Status Register(const SlotOpsContext& context, SlotState& slot, int uffd,
                      uint64_t mode, uint64_t first_page, uint64_t pages) {
  if (pages == 0) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const CallResult registered = context.core.kernel->Register(
      uffd, AddressOf(slot, first_page), pages * kPageBytes, mode, nullptr);
  if (registered.ok()) return absl::OkStatus();
  MakeInaccessible(context, slot, first_page, pages);
  return Failed(context, slot, registered.error, "UFFDIO_REGISTER", first_page,
                pages);
}

absl::Status Unregister(const SlotOpsContext& context, SlotState& slot,
                        int uffd, uint64_t first_page, uint64_t pages) {
  if (pages == 0) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const CallResult done = context.core.kernel->Unregister(
      uffd, AddressOf(slot, first_page), pages * kPageBytes);
  if (done.ok()) return absl::OkStatus();
  MakeInaccessible(context, slot, first_page, pages);
  return Failed(context, slot, done.error, "UFFDIO_UNREGISTER", first_page,
                pages);
}

// Registers what is unregistered as Tracking::kSignal needs it.
absl::Status RegisterForSignals(const SlotOpsContext& context, SlotState& slot,
                                uint64_t first_page, uint64_t end_page) {
  const uint64_t border = std::clamp(
      slot.image_mapped ? slot.image_pages : uint64_t{0}, first_page, end_page);
  constexpr uint64_t kMode = kUffdRegisterMissing | kUffdRegisterWp;
  absl::Status status =
      Register(context, slot, context.core.uffd, kMode | kUffdRegisterMinor,
               first_page, border - first_page);
  if (status.ok()) {
    status = Register(context, slot, context.core.uffd, kMode, border,
                      end_page - border);
  }
  return status;
}

// What is dropped loses its mark.
void NoteUnmarked(SlotState& slot, uint64_t first_page) {
  if (first_page < slot.kernel_pages) slot.all_marked = false;
}

// Gives back every page of the range, known of or not.
absl::Status DropRange(const SlotOpsContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t pages) {
  if (pages == 0) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const CallResult dropped = DropMappedPages(
      *context.core.kernel, AddressOf(slot, first_page), pages * kPageBytes);
  if (!dropped.ok()) {
    return Failed(context, slot, dropped.error, "MADV_DONTNEED", first_page,
                  pages);
  }
  NoteUnmarked(slot, first_page);
  slot.pages.Forget(first_page, first_page + pages);
  return absl::OkStatus();
}

// Maps [first_page, first_page + pages) anew, from the image's memfd at the
// same offset or, with fd -1, anonymous, and gives it every property that the
// rest of the pool has; but for the registration where the next holder runs
// untracked.
absl::Status MapAnew(const SlotOpsContext& context, SlotState& slot,
                     uint64_t first_page, uint64_t pages, int fd,
                     bool untracked = false) {
  if (pages == 0) return absl::OkStatus();
  Kernel& kernel = *context.core.kernel;
  const uintptr_t start = AddressOf(slot, first_page);
  const size_t bytes = pages * kPageBytes;
  Count(slot.counters.kernel_calls);
  int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
  if (fd < 0) flags |= MAP_ANONYMOUS;
  // Inaccessible, so that nothing populates it: see mapping_properties.h.
  const CallResult mapped = kernel.Mmap(start, bytes, PROT_NONE, flags, fd,
                                        fd < 0 ? 0 : first_page * kPageBytes);
  if (!mapped.ok()) {
    if (!StaysReserved(kernel, start, bytes)) slot.place_lost = true;
    return Failed(context, slot, mapped.error, "mmap", first_page, pages);
  }
  if (!untracked) {
    uint64_t mode = kUffdRegisterMissing | kUffdRegisterWp;
    if (fd >= 0) mode |= kUffdRegisterMinor;
    if (absl::Status status =
            Register(context, slot, context.core.uffd, mode, first_page, pages);
        !status.ok()) {
      return status;
    }
  }
  const MappingResult set = SetMappingProperties(
      kernel, start, bytes,
      {.include_in_core_dump = context.include_in_core_dump});
  Count(slot.counters.kernel_calls, set.calls + 1);
  if (!set.ok()) {
    return Failed(context, slot, set.error, set.call, first_page, pages);
  }
  const CallResult opened =
      kernel.Mprotect(start, bytes, PROT_READ | PROT_WRITE);
  if (!opened.ok()) {
    return Failed(context, slot, opened.error, "mprotect", first_page, pages);
  }
  return absl::OkStatus();
}

void BeginSpan(SlotState& slot) {
  slot.span_handovers = 0;
  slot.span_changed = 0;
  slot.span_regular = 0;
  slot.span_pairs = 0;
  slot.span_faulted = 0;
  slot.span_signals = 0;
}

// Tells the image which pages tenants write: in each group those of `pages_of`.
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

// Tells the image which pages below `end_page` tenants touch: those that are
// there. Pages that were mapped because the set said so teach nothing, since
// they are in it.
void TeachReads(SlotState& slot, uint64_t end_page) {
  slot.reads_to_teach.store(false, std::memory_order_relaxed);
  if (slot.image == nullptr) return;
  WorkingSet::Words words;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t pages = (group.present.load(std::memory_order_relaxed) |
                            group.open.load(std::memory_order_relaxed)) &
                           GroupMask(index, 0, end_page);
    if (pages == 0) return;
    words.resize(index + 1);
    words[index] = pages;
  });
  slot.image->working_set().LearnRead(words);
}

}  // namespace

void SetImage(SlotState& slot, const ImageRef& image) {
  slot.image = image == nullptr ? nullptr : image->Hold();
  slot.image_id.store(image == nullptr ? 0 : image->id(),
                      std::memory_order_seq_cst);
  slot.image_pages = image == nullptr ? 0 : image->pages().value();
  slot.image_stored = image == nullptr ? nullptr : image->stored_words();
  slot.image_data = image == nullptr ? nullptr : image->data();
  slot.image_fetch = image == nullptr ? nullptr : image->fetch();
  CountOwned(slot.counters.binds);
}

void WaitUntilThawed(const SlotState& slot) {
  while (slot.frozen.load(std::memory_order_acquire) != 0) {
    syscall(SYS_futex, &slot.frozen, FUTEX_WAIT_PRIVATE, 1, nullptr);
  }
}

void WaitForFills(const SlotState& slot) {
  for (int spins = 0; slot.fills_in_flight.load(std::memory_order_seq_cst) != 0;
       ++spins) {
    if (spins >= 100) sched_yield();
  }
}

PageSpan ResidentSpan(const SlotState& slot, uint64_t first_page,
                      uint64_t end_page) {
  uint64_t lowest = end_page;
  uint64_t past_highest = first_page;
  uint64_t pages = 0;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t there = (group.present.load(std::memory_order_relaxed) |
                            group.open.load(std::memory_order_relaxed) |
                            group.untracked.load(std::memory_order_relaxed)) &
                           GroupMask(index, first_page, end_page);
    if (there == 0) return;
    const uint64_t base = index * kPagesPerGroup;
    lowest = std::min<uint64_t>(lowest, base + std::countr_zero(there));
    past_highest =
        std::max<uint64_t>(past_highest, base + std::bit_width(there));
    pages += std::popcount(there);
  });
  if (first_page < std::min(end_page, slot.kernel_pages)) {
    // What is there the kernel knows alone.
    lowest = first_page;
    past_highest =
        std::max(past_highest, std::min(end_page, slot.kernel_pages));
  } else if (pages == 0) {
    return {};
  }
  return {lowest, past_highest, pages};
}

absl::Status NoteDropped(const SlotOpsContext& context, SlotState& slot,
                         const PageSpan& span, int error) {
  if (error != 0) {
    return Failed(context, slot, error, "MADV_DONTNEED", span.first_page,
                  span.end_page - span.first_page);
  }
  if (span.first_page < slot.kept_pages) slot.keeps_fewer = true;
  NoteUnmarked(slot, span.first_page);
  CountOwned(slot.counters.pages_dropped, span.known_pages);
  slot.pages.Forget(span.first_page, span.end_page);
  return absl::OkStatus();
}

absl::Status DropPages(const SlotOpsContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t end_page) {
  const PageSpan span = ResidentSpan(slot, first_page, end_page);
  if (span.empty()) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const CallResult dropped =
      DropMappedPages(*context.core.kernel, AddressOf(slot, span.first_page),
                      (span.end_page - span.first_page) * kPageBytes);
  return NoteDropped(context, slot, span, dropped.error);
}

absl::Status DropEveryPage(const SlotOpsContext& context, SlotState& slot,
                           uint64_t end_page) {
  slot.cold_pages.clear();
  slot.demotion_due = false;
  slot.keeps_fewer = true;
  slot.prefill_wanted = slot.image != nullptr;
  return DropRange(context, slot, 0, end_page);
}

absl::Status DropStrays(const SlotOpsContext& context, SlotState& slot) {
  const uint32_t count = slot.strays.count.load(std::memory_order_acquire);
  if (count == 0) return absl::OkStatus();
  Kernel& kernel = *context.core.kernel;
  const auto reset = [&](uintptr_t start, uint64_t bytes) -> absl::Status {
    Count(slot.counters.kernel_calls);
    const CallResult done =
        context.core.poison
            ? DropMappedPages(kernel, start, bytes)
            : kernel.Mprotect(start, bytes, PROT_READ | PROT_WRITE);
    if (!done.ok()) {
      return absl::ErrnoToStatus(
          done.error, absl::StrCat("taking back ", bytes, " trapping bytes at ",
                                   absl::Hex(start), " of slot ",
                                   &slot - context.core.slots, " in pool \"",
                                   context.core.name, "\""));
    }
    // Where pages of the memory's own may have been among them.
    if (context.core.poison && start >= slot.base) {
      const uint64_t first_page = (start - slot.base) / kPageBytes;
      slot.pages.Forget(first_page, first_page + bytes / kPageBytes);
    }
    return absl::OkStatus();
  };
  absl::Status status;
  for (std::atomic<uintptr_t>& page : slot.strays.page) {
    // 0 where a handler thread has counted and not yet stored, or where there
    // is none.
    const uintptr_t address = page.exchange(0, std::memory_order_acq_rel);
    if (address == 0) continue;
    if (status.ok()) status = reset(address, kPageBytes);
    // Still to be done.
    if (!status.ok()) page.store(address, std::memory_order_release);
  }
  if (count > StrayPages::kCapacity && status.ok()) {
    // More than were noted: everything that nobody's pages are kept in.
    const uint64_t from = slot.kept_pages * kPageBytes;
    status = reset(slot.base + from, context.stride_bytes - from);
    const PoolEntry& entry = context.core.entry;
    if (status.ok() && &slot == context.core.slots &&
        entry.first_memory_offset_bytes > 0) {
      status = reset(entry.base, entry.first_memory_offset_bytes);
    }
  }
  if (status.ok()) {
    slot.has_strays.store(false, std::memory_order_relaxed);
    slot.strays.count.store(0, std::memory_order_release);
  }
  return status;
}

namespace {

// Sets the bits of a region's pages in one plane.
void Note(SlotState& slot, const PageRegion& region,
          std::atomic<uint64_t> PageGroup::*plane) {
  uint64_t page = (region.start - slot.base) / kPageBytes;
  const uint64_t end = (region.end - slot.base) / kPageBytes;
  while (page < end) {
    const uint64_t index = page / kPagesPerGroup;
    std::atomic<uint64_t>& word = slot.pages.group(index).*plane;
    const uint64_t pages = GroupMask(index, page, end);
    // Most were found before.
    if ((pages & ~word.load(std::memory_order_relaxed)) != 0) {
      word.fetch_or(pages, std::memory_order_relaxed);
      slot.pages.NoteGroup(index);
    }
    page = (index + 1) * kPagesPerGroup;
  }
}

// Notes the pages of a region that a scan found as written.
void NoteWritten(SlotState& slot, const PageRegion& region) {
  Note(slot, region, &PageGroup::open);
  Note(slot, region, &PageGroup::present);
}

// Whether pages of the region are new as written, so many in a row that they
// may be a page table that came since all was marked, with nothing in it.
bool MayBeNothing(const SlotState& slot, const PageRegion& region) {
  constexpr uint64_t kSuspicious = 32;
  uint64_t page = (region.start - slot.base) / kPageBytes;
  const uint64_t end = (region.end - slot.base) / kPageBytes;
  if (end - page < kSuspicious) return false;
  uint64_t fresh = 0;
  while (page < end) {
    const uint64_t index = page / kPagesPerGroup;
    fresh += std::popcount(
        GroupMask(index, page, end) &
        ~slot.pages.group(index).open.load(std::memory_order_relaxed));
    page = (index + 1) * kPagesPerGroup;
  }
  return fresh >= kSuspicious;
}

}  // namespace

absl::Status FindKernelWrites(const SlotOpsContext& context, SlotState& slot) {
  if (slot.kernel_pages == 0) return absl::OkStatus();
  const uintptr_t end = AddressOf(slot, slot.kernel_pages);
  Kernel& kernel = *context.core.kernel;
  PageRegion regions[256];
  // The kernel allocates as much as it is offered.
  const size_t capacity = slot.found_regions < 12   ? 16
                          : slot.found_regions < 48 ? 64
                                                    : std::size(regions);
  const auto note = [&](const ScanResult& scan) {
    Count(slot.counters.kernel_calls, scan.calls);
    slot.found_regions = static_cast<uint32_t>(
        std::min<uint64_t>(scan.regions, std::size(regions)));
  };
  const auto failed = [&](const ScanResult& scan) {
    return Failed(context, slot, scan.error, "PAGEMAP_SCAN", 0,
                  slot.kernel_pages);
  };

  if (slot.tracking == Tracking::kAsync && slot.all_marked) {
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
    slot.all_marked = false;
  }

  ScanRequest request = ScanRequest::Written(slot.base, end);
  // A page that was only read is reported once, found unchanged, and protected
  // with the others: to ask for the categories that tell it makes the kernel
  // look up each page, which takes longer than the rest of the scan.
  request.report = 0;
  // An error where the range is not registered any more, and never "nothing has
  // changed".
  request.flags = kPmScanCheckWpAsync;
  if (slot.tracking == Tracking::kLearning) {
    // Nothing is protected: what is there is the file's page, the page of
    // zeroes, or written.
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

namespace {

// The first holder of an image has gone: keeps what it teaches, and nothing
// else.
absl::Status FinishLearning(const SlotOpsContext& context, SlotState& slot) {
  const uint64_t pages = slot.kernel_pages;
  if (FindKernelWrites(context, slot).ok()) {
    Teach(slot, [](const PageGroup& group) {
      return group.open.load(std::memory_order_relaxed);
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

// Protects every page below kernel_pages again: hot ones will fault once more,
// and all others need not be restored any longer. Where it does not work the
// pages stay as they are, and are restored.
void ProtectAll(const SlotOpsContext& context, SlotState& slot) {
  // All, whether there is a page or not: see SlotState::all_marked.
  ScanRequest request = ScanRequest::UnmarkedAndProtect(
      slot.base, AddressOf(slot, slot.kernel_pages));
  if (Sabotaged(Sabotage::kProtection)) request.end = request.start;
  const ScanResult scan =
      ScanPages(*context.core.kernel, context.pagemap_fd, request, nullptr, 0,
                [](const PageRegion&) { return true; });
  Count(slot.counters.kernel_calls, scan.calls);
  slot.rent_ns = 0;
  if (!scan.ok()) return;
  slot.all_marked = true;
  slot.pages.Forget(0, slot.kernel_pages);
}

// How far a slot's own holders write, as far as is known: to the image's end,
// or behind it.
uint64_t WrittenEnd(const SlotState& slot, uint64_t size_pages) {
  const uint64_t image_end = std::min(slot.image_pages, size_pages);
  uint64_t end = image_end;
  slot.pages.ForEachGroup([&](uint64_t index, const PageGroup& group) {
    const uint64_t known = group.open.load(std::memory_order_relaxed) |
                           group.recent.load(std::memory_order_relaxed) |
                           group.previous.load(std::memory_order_relaxed);
    if ((known & GroupMask(index, image_end, size_pages)) != 0) {
      end = size_pages;
    }
  });
  return end;
}

// How far the kernel is to track: not behind the image where nobody writes
// anything. That is a mapping of its own, which each scan would have to walk
// over in vain.
uint64_t AsyncEnd(const SlotState& slot, uint64_t size_pages) {
  const uint64_t image_end = std::min(slot.image_pages, size_pages);
  uint64_t end = WrittenEnd(slot, size_pages);
  const WorkingSet::Words written = slot.image->working_set().written();
  for (uint64_t index = image_end / kPagesPerGroup; index < written.size();
       ++index) {
    if ((written[index] & GroupMask(index, image_end, size_pages)) != 0) {
      end = size_pages;
    }
  }
  return end;
}

// Hands the pages from kernel_pages to `end` over to the kernel's tracking.
// What they hold stays.
absl::Status EnterAsync(const SlotOpsContext& context, SlotState& slot,
                        uint64_t end) {
  const uint64_t first = slot.kernel_pages;
  if (absl::Status status =
          Unregister(context, slot, context.core.uffd, first, end - first);
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
  slot.keeps_fewer = true;
  ProtectAll(context, slot);
  return absl::OkStatus();
}

}  // namespace

// Pages from `new_end` on are tracked by signals again, and missing.
absl::Status LeaveKernelTracking(const SlotOpsContext& context, SlotState& slot,
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

absl::Status AdjustTracking(const SlotOpsContext& context, SlotState& slot,
                            uint64_t size_pages) {
  const Tracking wanted =
      slot.policy == nullptr ? Tracking::kSignal : slot.policy->tracking();
  if (slot.tracking == Tracking::kLearning) return absl::OkStatus();
  if (slot.tracking == wanted) {
    return LeaveKernelTracking(context, slot,
                               std::min(slot.kernel_pages, size_pages));
  }
  if (wanted == Tracking::kSignal) {
    return LeaveKernelTracking(context, slot, 0);
  }
  // Pages that the planes know of beyond the new bounds are dropped by the
  // caller.
  return EnterAsync(context, slot, AsyncEnd(slot, size_pages));
}

namespace {

// Pages of the read set that are mapped before a holder comes, at most: some
// milliseconds, where they have to be brought from a file first. What is left
// is mapped at its first touch, a granule at a time.
constexpr uint64_t kMostMappedPages = 4096;

}  // namespace

void Prefill(const SlotOpsContext& context, SlotState& slot,
             uint64_t size_pages, uint64_t most_pages) {
  if (!slot.prefill_wanted) return;
  slot.prefill_wanted = false;
  if (slot.tracking != Tracking::kSignal) return;
  const auto number = static_cast<uint32_t>(&slot - context.core.slots);
  const WorkingSet& set = slot.image->working_set();
  const WorkingSet::Words written = set.written();
  const auto for_each_run = [&](const WorkingSet::Words& words, auto fill) {
    for (uint64_t index = 0; index < words.size(); ++index) {
      ForEachRun(words[index] & GroupMask(index, 0, size_pages),
                 [&](uint64_t bit, uint64_t pages) {
                   fill(index * kPagesPerGroup + bit, pages);
                 });
    }
  };
  if (slot.image->has_source()) {
    // Nobody waits for it here: what is needed first goes first.
    for (const WorkingSet::Words& words : {written, set.read()}) {
      for_each_run(words, [&](uint64_t page, uint64_t pages) {
        slot.image->FetchEarly(PageIndex(page), PageCount(pages));
      });
    }
    return;
  }
  uint64_t pages_to_fill = 0;
  for_each_run(written,
               [&](uint64_t, uint64_t pages) { pages_to_fill += pages; });
  if (pages_to_fill <= most_pages) {
    for_each_run(written, [&](uint64_t page, uint64_t pages) {
      FillPrivate(context.core, number, page, pages);
      const uint64_t index = page / kPagesPerGroup;
      PageGroup& group = slot.pages.group(index);
      const uint64_t filled = GroupMask(index, page, page + pages) &
                              group.open.load(std::memory_order_relaxed);
      // As if an earlier holder had changed them, so that they are not dropped
      // before they had the time to be.
      group.hot.fetch_or(filled, std::memory_order_relaxed);
      group.previous.fetch_or(filled, std::memory_order_relaxed);
      CountOwned(slot.counters.pages_prefilled, std::popcount(filled));
    });
  }
  // Mapped clean is what was read, and has to stay within bounds: more of it
  // would keep the holder waiting. Where the image is not mapped it is private,
  // too.
  uint64_t left = kMostMappedPages;
  if (!slot.image_mapped) {
    left = std::min(left, most_pages - std::min(most_pages, pages_to_fill));
  }
  for_each_run(set.read(), [&](uint64_t page, uint64_t pages) {
    pages = std::min(pages, left);
    left -= pages;
    MapClean(context.core, number, page, pages);
  });
}

namespace {

// With the backing kShared: whether it pays to map the image into a slot that
// has none, where a few copies will do. Mapping takes five calls, as long as
// some four copies; the pages that are written are copied in any case.
bool FewPagesWillDo(const Image& image) {
  constexpr int kFewPages = 2;
  const WorkingSet& set = image.working_set();
  if (!set.known()) return false;
  const WorkingSet::Words written = set.written();
  const WorkingSet::Words read = set.read();
  int only_read = 0;
  for (size_t i = 0; i < read.size() && only_read <= kFewPages; ++i) {
    only_read +=
        std::popcount(read[i] & ~(i < written.size() ? written[i] : 0));
  }
  return only_read <= kFewPages;
}

// Whether an image that the slot has, but not mapped, is to be mapped now.
bool IsToBeMapped(const SlotOpsContext& context, const SlotState& slot) {
  return context.core.backing == Backing::kShared && slot.policy != nullptr &&
         !slot.image_mapped &&
         (slot.mapping_wanted.load(std::memory_order_relaxed) ||
          slot.policy->tracking() != Tracking::kSignal);
}

}  // namespace

absl::Status BindImage(const SlotOpsContext& context, SlotState& slot,
                       const ImageRef& image) {
  const bool map_now = slot.image == image && IsToBeMapped(context, slot);
  if (slot.image == image && !map_now) return absl::OkStatus();
  const uint64_t old_pages = slot.image_pages;
  const uint64_t new_pages = image == nullptr ? 0 : image->pages().value();
  const uint64_t touched_pages = std::max(old_pages, new_pages);
  std::shared_ptr<DriftPolicy> policy;
  if (image != nullptr) policy = context.policies->Find(image);
  const bool untracked = new_pages > 0 && context.learn_untracked &&
                         !image->working_set().known() &&
                         KernelMayServe(*image) &&
                         policy->tracking() == Tracking::kSignal;
  const bool map =
      context.core.backing == Backing::kShared && new_pages > 0 &&
      (map_now || slot.image_mapped || untracked ||
       policy->tracking() != Tracking::kSignal || !FewPagesWillDo(*image));
  int memfd = -1;
  if ((map || slot.image_mapped) && new_pages > 0) {
    absl::StatusOr<int> on_demand = image->OnDemandMemfd();
    if (!on_demand.ok()) return on_demand.status();
    memfd = *on_demand;
  }
  slot.remap_wanted = true;
  absl::Status status = LeaveKernelTracking(context, slot, 0);
  if (!status.ok()) return status;
  if (map || slot.image_mapped) {
    status = MapAnew(context, slot, 0, new_pages, memfd, untracked);
    if (status.ok() && old_pages > new_pages) {
      status = MapAnew(context, slot, new_pages, old_pages - new_pages, -1);
    }
  } else if (touched_pages > 0) {
    // Not only what the planes know of: a copy that failed or was left half-way
    // may have placed pages of the old image that nobody noted.
    Count(slot.counters.kernel_calls);
    const CallResult dropped = DropMappedPages(*context.core.kernel, slot.base,
                                               touched_pages * kPageBytes);
    if (!dropped.ok()) {
      status = Failed(context, slot, dropped.error, "MADV_DONTNEED", 0,
                      touched_pages);
    }
  }
  if (!status.ok()) return status;
  slot.image_mapped = map;
  slot.mapping_wanted.store(false, std::memory_order_relaxed);
  slot.pages.Forget(0, touched_pages);
  slot.pages.ForgetHistory();
  slot.cold_pages.clear();
  if (untracked) {
    slot.tracking = Tracking::kLearning;
    slot.kernel_pages = new_pages;
    CountOwned(slot.counters.untracked_leases);
  }
  slot.policy = std::move(policy);
  slot.prefill_wanted = image != nullptr;
  BeginSpan(slot);
  slot.last_noted_at = ~uint32_t{0};
  slot.grown_pages = 0;
  slot.grown_pages_before = 0;
  SetImage(slot, image);
  return absl::OkStatus();
}

void Abandon(SlotState& slot) {
  slot.remap_wanted = true;
  slot.pages.Forget(0, slot.pages.group_count() * kPagesPerGroup);
  slot.pages.ForgetHistory();
  slot.cold_pages.clear();
  slot.demotion_due = false;
  slot.any_untracked.store(false, std::memory_order_relaxed);
  slot.reads_to_teach.store(false, std::memory_order_relaxed);
  slot.filled.store(false, std::memory_order_relaxed);
  slot.image.reset();
  slot.image_id.store(SlotState::kAbandoned, std::memory_order_relaxed);
  slot.policy.reset();
  slot.image_pages = 0;
  slot.image_stored = nullptr;
  slot.image_data = nullptr;
  slot.image_fetch = nullptr;
  slot.image_mapped = false;
  slot.mapping_wanted.store(false, std::memory_order_relaxed);
  slot.prefill_wanted = false;
  slot.other_tracking_wanted = false;
  slot.tracking = Tracking::kSignal;
  slot.kernel_pages = 0;
  slot.all_marked = false;
  slot.kept_pages = 0;
  slot.keeps_fewer = false;
  slot.grown_pages = 0;
  slot.grown_pages_before = 0;
  BeginSpan(slot);
  slot.last_noted_at = ~uint32_t{0};
}

absl::Status MapAllAnew(const SlotOpsContext& context, SlotState& slot) {
  const uint64_t pages =
      PagesRoundedUp(context.core.entry.max_memory_bytes).value();
  if (context.core.backing == Backing::kCopied) {
    // Nothing was ever mapped there but the pool itself, whose registration
    // stays. A snapshot may have left pages read-only.
    const CallResult done = context.core.kernel->Mprotect(
        slot.base, pages * kPageBytes, PROT_READ | PROT_WRITE);
    Count(slot.counters.kernel_calls);
    if (!done.ok()) {
      return Failed(context, slot, done.error, "mprotect", 0, pages);
    }
    if (absl::Status status = DropRange(context, slot, 0, pages);
        !status.ok()) {
      return status;
    }
  } else {
    if (absl::Status status = MapAnew(context, slot, 0, pages, -1);
        !status.ok()) {
      return status;
    }
    NameReservedRange(slot.base, pages * kPageBytes, context.core.name);
  }
  slot.image_id.store(0, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status SettleUntracked(const SlotOpsContext& context, SlotState& slot,
                             uint64_t end_page) {
  if (!slot.any_untracked.load(std::memory_order_relaxed)) {
    return absl::OkStatus();
  }
  uint64_t lowest = end_page;
  uint64_t past_highest = 0;
  absl::Status status;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t mask = GroupMask(index, 0, end_page);
    const uint64_t present = group.present.load(std::memory_order_relaxed);
    // A fill that did not come to its end: what is there nobody knows, and
    // protected it would be a page that only the kernel knows of.
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
    // Pages of zeroes that are still the kernel's one page of zeroes have not
    // been written; anything else has.
    ScanRequest request;
    request.start = AddressOf(slot, lowest);
    request.end = AddressOf(slot, past_highest);
    request.any_of = kPageIsPresent | kPageIsSwapped;
    request.none_of = kPageIsPfnZero;
    request.report = kPageIsPresent | kPageIsSwapped;
    PageRegion regions[64];
    const ScanResult scan = ScanPages(
        *context.core.kernel, context.pagemap_fd, request, regions, 64,
        [&](const PageRegion& region) {
          uint64_t page = (region.start - slot.base) / kPageBytes;
          const uint64_t end = (region.end - slot.base) / kPageBytes;
          while (page < end) {
            const uint64_t index = page / kPagesPerGroup;
            PageGroup& group = slot.pages.group(index);
            const uint64_t written =
                GroupMask(index, page, end) &
                group.untracked.load(std::memory_order_relaxed);
            group.open.fetch_or(written, std::memory_order_relaxed);
            group.untracked.fetch_and(~written, std::memory_order_relaxed);
            page = (index + 1) * kPagesPerGroup;
          }
          return true;
        });
    Count(slot.counters.kernel_calls, scan.calls);
    scanned = scan.ok();
  }

  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t untracked = group.untracked.load(std::memory_order_relaxed) &
                               GroupMask(index, 0, end_page);
    if (untracked == 0) return;
    const auto settle = [&](uint64_t bit, uint64_t pages) {
      if (!status.ok()) return;
      const uint64_t first = index * kPagesPerGroup + bit;
      bool is_protected = false;
      if (scanned) {
        is_protected =
            WriteProtectRange(*context.core.kernel, context.core.uffd,
                              AddressOf(slot, first), pages * kPageBytes,
                              kUffdWriteProtectWp, {})
                .ok();
        Count(slot.counters.kernel_calls);
      }
      if (!is_protected) {
        status = DropPages(context, slot, first, first + pages);
        if (!status.ok()) return;
      }
      group.untracked.fetch_and(~GroupMask(index, first, first + pages),
                                std::memory_order_relaxed);
    };
    // Pages that were opened by a write elsewhere are restored in any case, and
    // for that must not be protected.
    const uint64_t open = group.open.load(std::memory_order_acquire);
    group.untracked.fetch_and(~(untracked & open), std::memory_order_relaxed);
    const uint64_t unchanged = untracked & ~open;
    // No call may cross the end of the image's mapping.
    const uint64_t in_image = GroupMask(index, 0, slot.image_pages);
    ForEachRun(unchanged & in_image, settle);
    ForEachRun(unchanged & ~in_image, settle);
  });
  if (status.ok()) {
    slot.any_untracked.store(false, std::memory_order_relaxed);
  }
  return status;
}

namespace {

// Pages to demote are put off until there are so many, or for so many spans.
constexpr uint64_t kWorthDemoting = 8;
constexpr uint32_t kPutOffSpans = 8;

// What it costs to restore these pages of a group.
double RestoreNs(const SlotState& slot, uint64_t index, uint64_t pages) {
  const uint64_t of_image = GroupMask(index, 0, slot.image_pages);
  return std::popcount(pages & of_image) * kRestoreNs +
         std::popcount(pages & ~of_image) * kRestoreZeroNs;
}

// A span of hand-overs is over: what was counted in it is acted upon.
absl::Status EndSpan(const SlotOpsContext& context, SlotState& slot,
                     uint64_t keep_pages) {
  uint64_t hot_pages = 0;
  double hot_ns = 0;
  uint64_t demotable = 0;
  slot.cold_pages.clear();
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t open = group.open.load(std::memory_order_relaxed);
    const uint64_t recent = group.recent.load(std::memory_order_relaxed);
    const uint64_t known =
        recent | group.previous.load(std::memory_order_relaxed);
    const uint64_t hot = slot.tracking == Tracking::kSignal ? open : known;
    hot_pages += std::popcount(hot);
    hot_ns += RestoreNs(slot, index, hot);
    const uint64_t cold =
        open & ~known & ~GroupMask(index, 0, slot.kernel_pages);
    if (cold != 0) {
      slot.cold_pages.resize(index + 1);
      slot.cold_pages[index] = cold;
      demotable += std::popcount(cold);
    }
  });
  const auto handovers = static_cast<double>(slot.span_handovers);
  if (slot.policy != nullptr && !slot.policy->fixed() && slot.span_pairs != 0) {
    slot.policy->Vote(
        {.changed = static_cast<double>(slot.span_changed) / handovers,
         .regular = static_cast<double>(slot.span_regular) /
                    static_cast<double>(slot.span_pairs),
         .faulted = static_cast<double>(slot.span_faulted) / handovers,
         .hot = static_cast<double>(hot_pages),
         .restore_ns = hot_pages == 0 ? kRestoreNs
                                      : hot_ns / static_cast<double>(hot_pages),
         .pages = static_cast<double>(WrittenEnd(slot, keep_pages))});
  }
  slot.demotion_due = demotable >= kWorthDemoting ||
                      (demotable != 0 && ++slot.spans_put_off >= kPutOffSpans);
  absl::Status status;
  if (slot.tracking == Tracking::kAsync && slot.kernel_pages < keep_pages &&
      slot.span_signals * kSignalNs >
          handovers *
              (kScanNs + static_cast<double>(keep_pages) * kScanPageNs)) {
    // Behind the image it drifts, too.
    status = EnterAsync(context, slot, keep_pages);
  }
  if (slot.spans_to_teach > 0 && slot.image != nullptr) {
    --slot.spans_to_teach;
    Teach(slot, [](const PageGroup& group) {
      return group.recent.load(std::memory_order_relaxed) &
             group.previous.load(std::memory_order_relaxed);
    });
  }
  slot.pages.NextSpan();
  BeginSpan(slot);
  return status;
}

// How far the holder got, upwards, in what it grew into.
void NoteGrowth(SlotState& slot, uint64_t keep_pages, uint64_t size_pages) {
  uint64_t page = keep_pages;
  while (page < size_pages) {
    const PageGroup& group = slot.pages.GroupOf(page);
    const uint64_t touched = group.open.load(std::memory_order_relaxed) |
                             group.present.load(std::memory_order_relaxed);
    const uint64_t bit = page % kPagesPerGroup;
    const uint64_t run = std::countr_one(touched >> bit);
    page += run;
    if (bit + run < kPagesPerGroup) break;
  }
  slot.grown_pages_before = slot.grown_pages;
  slot.grown_pages =
      static_cast<uint32_t>(std::min(page, size_pages) - keep_pages);
}

}  // namespace

void AddColdPages(const SlotState& slot, DropBatch& batch) {
  for (uint64_t index = 0; index < slot.cold_pages.size(); ++index) {
    ForEachRun(slot.cold_pages[index], [&](uint64_t bit, uint64_t pages) {
      batch.Add(AddressOf(slot, index * kPagesPerGroup + bit),
                pages * kPageBytes);
    });
  }
}

void LeaveOutWarmPages(SlotState& slot) {
  for (uint64_t index = 0; index < slot.cold_pages.size(); ++index) {
    const PageGroup& group = slot.pages.group(index);
    slot.cold_pages[index] &= group.open.load(std::memory_order_relaxed) &
                              ~group.recent.load(std::memory_order_relaxed) &
                              ~GroupMask(index, 0, slot.kernel_pages);
  }
}

absl::Status NoteDemoted(const SlotOpsContext& context, SlotState& slot,
                         const DropBatch::Result& dropped) {
  const WorkingSet::Words cold = std::exchange(slot.cold_pages, {});
  slot.demotion_due = false;
  slot.spans_put_off = 0;
  absl::Status status;
  uint64_t demoted = 0;
  for (uint64_t index = 0; index < cold.size(); ++index) {
    ForEachRun(cold[index], [&](uint64_t bit, uint64_t pages) {
      const uint64_t first = index * kPagesPerGroup + bit;
      const int error =
          dropped.ErrorOf(AddressOf(slot, first), pages * kPageBytes);
      if (error != 0) {
        status = Failed(context, slot, error, "MADV_DONTNEED", first, pages);
        return;
      }
      slot.pages.Forget(first, first + pages);
      demoted += pages;
    });
  }
  CountOwned(slot.counters.pages_demoted, demoted);
  if (slot.image != nullptr) slot.image->working_set().ForgetWritten(cold);
  return status;
}

absl::Status RestorePages(const SlotOpsContext& context, SlotState& slot,
                          uint64_t keep_pages, uint64_t size_pages,
                          uint64_t hot_pages_limit) {
  slot.filled.store(false, std::memory_order_relaxed);
  if (slot.reads_to_teach.load(std::memory_order_relaxed)) {
    TeachReads(slot, keep_pages);
  }
  // What was grown into goes first, so that nothing below has to look at it.
  if (size_pages > keep_pages && !Sabotaged(Sabotage::kGrownPages)) {
    NoteGrowth(slot, keep_pages, size_pages);
    if (absl::Status status = DropPages(context, slot, keep_pages, size_pages);
        !status.ok()) {
      return status;
    }
  }
  if (slot.tracking == Tracking::kLearning) {
    if (absl::Status status = FinishLearning(context, slot); !status.ok()) {
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
  uint64_t open_pages = 0;
  uint64_t unsure_first = keep_pages;
  uint64_t unsure_end = 0;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t open = group.open.load(std::memory_order_acquire);
    open_pages += std::popcount(open);
    // Open without being present: a fill that failed half-way. It may be there
    // or not; to touch it could fault.
    const uint64_t unsure =
        open & ~group.present.load(std::memory_order_relaxed);
    if (unsure != 0) {
      const uint64_t base = index * kPagesPerGroup;
      unsure_first =
          std::min<uint64_t>(unsure_first, base + std::countr_zero(unsure));
      unsure_end = base + std::bit_width(unsure);
    }
  });
  if (open_pages > hot_pages_limit) {
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
  double in_vain_ns = 0;
  ProtectCosts protect_costs = {.pages = slot.kernel_pages};
  const bool async = slot.tracking == Tracking::kAsync;
  uint64_t changed_pages = 0;
  uint64_t regular_pages = 0;
  RestoreGroups(
      slot,
      [&](uint64_t index, PageGroup& group, uint64_t open,
          uint64_t really_changed) {
        const uint64_t fresh =
            open & ~group.hot.load(std::memory_order_relaxed);
        const uint64_t changed = really_changed | fresh;
        changed_pages += std::popcount(changed);
        first_writes += std::popcount(fresh);
        late_writes += std::popcount(
            changed & ~group.recent.load(std::memory_order_relaxed) &
            ~group.previous.load(std::memory_order_relaxed));
        if (fresh != 0) group.hot.store(open, std::memory_order_relaxed);
        const uint64_t regular =
            changed & group.last.load(std::memory_order_relaxed);
        regular_pages += std::popcount(regular);
        group.last.store(changed, std::memory_order_relaxed);
        if (async) {
          const uint64_t by_kernel = GroupMask(index, 0, slot.kernel_pages);
          protect_costs.open += std::popcount(open & by_kernel);
          protect_costs.regular += std::popcount(regular & by_kernel);
          in_vain_ns += RestoreNs(slot, index, open & by_kernel & ~changed);
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
    slot.spans_to_teach = 2;
    if (!slot.image->working_set().known()) {
      Teach(slot, [](const PageGroup& group) {
        return group.open.load(std::memory_order_relaxed);
      });
    }
  }
  slot.span_changed += changed_pages;
  if (slot.last_noted_at == slot.span_handovers) {
    slot.span_regular += regular_pages;
    ++slot.span_pairs;
  }
  if (async) {
    slot.span_faulted += late_writes;
    slot.span_signals += first_writes_by_signal;
    slot.rent_ns += static_cast<uint64_t>(in_vain_ns +
                                          (slot.all_marked ? 0 : kExactScanNs));
    if (ShouldProtectAll(slot.rent_ns, protect_costs)) {
      ProtectAll(context, slot);
    }
  } else {
    slot.span_faulted += first_writes;
  }
  absl::Status status;
  if (++slot.span_handovers >= context.span_handovers) {
    status = EndSpan(context, slot, keep_pages);
  }
  slot.last_noted_at = slot.span_handovers;
  return status;
}

}  // namespace firsttouch
