#include "firsttouch/service/slot_ops.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fill.h"
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

// Maps [first_page, first_page + pages) anew, from the image's memfd at the
// same offset or, with fd -1, anonymous, and gives it every property that the
// rest of the pool has.
absl::Status MapAnew(const SlotOpsContext& context, SlotState& slot,
                     uint64_t first_page, uint64_t pages, int fd) {
  if (pages == 0) return absl::OkStatus();
  Kernel& kernel = *context.core.kernel;
  const uintptr_t start = AddressOf(slot, first_page);
  const size_t bytes = pages * kPageBytes;
  Count(slot.counters.kernel_calls, 5);
  int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
  if (fd < 0) flags |= MAP_ANONYMOUS;
  const CallResult mapped =
      kernel.Mmap(start, bytes, PROT_READ | PROT_WRITE, flags, fd,
                  fd < 0 ? 0 : first_page * kPageBytes);
  if (!mapped.ok()) {
    return Failed(context, slot, mapped.error, "mmap", first_page, pages);
  }
  uint64_t mode = kUffdRegisterMissing | kUffdRegisterWp;
  if (fd >= 0) mode |= kUffdRegisterMinor;
  const CallResult registered =
      kernel.Register(context.core.uffd, start, bytes, mode, nullptr);
  if (!registered.ok()) {
    // The slot is never used again; that a touch of it still does not succeed
    // needs this, now that no fault would be told.
    kernel.Mprotect(start, bytes, PROT_NONE);
    return Failed(context, slot, registered.error, "UFFDIO_REGISTER",
                  first_page, pages);
  }
  const CallResult fork = kernel.Madvise(start, bytes, MADV_DONTFORK);
  if (!fork.ok()) {
    return Failed(context, slot, fork.error, "MADV_DONTFORK", first_page,
                  pages);
  }
  if (!context.include_in_core_dump) {
    const CallResult dump = kernel.Madvise(start, bytes, MADV_DONTDUMP);
    if (!dump.ok()) {
      return Failed(context, slot, dump.error, "MADV_DONTDUMP", first_page,
                    pages);
    }
  }
  // EINVAL: a kernel without huge pages has none to keep away.
  const CallResult huge = kernel.Madvise(start, bytes, MADV_NOHUGEPAGE);
  if (!huge.ok() && huge.error != EINVAL) {
    return Failed(context, slot, huge.error, "MADV_NOHUGEPAGE", first_page,
                  pages);
  }
  return absl::OkStatus();
}

// Copies the initial bytes over pages [page, page + pages) of one group.
void RestoreRun(SlotState& slot, uint64_t group, uint64_t bits,
                uint64_t& restored) {
  const uint64_t image_bits = group * kPagesPerGroup < slot.image_pages
                                  ? bits & slot.image_stored[group]
                                  : 0;
  auto* const memory =
      reinterpret_cast<std::byte*>(AddressOf(slot, group * kPagesPerGroup));
  ForEachRun(image_bits, [&](uint64_t bit, uint64_t pages) {
    memcpy(memory + bit * kPageBytes,
           slot.image_data + (group * kPagesPerGroup + bit) * kPageBytes,
           pages * kPageBytes);
  });
  ForEachRun(bits & ~image_bits, [&](uint64_t bit, uint64_t pages) {
    memset(memory + bit * kPageBytes, 0, pages * kPageBytes);
  });
  restored += std::popcount(bits);
}

}  // namespace

void WaitForFills(const SlotState& slot) {
  for (int spins = 0; slot.fills_in_flight.load(std::memory_order_seq_cst) != 0;
       ++spins) {
    if (spins >= 100) sched_yield();
  }
}

absl::Status DropPages(const SlotOpsContext& context, SlotState& slot,
                       uint64_t first_page, uint64_t end_page) {
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
  if (pages == 0) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const CallResult dropped = context.core.kernel->Madvise(
      AddressOf(slot, lowest), (past_highest - lowest) * kPageBytes,
      kMadvDontNeed);
  if (!dropped.ok()) {
    return Failed(context, slot, dropped.error, "MADV_DONTNEED", lowest,
                  past_highest - lowest);
  }
  CountOwned(slot.counters.pages_dropped, pages);
  slot.pages.Forget(lowest, past_highest);
  return absl::OkStatus();
}

