// The part of UffdSupply that is about one slot.

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/accessible.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/filler.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/restore_page.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/trapping_pages.h"
#include "firsttouch/service/uffd_bind.h"
#include "firsttouch/service/uffd_drop.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/service/uffd_ready.h"
#include "firsttouch/service/uffd_restore.h"
#include "firsttouch/service/uffd_supply.h"
#include "firsttouch/service/uffd_tracking.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

absl::Status UffdSupply::Bind(SlotState& slot, const ImageRef& image,
                              uint64_t size_pages) {
  absl::Status status;
  if (slot.remap_wanted) status = MapAllAnew(*context_, slot);
  if (status.ok() &&
      (slot.exceptions.load(std::memory_order_relaxed) & kSlotDropped) != 0) {
    status = DropEveryPage(*context_, slot, slot.kept_pages);
  }
  if (status.ok()) status = BindImage(*context_, slot, image);
  StopFills(slot);  // As in Restore().
  if (!status.ok()) return status;
  // Stays set until all that follows is done.
  slot.remap_wanted = true;
  status = AdjustTracking(*context_, slot, size_pages);
  if (!status.ok()) return status;
  slot.other_tracking_wanted = false;
  if (slot.kept_pages > size_pages) {
    status = DropPages(*context_, slot, size_pages, slot.kept_pages);
  }
  if (status.ok()) status = UnpoisonAtRelease(*context_, slot);
  return status;
}

void UffdSupply::Prefill(SlotState& slot, uint64_t size_pages,
                         uint64_t most_pages) {
  FillWorkingSet(*context_, slot, size_pages, most_pages);
}

absl::Status UffdSupply::Unbind(SlotState& slot) {
  return MapAllAnew(*context_, slot);
}

void UffdSupply::StopFills(SlotState& slot) {
  // In-thread, the thread that fills is the one in the memory, and all threads
  // have left it. A handler thread may have read an event, or be filling, for a
  // thread that has gone on: the handler thread finds another lease, or is
  // waited for.
  if (threads_ == nullptr) return;
  threads_->WaitForReads();
  slot.lease.fetch_add(1, std::memory_order_seq_cst);
  WaitForFills(slot);
}

absl::Status UffdSupply::Restore(SlotState& slot, uint64_t size_bytes,
                                 uint64_t most_private_pages) {
  // A page to be restored that the kernel or the host has taken away is
  // supplied again when the restore touches it, so the pages stay in bounds
  // until the restore is done; pages that were grown into go first.
  slot.size_bytes.store(std::min(size_bytes, slot.initial_bytes),
                        std::memory_order_seq_cst);
  absl::Status status =
      RestorePages(*context_, slot, slot.kept_pages,
                   PagesRoundedUp(size_bytes).value(), most_private_pages);
  // A page that somebody had taken away was supplied by a handler thread when
  // it was restored. That thread has woken this one, and may go on: with the
  // pages behind, from this image.
  StopFills(slot);
  // Includes private pages that are clean, which the kernel may be reading; and
  // pages that could not be restored since the image's page could not be read.
  if (status.ok() &&
      (slot.exceptions.load(std::memory_order_relaxed) & kSlotDropped) != 0) {
    status = DropEveryPage(*context_, slot, slot.kept_pages);
  }
  if (status.ok()) status = UnpoisonAtRelease(*context_, slot);
  if (!status.ok()) return status;
  // The next lease must not take the steady path.
  slot.other_tracking_wanted =
      slot.policy != nullptr && slot.policy->tracking() != slot.tracking;
  if (slot.mapping_wanted.load(std::memory_order_relaxed)) {
    slot.prefill_wanted = true;
  }
  return status;
}

