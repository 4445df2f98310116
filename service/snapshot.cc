// The memory as it is at one moment, while others may write to it.
//
// The moment is when mprotect(2) has made all of the memory read-only and
// returns: no core has a writable translation any more, so no instruction can
// change a byte until it is writable again, whatever supplies the pages and
// however they are tracked. Until then writes get SIGSEGV and wait in
// WasFrozen() (signal_path.cc). Pages that come meanwhile (reads go on, and
// fills that were under way end) have their initial bytes.
//
// Which pages may have changed by then: a bit of `open` is set before its page
// can be written (page_states.h), so that none is missing there; pages of
// zeroes and pages that the kernel tracks, a scan finds. Unlike at a release,
// nothing is settled: planes that the fault path is using stay as they are.

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_pieces.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/service/core.h"
#include "firsttouch/service/mapping_ops.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/restore_page.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/slot_ops.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Signals of writes that came while the memory was read-only and are looked at
// after it, of all threads: more than there are threads, few enough that a page
// which somebody else made read-only is found out at once.
constexpr uint32_t kLateWrites = 1u << 16;

void WaitForNoOther(std::atomic<uint32_t>& frozen) {
  uint32_t expected = 0;
  while (
      !frozen.compare_exchange_strong(expected, 1, std::memory_order_seq_cst)) {
    syscall(SYS_futex, &frozen, FUTEX_WAIT_PRIVATE, 1, nullptr);
    expected = 0;
  }
}

void LetAllGo(std::atomic<uint32_t>& frozen) {
  frozen.store(0, std::memory_order_seq_cst);
  syscall(SYS_futex, &frozen, FUTEX_WAKE_PRIVATE, INT_MAX);
}

}  // namespace

void Core::WaitUntilThawed(const SlotState& slot) {
  while (slot.frozen.load(std::memory_order_acquire) != 0) {
    syscall(SYS_futex, &slot.frozen, FUTEX_WAIT_PRIVATE, 1, nullptr);
  }
}

absl::Status Core::Freeze(SlotState& slot, uint64_t bytes) {
  WaitForNoOther(slot.frozen);
  absl::Status status;
  if (mappings_ != nullptr) {
    status = mappings_->SetWritable(slot, false);
  } else {
    Count(slot.counters.kernel_calls);
    const CallResult done = kernel_.Mprotect(slot.base, bytes, PROT_READ);
    if (!done.ok()) {
      status = absl::ErrnoToStatus(
          done.error,
          absl::StrCat("mprotect(PROT_READ) of the ", bytes, " bytes of slot ",
                       SlotNumber(slot), " in pool \"", options_.name,
                       "\", for a snapshot",
                       done.error == ENOMEM ? ShortageText(0) : ""));
    }
  }
  // A call that fails may have done a part.
  if (!status.ok()) Thaw(slot, bytes).IgnoreError();
  return status;
}

absl::Status Core::Thaw(SlotState& slot, uint64_t bytes) {
  absl::Status status;
  if (mappings_ != nullptr) {
    status = mappings_->SetWritable(slot, true);
  } else {
    Count(slot.counters.kernel_calls);
    const CallResult done =
        kernel_.Mprotect(slot.base, bytes, PROT_READ | PROT_WRITE);
    if (!done.ok()) {
      status = absl::ErrnoToStatus(
          done.error,
          absl::StrCat("mprotect(PROT_READ | PROT_WRITE) of the ", bytes,
                       " bytes of slot ", SlotNumber(slot), " in pool \"",
                       options_.name,
                       "\", after a snapshot; release the memory",
                       done.error == ENOMEM ? ShortageText(0) : ""));
    }
  }
  if (status.ok()) {
    slot.late_writes.store(kLateWrites, std::memory_order_relaxed);
  } else {
    slot.late_writes.store(0, std::memory_order_relaxed);
    slot.remap_wanted = true;
    slot.exceptions.fetch_or(kSlotBroken, std::memory_order_relaxed);
  }
  LetAllGo(slot.frozen);
  return status;
}

