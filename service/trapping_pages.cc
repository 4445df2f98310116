// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/service/trapping_pages.h"

#include <errno.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>

#include "firsttouch/locator/lookup.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/filler.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Makes a page accessible that was made to trap by mprotect(2) and need not
// trap any more. Where the kernel refuses, the page goes on trapping until a
// touch in bounds, or the release, makes it accessible.
void UnpoisonPage(FaultPool& fault_pool, SlotState& slot,
                  uintptr_t page_address) {
  // A snapshot makes all pages writable again that it has made read-only.
  const bool frozen = slot.frozen.load(std::memory_order_seq_cst) != 0;
  if (frozen && LocateIn(fault_pool.entry, page_address).page_in_bounds) return;
  Count(slot.counters.kernel_calls);
  MakeAccessible(fault_pool, page_address);
}

// Notes a page that was made inaccessible, and makes the page accessible whose
// place it takes. ORDER, since several threads may do so at once: a page is
// noted after it was made inaccessible, and made accessible after it was taken
// out. So no page stays inaccessible without being noted.
void NoteInaccessible(FaultPool& fault_pool, SlotState& slot,
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
    UnpoisonPage(fault_pool, slot, replaced);
  }
}

void UnpoisonAllPages(FaultPool& fault_pool, SlotState& slot) {
  for (std::atomic<uintptr_t>& page : slot.poisoned_pages.page) {
    const uintptr_t address = page.exchange(0, std::memory_order_seq_cst);
    if (address != 0) UnpoisonPage(fault_pool, slot, address);
  }
}

}  // namespace

FaultResult MakeTrapping(FaultPool& fault_pool, uint32_t slot_number,
                         uintptr_t page_address, bool* placed) noexcept {
  SlotState& slot = fault_pool.slots[slot_number];
  Count(slot.counters.kernel_calls);
  *placed = false;
  if (fault_pool.poison) {
    FillPolicy policy;
    policy.wake_present = true;
    const FillResult fill = PoisonRange(*fault_pool.kernel, fault_pool.uffd,
                                        page_address, kPageBytes, 0, policy);
    if (!fill.ok()) {
      return {fill.error == ESRCH ? FaultResult::Kind::kGone
                                  : FaultResult::Kind::kFailed,
              fill.error, "UFFDIO_POISON"};
    }
    // Another thread's touch of the same page may have come first.
    if (fill.pages_filled() == 0) return {};
  } else {
    CallResult protect =
        fault_pool.kernel->Mprotect(page_address, kPageBytes, PROT_NONE);
    if (protect.error == ENOMEM) {
      // No mapping is left. Giving up those of the same memory's other pages
      // helps.
      UnpoisonAllPages(fault_pool, slot);
      protect =
          fault_pool.kernel->Mprotect(page_address, kPageBytes, PROT_NONE);
    }
    if (!protect.ok()) {
      return {FaultResult::Kind::kFailed, protect.error, "mprotect"};
    }
  }
  *placed = true;
  if (fault_pool.poison) {
    slot.has_poisoned_pages.store(true, std::memory_order_relaxed);
    const uint32_t index =
        slot.poisoned_pages.count.fetch_add(1, std::memory_order_relaxed);
    if (index < PoisonedPages::kCapacity) {
      slot.poisoned_pages.page[index].store(page_address,
                                            std::memory_order_release);
    }
    return {};
  }
  NoteInaccessible(fault_pool, slot, page_address);
  fault_pool.kernel->Wake(fault_pool.uffd, page_address, kPageBytes);
  return {};
}

void SupplyPoisonedPages(FaultPool& fault_pool, uint32_t slot_number,
                         uint64_t first_page, uint64_t end_page) noexcept {
  SlotState& slot = fault_pool.slots[slot_number];
  for (const std::atomic<uintptr_t>& noted : slot.poisoned_pages.page) {
    const uintptr_t address = noted.load(std::memory_order_seq_cst);
    if (address < slot.base) continue;
    const uint64_t page = (address - slot.base) / kPageBytes;
    if (page < first_page || page >= end_page) continue;
    if (fault_pool.poison) {
      // The page that is supplied takes the place of the poison.
      FillPrivate(fault_pool, slot_number, page, 1);
    } else {
      UnpoisonPage(fault_pool, slot, address);
    }
  }
}

bool MakeAccessible(FaultPool& fault_pool, uintptr_t page_address) noexcept {
  return fault_pool.kernel
      ->Mprotect(page_address, kPageBytes, PROT_READ | PROT_WRITE)
      .ok();
}

}  // namespace firsttouch