uint64_t UffdSupply::KeptPages(SlotState& slot) {
  uint64_t pages = 0;
  const bool copied = !slot.image_mapped;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    uint64_t own = group.dirty.load(std::memory_order_relaxed);
    if (copied) {
      own |= group.present.load(std::memory_order_relaxed) &
             StoredPages(slot, index);
    }
    pages += std::popcount(own);
  });
  if (slot.tracking == Tracking::kAsync) {
    // Protected pages stay private, and not all dirty pages are private: counts
    // them where there may be more than before, or fewer.
    const uint64_t least = slot.idle.pages.load(std::memory_order_relaxed);
    pages = pages > least || slot.idle.keeps_fewer
                ? ForEachPrivateRegion(*context_, slot, slot.kept_pages,
                                       [](const PageRegion&) {})
                : least;
  }
  slot.idle.keeps_fewer = false;
  return pages;
}

PageSpan UffdSupply::KeptSpan(const SlotState& slot) const {
  return ResidentSpan(slot, 0, slot.kept_pages);
}

absl::Status UffdSupply::NoteDropped(SlotState& slot, const PageSpan& span,
                                     int error) {
  absl::Status status;
  if (!span.empty()) {
    status = firsttouch::NoteDropped(*context_, slot, span, error);
  }
  if (status.ok()) slot.prefill_wanted = slot.image != nullptr;
  return status;
}

void UffdSupply::AddColdPages(SlotState& slot, DropBatch& batch) {
  LeaveOutWarmPages(slot);
  firsttouch::AddColdPages(slot, batch);
}

absl::Status UffdSupply::NoteDemoted(SlotState& slot,
                                     const DropBatch::Result& dropped) {
  return firsttouch::NoteDemoted(*context_, slot, dropped);
}

bool UffdSupply::DistrustsPages() {
  const bool merges = ProcessMergesPages();
  if (merges == process_merges_.load(std::memory_order_relaxed) ||
      process_merges_.exchange(merges, std::memory_order_relaxed) == merges ||
      !merges) {
    return false;
  }
  StopMerging(pool_.kernel, reservation_base_, reservation_bytes_);
  return true;
}

void UffdSupply::NoteGrown(SlotState& slot, uint64_t before, uint64_t after) {
  // Not only for the guest, whose touch would do the same: a system call would
  // get EFAULT.
  if (pool_.fault_pool.resolve == Resolve::kHandlerThread &&
      slot.poisoned_pages.count.load(std::memory_order_seq_cst) != 0) {
    SupplyPoisonedPages(pool_.fault_pool, SlotNumber(pool_.fault_pool, slot),
                        PagesRoundedUp(before).value(),
                        PagesRoundedUp(after).value());
  }
  const uint64_t expected =
      std::min(slot.growth.pages, slot.growth.pages_before);
  if (expected == 0 || before != slot.initial_bytes) return;
  const uint64_t pages =
      std::min<uint64_t>({expected, kZeroSourcePages,
                          PagesRoundedUp(after).value() - slot.kept_pages});
  // What cannot be filled now is filled, or reported, at its first touch.
  FillPrivate(pool_.fault_pool, SlotNumber(pool_.fault_pool, slot),
              slot.kept_pages, pages);
  Count(slot.counters.pages_prefilled, pages);
}

absl::Status UffdSupply::SetWritable(SlotState& slot, bool writable) {
  const uint64_t bytes = RoundUpToPage(pool_.layout.memory_bytes());
  Count(slot.counters.kernel_calls);
  const CallResult done = pool_.kernel.Mprotect(
      slot.base, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ);
  if (done.ok()) return absl::OkStatus();
  return absl::ErrnoToStatus(
      done.error,
      absl::StrCat(
          "mprotect(PROT_READ", writable ? " | PROT_WRITE" : "", ") of the ",
          bytes, " bytes of slot ", SlotNumber(pool_.fault_pool, slot),
          " in pool \"", pool_.options.name, "\", ",
          writable ? "after a snapshot; release the memory" : "for a snapshot",
          done.error == ENOMEM ? ShortageText(0) : ""));
}

