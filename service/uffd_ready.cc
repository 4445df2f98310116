#include "firsttouch/service/uffd_ready.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/accessible.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/filler.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/trapping_pages.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// The error of a fill that failed.
absl::Status FillFailed(const UffdContext& context, const SlotState& slot,
                        uint64_t page, const FaultResult& result) {
  return absl::ErrnoToStatus(
      result.error,
      absl::StrCat(result.call, " for the page at offset ", page * kPageBytes,
                   " of slot ", SlotNumber(context.fault_pool, slot),
                   " in pool \"", context.fault_pool.name, "\""));
}

// Resolves the fault that a thread would take on the page.
absl::Status SupplyPage(const UffdContext& context, SlotState& slot,
                        uint64_t page, Access access, bool protection) {
  const FaultResult result = ResolveFault(
      context.fault_pool, {.slot = SlotNumber(context.fault_pool, slot),
                           .offset_bytes = page * kPageBytes,
                           .access = access,
                           .protection = protection});
  if (result.kind != FaultResult::Kind::kFailed &&
      result.kind != FaultResult::Kind::kNoContents) {
    return absl::OkStatus();
  }
  return FillFailed(context, slot, page, result);
}

// Asks the kernel whether pages that were supplied can be touched, and supplies
// those again that cannot.
absl::Status EnsureAccessible(const UffdContext& context, SlotState& slot,
                              uint64_t first_page, uint64_t end_page,
                              Access access) {
  if (first_page >= end_page) return absl::OkStatus();
  // What we know of a page is what was done last; since then the kernel may
  // have unmapped it (reclaim, migration, a collapse into a huge page). One
  // call for all pages, which also makes each that is to be written private;
  // EFAULT where one would fault, EINVAL before 5.14 and while a snapshot keeps
  // everybody from writing.
  Count(slot.counters.kernel_calls);
  if ((*context.fault_pool.kernel)
          .Madvise(
              slot.base + first_page * kPageBytes,
              (end_page - first_page) * kPageBytes,
              access == Access::kWrite ? kMadvPopulateWrite : kMadvPopulateRead)
          .ok()) {
    return absl::OkStatus();
  }
  // A page that is taken away again and again is not waited for.
  constexpr int kTries = 8;
  for (uint64_t page = first_page; page < end_page; ++page) {
    const uintptr_t address = slot.base + page * kPageBytes;
    int tries = 0;
    while (!IsAccessible(address, access)) {
      if (access == Access::kWrite) WaitUntilThawed(slot);
      if (++tries > kTries) {
        return absl::UnavailableError(absl::StrCat(
            "the page at offset ", page * kPageBytes, " of slot ",
            SlotNumber(context.fault_pool, slot), " in pool \"",
            context.fault_pool.name, "\" is supplied and still cannot be ",
            access == Access::kWrite ? "written" : "read",
            ": somebody else takes it away or has made it inaccessible"));
      }
      // Without POISON a page may have been made to trap before it came into
      // the bounds.
      if (context.fault_pool.resolve == Resolve::kHandlerThread &&
          !context.fault_pool.poison) {
        MakeAccessible(context.fault_pool, address);
      }
      if (absl::Status status =
              SupplyPage(context, slot, page, access, /*protection=*/false);
          !status.ok()) {
        return status;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool IsThere(const UffdContext& context, SlotState& slot, uint64_t page,
             absl::Status* failure) {
  // No thread has written to a page that its source has not given yet, although
  // one may have tried to.
  if (page < slot.image_pages && !slot.image->IsFetched(PageIndex(page))) {
    return false;
  }
  const uint64_t present =
      slot.pages.GroupOf(page).present.load(std::memory_order_acquire);
  if ((present >> (page % kPagesPerGroup) & 1) != 0) return true;
  // A fill of the page is under way, or has failed: reading the page might end
  // the process.
  const FaultResult result = ResolveFault(
      context.fault_pool, {.slot = SlotNumber(context.fault_pool, slot),
                           .offset_bytes = page * kPageBytes,
                           .access = Access::kRead});
  if (result.kind == FaultResult::Kind::kResolved) return true;
  failure->Update(FillFailed(context, slot, page, result));
  return false;
}

absl::Status MakePagesReady(const UffdContext& context, SlotState& slot,
                            uint64_t first_page, uint64_t end_page,
                            Access access) {
  // In pages below kernel_pages the kernel's own accesses resolve, too.
  const uint64_t first = std::max(first_page, slot.kernel_pages);
  for (uint64_t page = first; page < end_page; ++page) {
    const PageState state = slot.pages.StateOf(page);
    const bool present =
        (slot.pages.GroupOf(page).present.load(std::memory_order_relaxed) >>
             (page % kPagesPerGroup) &
         1) != 0;
    // Untracked pages are writable for the kernel, too.
    if (present && (access == Access::kRead || state != PageState::kClean)) {
      continue;
    }
    if (absl::Status status =
            SupplyPage(context, slot, page, access,
                       /*protection=*/state == PageState::kClean);
        !status.ok()) {
      return status;
    }
  }
  return EnsureAccessible(context, slot, first, end_page, access);
}

}  // namespace firsttouch
