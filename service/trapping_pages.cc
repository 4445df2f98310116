// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/service/trapping_pages.h"

#include <errno.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>

#include "firsttouch/locator/lookup.h"
#include "firsttouch/service/fault_core.h"
#include "firsttouch/service/filler.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Makes a page accessible that was made to trap by mprotect(2) and need not
// any more. Where the kernel refuses, the page goes on trapping until a touch
// in bounds, or the release, makes it accessible.
void UnpoisonPage(FaultCore& core, SlotState& slot, uintptr_t page_address) {
  // All pages that a snapshot has made read-only it makes writable by itself.
  const bool frozen = slot.frozen.load(std::memory_order_seq_cst) != 0;
  if (frozen && LocateIn(core.entry, page_address).page_in_bounds) return;
  Count(slot.counters.kernel_calls);
  MakeAccessible(core, page_address);
}

// Notes a page that was made inaccessible, and opens the one whose place it
// takes. Threads do so at once: a page that was made inaccessible is noted
// after that, or was, and a page that is taken out is opened after that, so
// that no page stays inaccessible without being noted.
void NoteInaccessible(FaultCore& core, SlotState& slot,
                      uintptr_t page_address) {
  for (const std::atomic<uintptr_t>& page : slot.poisoned_pages.page) {
    if (page.load(std::memory_order_seq_cst) == page_address) return;
  }
  slot.has_poisoned_pages.store(true, std::memory_order_seq_cst);
  const uint32_t index =
      slot.poisoned_pages.count.fetch_add(1, std::memory_order_seq_cst);
  const uintptr_t replaced =
      slot.poisoned_pages.page[index % PoisonedPages::kCapacity].exchange(
          page_address, std::memory_order_seq_cst);
  if (replaced != 0 && replaced != page_address) {
    UnpoisonPage(core, slot, replaced);
  }
}

void UnpoisonAllPages(FaultCore& core, SlotState& slot) {
  for (std::atomic<uintptr_t>& page : slot.poisoned_pages.page) {
    const uintptr_t address = page.exchange(0, std::memory_order_seq_cst);
    if (address != 0) UnpoisonPage(core, slot, address);
  }
}

}  // namespace

FaultResult MakeTrapping(FaultCore& core, uint32_t slot_number,
                         uintptr_t page_address, bool* placed) noexcept {
  SlotState& slot = core.slots[slot_number];
  Count(slot.counters.kernel_calls);
  *placed = false;
  if (core.poison) {
    FillPolicy policy;
    policy.wake_present = true;
    const FillResult fill = PoisonRange(*core.kernel, core.uffd, page_address,
                                        kPageBytes, 0, policy);
    if (!fill.ok()) {
      return {fill.error == ESRCH ? FaultResult::Kind::kGone
                                  : FaultResult::Kind::kFailed,
              fill.error, "UFFDIO_POISON"};
    }
    // Another thread's touch of the same page may have been first.
    if (fill.pages_filled() == 0) return {};
  } else {
    CallResult protect =
        core.kernel->Mprotect(page_address, kPageBytes, PROT_NONE);
    if (protect.error == ENOMEM) {
      // No mapping is left. Those of the same memory's other pages will do.
      UnpoisonAllPages(core, slot);
      protect = core.kernel->Mprotect(page_address, kPageBytes, PROT_NONE);
    }
    if (!protect.ok()) {
      return {FaultResult::Kind::kFailed, protect.error, "mprotect"};
    }
  }
  *placed = true;
  if (core.poison) {
    slot.has_poisoned_pages.store(true, std::memory_order_relaxed);
    const uint32_t index =
        slot.poisoned_pages.count.fetch_add(1, std::memory_order_relaxed);
    if (index < PoisonedPages::kCapacity) {
      slot.poisoned_pages.page[index].store(page_address,
                                            std::memory_order_release);
    }
    return {};
  }
  NoteInaccessible(core, slot, page_address);
  core.kernel->Wake(core.uffd, page_address, kPageBytes);
  return {};
}

void SupplyPoisonedPages(FaultCore& core, uint32_t slot_number,
                         uint64_t first_page, uint64_t end_page) noexcept {
  SlotState& slot = core.slots[slot_number];
  for (const std::atomic<uintptr_t>& noted : slot.poisoned_pages.page) {
    const uintptr_t address = noted.load(std::memory_order_seq_cst);
    if (address < slot.base) continue;
    const uint64_t page = (address - slot.base) / kPageBytes;
    if (page < first_page || page >= end_page) continue;
    if (core.poison) {
      // What is supplied takes the place of the poison.
      FillPrivate(core, slot_number, page, 1);
    } else {
      UnpoisonPage(core, slot, address);
    }
  }
}

bool MakeAccessible(FaultCore& core, uintptr_t page_address) noexcept {
  return core.kernel->Mprotect(page_address, kPageBytes, PROT_READ | PROT_WRITE)
      .ok();
}

}  // namespace firsttouch