absl::Status Core::ForEachChangedPage(
    SlotState& slot, uint64_t end_page,
    absl::FunctionRef<void(uint64_t page)> visit) {
  if (mappings_ != nullptr) {
    for (const MappingOps::Run& run : mappings_->Resident(slot, end_page)) {
      if (!run.is_private) continue;
      for (uint64_t i = 0; i < run.pages; ++i) visit(run.first_page + i);
    }
    return absl::OkStatus();
  }
  if (absl::Status status = FindKernelWrites(*ops_, slot); !status.ok()) {
    return status;
  }
  // Of untracked pages, those that are not the kernel's page of zeroes any
  // more; without a scan, each of them.
  const auto visit_bits = [&](uint64_t index, uint64_t bits) {
    ForEachRun(bits & GroupMask(index, 0, end_page),
               [&](uint64_t bit, uint64_t pages) {
                 for (uint64_t i = 0; i < pages; ++i) {
                   visit(index * kPagesPerGroup + bit + i);
                 }
               });
  };
  const bool scans = pagemap_.has_value();
  uint64_t lowest = end_page;
  uint64_t past_highest = 0;
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    const uint64_t open = group.open.load(std::memory_order_acquire);
    const uint64_t untracked = group.untracked.load(std::memory_order_relaxed) &
                               ~open & GroupMask(index, 0, end_page);
    visit_bits(index, scans ? open : open | untracked);
    if (untracked == 0) return;
    const uint64_t base = index * kPagesPerGroup;
    lowest = std::min<uint64_t>(lowest, base + std::countr_zero(untracked));
    past_highest = base + std::bit_width(untracked);
  });
  if (!scans || lowest >= past_highest) return absl::OkStatus();
  ScanRequest request;
  request.start = slot.base + lowest * kPageBytes;
  request.end = slot.base + past_highest * kPageBytes;
  request.any_of = kPageIsPresent | kPageIsSwapped;
  request.none_of = kPageIsPfnZero;
  request.report = kPageIsPresent | kPageIsSwapped;
  PageRegion regions[64];
  const ScanResult scan = ScanPages(
      kernel_, pagemap_->fd(), request, regions, 64,
      [&](const PageRegion& region) {
        uint64_t page = (region.start - slot.base) / kPageBytes;
        const uint64_t end = (region.end - slot.base) / kPageBytes;
        while (page < end) {
          const uint64_t index = page / kPagesPerGroup;
          const PageGroup& group = slot.pages.group(index);
          // Also those that are open by now: MakeReady() may have opened a page
          // since it was looked at above. What is visited twice does no harm.
          visit_bits(index,
                     GroupMask(index, page, end) &
                         group.untracked.load(std::memory_order_relaxed));
          page = (index + 1) * kPagesPerGroup;
        }
        return true;
      });
  Count(slot.counters.kernel_calls, scan.calls);
  if (scan.ok()) return absl::OkStatus();
  // Each of them, then. What was visited is visited twice.
  slot.pages.ForEachGroup([&](uint64_t index, PageGroup& group) {
    visit_bits(index, group.untracked.load(std::memory_order_relaxed));
  });
  return absl::OkStatus();
}

bool Core::IsThere(SlotState& slot, uint64_t page, absl::Status* failure) {
  // A scan has found it.
  if (mappings_ != nullptr) return true;
  // Nobody has written to a page that its source has not given yet, although
  // somebody may have tried to.
  if (page < slot.image_pages && !slot.image->IsFetched(PageIndex(page))) {
    return false;
  }
  const uint64_t present =
      slot.pages.GroupOf(page).present.load(std::memory_order_acquire);
  if ((present >> (page % kPagesPerGroup) & 1) != 0) return true;
  // A fill of it is under way, or has failed: to read it might end the process.
  const FaultResult result =
      ResolveFault(fault_core_, {.slot = SlotNumber(slot),
                                 .offset_bytes = page * kPageBytes,
                                 .access = Access::kRead});
  if (result.kind == FaultResult::Kind::kResolved) return true;
  failure->Update(FillFailed(slot, page, result));
  return false;
}

