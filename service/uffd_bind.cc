#include "firsttouch/service/uffd_bind.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/filler.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/service/uffd_drop.h"
#include "firsttouch/service/uffd_mapping.h"
#include "firsttouch/service/uffd_tracking.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// The most pages of the read set that are mapped before a lease: this takes
// some milliseconds where they have to be read from a file first. The rest is
// mapped at first touch, one fault-around size at a time.
constexpr uint64_t kMostMappedPages = 4096;

// With the backing kShared: whether a few copies will do, so that mapping the
// image into a slot that has none does not pay. Mapping makes six calls, which
// take as long as about four copies; the pages that are written are copied in
// any case.
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

// Leaves pages out that are better filled as private ones at their first touch.
void LeaveOutReadThenWritten(SlotState& slot, WorkingSet::Words& words) {
  if (!slot.image_mapped || slot.policy == nullptr) return;
  slot.read_then_written = slot.policy->read_then_written();
  if (slot.read_then_written == nullptr) return;
  for (uint64_t index = 0;
       index < std::min<uint64_t>(words.size(), WordsFor(slot.image_pages));
       ++index) {
    words[index] &=
        ~slot.read_then_written[index].load(std::memory_order_relaxed);
  }
}

// Whether an image that the slot is bound to, without its mapping, is to be
// mapped now.
bool IsToBeMapped(const UffdContext& context, const SlotState& slot) {
  return context.fault_pool.backing == Backing::kShared &&
         slot.policy != nullptr && !slot.image_mapped &&
         (slot.mapping_wanted.load(std::memory_order_relaxed) ||
          slot.policy->tracking() != Tracking::kSignal);
}

}  // namespace

absl::Status BindImage(const UffdContext& context, SlotState& slot,
                       const ImageRef& image) {
  const bool map_now = slot.image == image && IsToBeMapped(context, slot);
  if (slot.image == image && !map_now) return absl::OkStatus();
  const uint64_t old_pages = slot.image_pages;
  const uint64_t new_pages = image == nullptr ? 0 : image->pages().value();
  const uint64_t touched_pages = std::max(old_pages, new_pages);
  std::shared_ptr<TrackingPolicy> policy;
  if (image != nullptr) policy = context.policies->Find(image);
  const bool profiling = new_pages > 0 && context.profile_unknown_images &&
                         !image->working_set().known() &&
                         KernelMayServe(*image) &&
                         policy->tracking() == Tracking::kSignal;
  const bool map =
      context.fault_pool.backing == Backing::kShared && new_pages > 0 &&
      (map_now || slot.image_mapped || profiling ||
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
    status = MapAnew(context, slot, 0, new_pages, memfd, profiling);
    if (status.ok() && old_pages > new_pages) {
      status = MapAnew(context, slot, new_pages, old_pages - new_pages, -1);
    }
  } else if (touched_pages > 0) {
    // Drops more than what the planes know of: a copy that failed or was left
    // half-way may have placed pages of the old image that were not noted.
    Count(slot.counters.kernel_calls);
    const CallResult dropped = DropMappedPages(
        *context.fault_pool.kernel, slot.base, touched_pages * kPageBytes);
    if (!dropped.ok()) {
      status = CallFailed(context, slot, dropped.error, "MADV_DONTNEED", 0,
                          touched_pages);
    }
  }
  if (!status.ok()) return status;
  slot.image_mapped = map;
  slot.mapping_wanted.store(false, std::memory_order_relaxed);
  slot.pages.Forget(0, touched_pages);
  slot.pages.ForgetHistory();
  slot.demotion.cold_pages.clear();
  if (profiling) {
    slot.tracking = Tracking::kProfiling;
    slot.kernel_pages = new_pages;
    CountOwned(slot.counters.untracked_leases);
  }
  slot.policy = std::move(policy);
  slot.read_then_written = nullptr;
  slot.demotion.regular_pages.clear();
  slot.demotion.regular_version = 0;
  slot.demotion.rent_ns = 0;
  slot.async.rent_ns = 0;
  slot.prefill_wanted = image != nullptr;
  BeginSamplingWindow(slot);
  slot.window.last_noted_at = ~uint32_t{0};
  slot.growth.pages = 0;
  slot.growth.pages_before = 0;
  SetImage(slot, image);
  return absl::OkStatus();
}

void FillWorkingSet(const UffdContext& context, SlotState& slot,
                    uint64_t size_pages, uint64_t most_pages) {
  if (!slot.prefill_wanted) return;
  slot.prefill_wanted = false;
  if (slot.tracking != Tracking::kSignal) return;
  const uint32_t number = SlotNumber(context.fault_pool, slot);
  const WorkingSet& set = slot.image->working_set();
  const WorkingSet::Words written = set.written();
  const auto for_each_run = [&](const WorkingSet::Words& words, auto fill) {
    for (uint64_t index = 0; index < words.size(); ++index) {
      ForEachRun(words[index] & WordMask(index, 0, size_pages),
                 [&](uint64_t bit, uint64_t pages) {
                   fill(index * kPagesPerGroup + bit, pages);
                 });
    }
  };
  if (slot.image->has_source()) {
    // Nothing waits for this; what is needed first goes first.
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
      FillPrivate(context.fault_pool, number, page, pages);
      const uint64_t index = page / kPagesPerGroup;
      PageGroup& group = slot.pages.group(index);
      const uint64_t filled = WordMask(index, page, page + pages) &
                              group.dirty.load(std::memory_order_relaxed);
      // Notes the pages as if an earlier guest had changed them, so that they
      // are not dropped before guests have had time to change them.
      group.retained.fetch_or(filled, std::memory_order_relaxed);
      group.previous.fetch_or(filled, std::memory_order_relaxed);
      CountOwned(slot.counters.pages_prefilled, std::popcount(filled));
    });
  }
  // Pages that are only read are mapped clean and have to stay within bounds:
  // mapping more would keep the guest waiting. Where the image is not mapped
  // they are private, too.
  uint64_t left = kMostMappedPages;
  if (!slot.image_mapped) {
    left = std::min(left, most_pages - std::min(most_pages, pages_to_fill));
  }
  WorkingSet::Words to_map = set.read();
  LeaveOutReadThenWritten(slot, to_map);
  for_each_run(to_map, [&](uint64_t page, uint64_t pages) {
    pages = std::min(pages, left);
    left -= pages;
    MapClean(context.fault_pool, number, page, pages);
  });
}

absl::Status MapAllAnew(const UffdContext& context, SlotState& slot) {
  const uint64_t pages =
      PagesRoundedUp(context.fault_pool.entry.max_memory_bytes).value();
  if (context.fault_pool.backing == Backing::kCopied) {
    // Nothing was ever mapped there but the pool itself, whose registration
    // stays. A snapshot may have left pages read-only.
    const CallResult done = context.fault_pool.kernel->Mprotect(
        slot.base, pages * kPageBytes, PROT_READ | PROT_WRITE);
    Count(slot.counters.kernel_calls);
    if (!done.ok()) {
      return CallFailed(context, slot, done.error, "mprotect", 0, pages);
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
    NameReservedRange(slot.base, pages * kPageBytes, context.fault_pool.name);
  }
  slot.image_id.store(0, std::memory_order_relaxed);
  return absl::OkStatus();
}

}  // namespace firsttouch
