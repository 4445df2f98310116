// The memory as it is at one moment, while others may write to it.
//
// The moment is when mprotect(2) has made all of the memory read-only and
// returns: no core has a writable translation any more, so no instruction can
// change a byte until the memory is writable again, whatever supplies the pages
// and however they are tracked. Until then writes get SIGSEGV and wait in
// WasFrozen() (signal_path.cc). Pages that are placed meanwhile (reads go on,
// and fills that were under way end) have their initial bytes.
//
// Which pages may have changed by then: a bit of `dirty` is set before its page
// can be written (page_states.h), so that the plane has them all; a scan finds
// zero pages and pages that the kernel tracks. Unlike at a release, nothing is
// settled: the planes, which the fault path is using, stay as they are.

#include "firsttouch/service/snapshot.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_pieces.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/service/held_memory.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/restore_page.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// How many signals of writes to read-only memory may be handled after it is
// writable again, in all threads: more than there are threads, few enough that
// a page which other code made read-only is found out at once.
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

// Lets all threads write to the memory again.
absl::Status Thaw(ServicePool& pool, SlotState& slot) {
  absl::Status status = pool.supply->SetWritable(slot, true);
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

// Keeps all threads from writing to the memory.
absl::Status Freeze(ServicePool& pool, SlotState& slot) {
  WaitForNoOther(slot.frozen);
  absl::Status status = pool.supply->SetWritable(slot, false);
  // A call that fails may have done a part: undo it.
  if (!status.ok()) Thaw(pool, slot).IgnoreError();
  return status;
}

}  // namespace

absl::StatusOr<ImageRef> SnapshotSlot(ServicePool& pool, SlotState& slot,
                                      std::string name, bool delta) {
  if (absl::Status status = pool.CheckProcess(); !status.ok()) return status;
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  // A page that was taken away behind our back is read below, and faults.
  if (absl::Status status = EnsureAlternateStack(); !status.ok()) {
    return status;
  }
  absl::StatusOr<PageMap> differs = PageMap();
  uintptr_t copies = 0;
  uint64_t room_bytes = 0;
  absl::Cleanup unmap = [&] {
    if (copies != 0) pool.kernel.Munmap(copies, room_bytes);
  };
  uint64_t size_bytes = slot.size_bytes.load(std::memory_order_seq_cst);
  {
    // Memory is allocated before other threads have to wait, since they may
    // hold a lock: room for a copy of every page, of which only the used part
    // takes memory.
    const MemorySupply::GrowthLock lock(*pool.supply, slot);
    while (true) {
      size_bytes = slot.size_bytes.load(std::memory_order_seq_cst);
      if (size_bytes > room_bytes) {
        if (copies != 0)
          pool.kernel.Munmap(std::exchange(copies, 0), room_bytes);
        room_bytes = RoundUpToPage(size_bytes);
        const auto refused = [&](int error, const char* call) {
          return absl::ErrnoToStatus(
              error,
              absl::StrCat(call, " of ", room_bytes,
                           " bytes for a snapshot (mostly untouched; RLIMIT_AS "
                           "and overcommit count it)",
                           error == ENOMEM ? ShortageText(room_bytes) : ""));
        };
        // In the order that mapping_properties.h gives. The copies are bytes of
        // the memory, which neither a core dump nor a child of fork(2) may
        // have.
        const CallResult mapped = pool.kernel.Mmap(
            0, room_bytes, PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (!mapped.ok()) return refused(mapped.error, "mmap");
        copies = static_cast<uintptr_t>(mapped.value);
        const MappingResult set = SetMappingProperties(
            pool.kernel, copies, room_bytes,
            {.include_in_core_dump = pool.options.include_in_core_dump});
        if (!set.ok()) return refused(set.error, set.call);
        const CallResult opened =
            pool.kernel.Mprotect(copies, room_bytes, PROT_READ | PROT_WRITE);
        if (!opened.ok()) return refused(opened.error, "mprotect");
        differs = PageMap::Create(PagesRoundedUp(room_bytes));
        if (!differs.ok()) return differs.status();
      }
      if (absl::Status status = Freeze(pool, slot); !status.ok()) {
        return status;
      }
      size_bytes = slot.size_bytes.load(std::memory_order_seq_cst);
      absl::Status status;
      if (size_bytes <= room_bytes) {
        status = pool.supply->ForEachChangedPage(
            slot, PagesRoundedUp(size_bytes).value(), [&](uint64_t page) {
              const uint64_t offset = page * kPageBytes;
              const auto* const now =
                  reinterpret_cast<const std::byte*>(slot.base + offset);
              if (!DiffersFrom(now, InitialPage(slot, page))) return;
              std::memcpy(reinterpret_cast<std::byte*>(copies + offset), now,
                          kPageBytes);
              differs->Insert(PageIndex(page));
            });
      }
      status.Update(Thaw(pool, slot));
      if (!status.ok()) return status;
      if (size_bytes <= room_bytes) break;
      // Another thread has grown the memory meanwhile.
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