absl::StatusOr<ImageRef> Core::Snapshot(SlotState& slot, std::string name,
                                        bool delta) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  // A page that was taken away behind our back is read below, and faults.
  if (absl::Status status = EnsureAlternateStack(); !status.ok()) {
    return status;
  }
  const uint64_t freeze_bytes = RoundUpToPage(layout_.memory_bytes());
  absl::StatusOr<PageMap> differs = PageMap();
  uintptr_t copies = 0;
  uint64_t room_bytes = 0;
  absl::Cleanup unmap = [&] {
    if (copies != 0) kernel_.Munmap(copies, room_bytes);
  };
  uint64_t size_bytes = slot.size_bytes.load(std::memory_order_seq_cst);
  {
    // Memory is allocated before others have to wait, who may hold a lock: room
    // for a copy of every page, of which what is used counts.
    const MappingOps::GrowthLock lock(mappings_.get(), slot);
    while (true) {
      size_bytes = slot.size_bytes.load(std::memory_order_seq_cst);
      if (size_bytes > room_bytes) {
        if (copies != 0) kernel_.Munmap(std::exchange(copies, 0), room_bytes);
        room_bytes = RoundUpToPage(size_bytes);
        const auto refused = [&](int error, const char* call) {
          return absl::ErrnoToStatus(
              error,
              absl::StrCat(call, " of ", room_bytes,
                           " bytes for a snapshot (mostly untouched; RLIMIT_AS "
                           "and overcommit count it)",
                           error == ENOMEM ? ShortageText(room_bytes) : ""));
        };
        // In the order that mapping_properties.h gives. They are bytes of the
        // memory, which neither a core dump nor a child of fork(2) has.
        const CallResult mapped =
            kernel_.Mmap(0, room_bytes, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (!mapped.ok()) return refused(mapped.error, "mmap");
        copies = static_cast<uintptr_t>(mapped.value);
        const MappingResult set = SetMappingProperties(
            kernel_, copies, room_bytes,
            {.include_in_core_dump = options_.include_in_core_dump});
        if (!set.ok()) return refused(set.error, set.call);
        const CallResult opened =
            kernel_.Mprotect(copies, room_bytes, PROT_READ | PROT_WRITE);
        if (!opened.ok()) return refused(opened.error, "mprotect");
        differs = PageMap::Create(PagesRoundedUp(room_bytes));
        if (!differs.ok()) return differs.status();
      }
      if (absl::Status status = Freeze(slot, freeze_bytes); !status.ok()) {
        return status;
      }
      size_bytes = slot.size_bytes.load(std::memory_order_seq_cst);
      absl::Status status;
      if (size_bytes <= room_bytes) {
        absl::Status filled;
        status = ForEachChangedPage(
            slot, PagesRoundedUp(size_bytes).value(), [&](uint64_t page) {
              if (!IsThere(slot, page, &filled)) return;
              static constexpr std::byte kZeroPage[kPageBytes] = {};
              const std::byte* const before =
                  page < slot.image_pages
                      ? slot.image->PageBytes(PageIndex(page))
                      : kZeroPage;
              const uint64_t offset = page * kPageBytes;
              const auto* const now =
                  reinterpret_cast<const std::byte*>(slot.base + offset);
              if (!DiffersFrom(now, before)) return;
              std::memcpy(reinterpret_cast<std::byte*>(copies + offset), now,
                          kPageBytes);
              differs->Insert(PageIndex(page));
            });
        status.Update(filled);
      }
      status.Update(Thaw(slot, freeze_bytes));
      if (!status.ok()) return status;
      if (size_bytes <= room_bytes) break;
      // Somebody has grown it, faster than we were.
    }
  }

  std::vector<PageData> changed;
  changed.reserve(differs->count());
  for (auto run = differs->NextRun(PageIndex(0)); run.has_value();
       run = differs->NextRun(run->end())) {
    for (PageIndex page = run->first; page < run->end(); ++page) {
      changed.push_back({page, reinterpret_cast<const std::byte*>(
                                   copies + page.offset_bytes())});
    }
  }
  const ImageOptions image_options = {.name = std::move(name),
                                      .size_bytes = size_bytes};
  if (delta && slot.image != nullptr) {
    return DeltaOf(image_options, slot.image->Handle(), changed);
  }
  return ImageWithPages(image_options, slot.image.get(), changed);
}

}  // namespace firsttouch