absl::Status DropStrays(const SlotOpsContext& context, SlotState& slot) {
  const uint32_t count = slot.strays.count.load(std::memory_order_acquire);
  if (count == 0) return absl::OkStatus();
  Kernel& kernel = *context.core.kernel;
  const auto reset = [&](uintptr_t start, uint64_t bytes) -> absl::Status {
    Count(slot.counters.kernel_calls);
    const CallResult done =
        context.core.poison
            ? kernel.Madvise(start, bytes, kMadvDontNeed)
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
    if (address != 0 && status.ok()) status = reset(address, kPageBytes);
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
  if (status.ok()) slot.strays.count.store(0, std::memory_order_release);
  return status;
}

absl::Status BindImage(const SlotOpsContext& context, SlotState& slot,
                       const ImageRef& image) {
  if (slot.image == image) return absl::OkStatus();
  const uint64_t old_pages = slot.image_pages;
  const uint64_t new_pages = image == nullptr ? 0 : image->pages().value();
  const uint64_t touched_pages = std::max(old_pages, new_pages);
  absl::Status status;
  if (context.core.backing == Backing::kShared) {
    status = MapAnew(context, slot, 0, new_pages,
                     image == nullptr ? -1 : image->memfd());
    if (status.ok() && old_pages > new_pages) {
      status = MapAnew(context, slot, new_pages, old_pages - new_pages, -1);
    }
  } else if (touched_pages > 0) {
    // Not only what the planes know of: a copy that failed or was left half-way
    // may have placed pages of the old image that nobody noted.
    Count(slot.counters.kernel_calls);
    const CallResult dropped = context.core.kernel->Madvise(
        slot.base, touched_pages * kPageBytes, kMadvDontNeed);
    if (!dropped.ok()) {
      status = Failed(context, slot, dropped.error, "MADV_DONTNEED", 0,
                      touched_pages);
    }
  }
  if (!status.ok()) return status;
  slot.pages.Forget(0, touched_pages);
  slot.image = image;
  slot.image_pages = new_pages;
  slot.image_stored = image == nullptr ? nullptr : image->stored_words();
  slot.image_data = image == nullptr ? nullptr : image->data();
  CountOwned(slot.counters.binds);
  return absl::OkStatus();
}

absl::Status SettleUntracked(const SlotOpsContext& context, SlotState& slot,
                             uint64_t end_page, Unknown unknown) {
  if (!slot.any_untracked.load(std::memory_order_relaxed)) {
    return absl::OkStatus();
  }
  uint64_t lowest = end_page;
  uint64_t past_highest = 0;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t untracked = group.untracked.load(std::memory_order_relaxed) &
                               GroupMask(index, 0, end_page);
    if (untracked == 0) return;
    const uint64_t base = index * kPagesPerGroup;
    lowest = std::min<uint64_t>(lowest, base + std::countr_zero(untracked));
    past_highest = base + std::bit_width(untracked);
  });
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
            group.present.fetch_or(written, std::memory_order_relaxed);
            group.untracked.fetch_and(~written, std::memory_order_relaxed);
            page = (index + 1) * kPagesPerGroup;
          }
          return true;
        });
    Count(slot.counters.kernel_calls, scan.calls);
    scanned = scan.ok();
  }

  absl::Status status;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t untracked = group.untracked.load(std::memory_order_relaxed) &
                               GroupMask(index, 0, end_page);
    if (untracked == 0) return;
    if (!scanned && unknown == Unknown::kCountAsChanged) {
      group.open.fetch_or(untracked, std::memory_order_relaxed);
      group.present.fetch_or(untracked, std::memory_order_relaxed);
      group.untracked.fetch_and(~untracked, std::memory_order_relaxed);
      return;
    }
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

absl::Status RestorePages(const SlotOpsContext& context, SlotState& slot,
                          uint64_t keep_pages, uint64_t size_pages,
                          uint64_t hot_pages_limit) {
  // What was grown into goes first, so that nothing below has to look at it.
  if (size_pages > keep_pages) {
    if (absl::Status status = DropPages(context, slot, keep_pages, size_pages);
        !status.ok()) {
      return status;
    }
  }
  if (absl::Status status =
          SettleUntracked(context, slot, keep_pages, Unknown::kDrop);
      !status.ok()) {
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
  if (open_pages == 0) return absl::OkStatus();
  if (open_pages > hot_pages_limit) {
    return DropPages(context, slot, 0, keep_pages);
  }
  if (unsure_first < unsure_end) {
    if (absl::Status status =
            DropPages(context, slot, unsure_first, unsure_end);
        !status.ok()) {
      return status;
    }
  }
  uint64_t restored = 0;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t open = group.open.load(std::memory_order_relaxed);
    if (open == 0) return;
    RestoreRun(slot, index, open, restored);
    if (group.hot.load(std::memory_order_relaxed) != open) {
      group.hot.store(open, std::memory_order_relaxed);
    }
  });
  CountOwned(slot.counters.pages_restored, restored);
  return absl::OkStatus();
}

}  // namespace firsttouch
