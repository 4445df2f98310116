#include "firsttouch/service/slot_record.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

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

const std::byte* InitialPage(const SlotState& slot, uint64_t page) {
  static constexpr std::byte kZeroPage[kPageBytes] = {};
  return page < slot.image_pages ? slot.image->PageBytes(PageIndex(page))
                                 : kZeroPage;
}

void Abandon(SlotState& slot) {
  slot.remap_wanted = true;
  slot.pages.Forget(0, slot.pages.group_count() * kPagesPerGroup);
  slot.pages.ForgetHistory();
  slot.demotion.cold_pages.clear();
  slot.demotion.due = false;
  slot.any_untracked.store(false, std::memory_order_relaxed);
  slot.reads_to_teach.store(false, std::memory_order_relaxed);
  slot.filled.store(false, std::memory_order_relaxed);
  slot.image.reset();
  slot.image_id.store(SlotState::kAbandoned, std::memory_order_relaxed);
  slot.policy.reset();
  slot.read_then_written = nullptr;
  slot.demotion.regular_pages.clear();
  slot.demotion.regular_version = 0;
  slot.demotion.rent_ns = 0;
  slot.image_pages = 0;
  slot.image_stored = nullptr;
  slot.image_data = nullptr;
  slot.image_fetch = nullptr;
  slot.image_mapped = false;
  slot.image_copied = false;
  slot.has_clean_copies.store(false, std::memory_order_relaxed);
  slot.mapping_wanted.store(false, std::memory_order_relaxed);
  slot.prefill_wanted = false;
  slot.other_tracking_wanted = false;
  slot.tracking = Tracking::kSignal;
  slot.kernel_pages = 0;
  slot.async.all_marked = false;
  slot.async.rent_ns = 0;
  slot.kept_pages = 0;
  slot.idle.keeps_fewer = false;
  slot.growth.pages = 0;
  slot.growth.pages_before = 0;
  BeginSamplingWindow(slot);
  slot.window.last_noted_at = ~uint32_t{0};
}

absl::Status PagesCallFailed(const FaultPool& fault_pool, const SlotState& slot,
                             int error, const char* call, uint64_t first_page,
                             uint64_t pages, const PagesShortage& shortage) {
  return absl::ErrnoToStatus(
      error, absl::StrCat(call, " of ", pages * kPageBytes, " bytes at offset ",
                          first_page * kPageBytes, " of slot ",
                          SlotNumber(fault_pool, slot), " in pool \"",
                          fault_pool.name, "\"",
                          error == ENOMEM
                              ? absl::StrCat(ShortageText(shortage.data_bytes),
                                             shortage.mappings)
                              : ""));
}

void BeginSamplingWindow(SlotState& slot) {
  slot.window_cycles = 0;
  slot.demotion.rent_cycles = 0;
  slot.window_changed = 0;
  slot.window.regular = 0;
  slot.window.pairs = 0;
  slot.window.faulted = 0;
  slot.window.signals = 0;
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

}  // namespace firsttouch