absl::Status UffdSupply::ForEachChangedPage(
    SlotState& slot, uint64_t end_page,
    absl::FunctionRef<void(uint64_t page)> visit) {
  if (absl::Status status = FindKernelWrites(*context_, slot); !status.ok()) {
    return status;
  }
  absl::Status filled;
  // Visits the untracked pages that are no longer the kernel's zero page;
  // without a scan, all of them.
  const auto visit_bits = [&](uint64_t index, uint64_t bits) {
    ForEachRun(bits & WordMask(index, 0, end_page),
               [&](uint64_t bit, uint64_t pages) {
                 for (uint64_t i = 0; i < pages; ++i) {
                   const uint64_t page = index * kPagesPerGroup + bit + i;
                   if (IsThere(*context_, slot, page, &filled)) visit(page);
                 }
               });
  };
  const bool scans = pagemap_.has_value();
  uint64_t lowest = end_page;
  uint64_t past_highest = 0;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t dirty = group.dirty.load(std::memory_order_acquire);
    const uint64_t untracked = group.untracked.load(std::memory_order_relaxed) &
                               ~dirty & WordMask(index, 0, end_page);
    visit_bits(index, scans ? dirty : dirty | untracked);
    if (untracked == 0) return;
    const uint64_t base = index * kPagesPerGroup;
    lowest = std::min<uint64_t>(lowest, base + std::countr_zero(untracked));
    past_highest = base + std::bit_width(untracked);
  });
  if (!scans || lowest >= past_highest) return filled;
  ScanRequest request;
  request.start = slot.base + lowest * kPageBytes;
  request.end = slot.base + past_highest * kPageBytes;
  request.any_of = kPageIsPresent | kPageIsSwapped;
  request.none_of = kPageIsPfnZero;
  request.report = kPageIsPresent | kPageIsSwapped;
  PageRegion regions[64];
  const ScanResult scan = ScanPages(
      pool_.kernel, pagemap_->fd(), request, regions, 64,
      [&](const PageRegion& region) {
        // Includes pages that are dirty by now: MakeReady() may have made a
        // page writable since it was looked at above. Visiting a page twice
        // does no harm.
        ForEachWordIn(slot, region, [&](uint64_t index, uint64_t bits) {
          visit_bits(index, bits & slot.pages.group(index).untracked.load(
                                       std::memory_order_relaxed));
        });
        return true;
      });
  Count(slot.counters.kernel_calls, scan.calls);
  if (scan.ok()) return filled;
  // The scan failed: visits each of them. Some are visited twice.
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    visit_bits(index, group.untracked.load(std::memory_order_relaxed));
  });
  return filled;
}

absl::Status UffdSupply::MakeReady(SlotState& slot, uint64_t offset_bytes,
                                   uint64_t bytes, Access access) {
  return MakePagesReady(*context_, slot, offset_bytes / kPageBytes,
                        PagesRoundedUp(offset_bytes + bytes).value(), access);
}

MemoryPages UffdSupply::CountPages(SlotState& slot) {
  MemoryPages count;
  WaitForFills(slot);
  if (slot.kernel_pages > 0) {
    // A failed scan leaves out what it would have found.
    FindKernelWrites(*context_, slot).IgnoreError();
    PageRegion regions[64];
    count.touched +=
        ScanPages(pool_.kernel, pagemap_->fd(),
                  ScanRequest::Resident(
                      slot.base, slot.base + slot.kernel_pages * kPageBytes),
                  regions, 64, [](const PageRegion&) { return true; })
            .pages;
  }
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t present = group.present.load(std::memory_order_relaxed);
    const uint64_t dirty =
        present & (group.dirty.load(std::memory_order_acquire) |
                   group.untracked.load(std::memory_order_relaxed));
    count.touched +=
        std::popcount(present & ~WordMask(index, 0, slot.kernel_pages));
    count.writable += std::popcount(dirty);
    ForEachRun(dirty, [&](uint64_t bit, uint64_t pages) {
      for (uint64_t page = index * kPagesPerGroup + bit; pages > 0;
           ++page, --pages) {
        const auto* now =
            reinterpret_cast<const std::byte*>(slot.base + page * kPageBytes);
        count.changed += DiffersFrom(now, InitialPage(slot, page));
      }
    });
  });
  return count;
}

}  // namespace firsttouch
