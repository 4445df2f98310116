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
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/filler.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/restore_groups.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/this_thread.h"
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

// An image of at most this many pages is copied in by its first touch, and not
// mapped, where the slot has had another: the copy takes less than the calls.
constexpr uint64_t kSmallImagePages = 16;

// Pages of a slot whose next guests are not known to write them cost a restore
// at each release: more than this many are dropped.
constexpr uint64_t kMostForeignPages = 16;

// Whether the slot's resident pages may be given the contents of another image,
// of which `touched_pages` pages or fewer differ, instead of being dropped: all
// of them are known, and can be written.
bool MayRewrite(const SlotState& slot, const Image* image,
                uint64_t touched_pages) {
  if (slot.tracking != Tracking::kSignal ||
      slot.has_clean_copies.load(std::memory_order_relaxed) ||
      slot.any_untracked.load(std::memory_order_relaxed) ||
      // Its pages may not be there yet.
      (image != nullptr && image->has_source())) {
    return false;
  }
  const WorkingSet::Words written =
      image != nullptr ? image->working_set().written() : WorkingSet::Words();
  uint64_t foreign = 0;
  bool writable = true;
  slot.pages.ForEachGroup([&](uint64_t index, const PageGroup& group) {
    const uint64_t mask = WordMask(index, 0, touched_pages);
    const uint64_t dirty = group.dirty.load(std::memory_order_relaxed);
    const uint64_t present = group.present.load(std::memory_order_relaxed);
    const uint64_t untracked = group.untracked.load(std::memory_order_relaxed);
    writable &= (((present ^ dirty) | untracked) & mask) == 0;
    foreign += std::popcount(dirty & mask &
                             ~(index < written.size() ? written[index] : 0));
  });
  return writable && foreign <= kMostForeignPages;
}

// Gives the resident pages below `touched_pages` the contents of the slot's
// image.
absl::Status RewritePages(const UffdContext& context, SlotState& slot,
                          uint64_t touched_pages) {
  // A page that the kernel or the host has taken away is supplied again by the
  // touch, as at a release.
  slot.last_fault_page.store(~uint64_t{0}, std::memory_order_relaxed);
  slot.restorer.store(ThisThread(), std::memory_order_relaxed);
  slot.size_bytes.store(touched_pages * kPageBytes, std::memory_order_seq_cst);
  Restored restored;
  slot.pages.ForEachGroup([&](uint64_t index, const PageGroup& group) {
    RestoreGroup(slot, index,
                 group.dirty.load(std::memory_order_relaxed) &
                     WordMask(index, 0, touched_pages),
                 restored);
  });
  // By a handler thread, which may still be at it.
  WaitForFills(slot);
  slot.size_bytes.store(0, std::memory_order_seq_cst);
  CountOwned(slot.counters.pages_restored, restored.pages);
  const uint8_t exceptions = slot.exceptions.fetch_and(
      static_cast<uint8_t>(~kSlotLost), std::memory_order_relaxed);
  if ((exceptions & kSlotLost) != 0) {
    // What is mapped in place of the page is not the pool's.
    slot.place_lost = true;
    return absl::UnavailableError(absl::StrCat(
        "a page at offset ",
        slot.lost_page.load(std::memory_order_relaxed) - slot.base, " of slot ",
        SlotNumber(context.fault_pool, slot), " in pool \"",
        context.fault_pool.name,
        "\" was unmapped or made inaccessible by somebody else while the slot "
        "was idle, or cannot be supplied: the slot is not used again; acquire "
        "another one, and leave the mappings of a pool alone"));
  }
  // The image's file was cut short.
  if (restored.pages != 0 && (exceptions & kSlotDropped) != 0) {
    return DropRange(context, slot, 0, touched_pages);
  }
  return absl::OkStatus();
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

// How a slot gets the pages of an image that it is bound to.
enum class Showing {
  // The first touch of one copies them all.
  kSmallCopy,
  // They are copied in.
  kCopies,
  // They are copied in until the next lease, which maps the image, so that
  // slots share the pages that are only read.
  kCopiesFirst,
  kMapping,
  // The image is mapped, and the kernel notes what the lease touches.
  kProfiledMapping,
};

Showing ShowingOf(const UffdContext& context, const SlotState& slot,
                  const Image& image, const TrackingPolicy& policy,
                  bool map_now) {
  const uint64_t pages = image.pages().value();
  if (context.fault_pool.backing != Backing::kShared || pages == 0) {
    return Showing::kCopies;
  }
  if (policy.tracking() != Tracking::kSignal) return Showing::kMapping;
  if (!map_now && pages <= kSmallImagePages && slot.image != nullptr) {
    return Showing::kSmallCopy;
  }
  const bool known = image.working_set().known();
  if (!known && context.profile_unknown_images && KernelMayServe(image)) {
    return Showing::kProfiledMapping;
  }
  if (map_now) return Showing::kMapping;
  if (FewPagesWillDo(image)) return Showing::kCopies;
  // Copying a page into the memfd, for other slots, takes as long as copying it
  // into this one.
  return known && !image.has_memfd() ? Showing::kCopiesFirst
                                     : Showing::kMapping;
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
  auto showing = Showing::kCopies;
  if (image != nullptr) {
    policy = context.policies->Find(image);
    showing = ShowingOf(context, slot, *image, *policy, map_now);
  }
  const bool profiling = showing == Showing::kProfiledMapping;
  const bool map = profiling || showing == Showing::kMapping;
  int memfd = -1;
  if (map) {
    absl::StatusOr<int> on_demand = image->OnDemandMemfd();
    // Copies have done so far.
    if (!on_demand.ok() && map_now) return absl::OkStatus();
    if (!on_demand.ok()) return on_demand.status();
    memfd = *on_demand;
  }
  slot.remap_wanted = true;
  absl::Status status = LeaveKernelTracking(context, slot, 0);
  if (!status.ok()) return status;
  const bool rewrite = !map && !slot.image_mapped &&
                       MayRewrite(slot, image.get(), touched_pages);
  if (map) {
    status = MapAnew(context, slot, 0, new_pages, memfd, profiling);
    if (status.ok() && old_pages > new_pages) {
      status = MapAnew(context, slot, new_pages, old_pages - new_pages, -1);
    }
  } else if (slot.image_mapped) {
    status = MapAnew(context, slot, 0, touched_pages, -1);
  } else if (touched_pages > 0 && !rewrite) {
    // Drops more than what the planes know of: a copy that failed or was left
    // half-way may have placed pages of the old image that were not noted.
    status = DropRange(context, slot, 0, touched_pages);
  }
  if (!status.ok()) return status;
  slot.image_mapped = map;
  slot.image_copied = showing == Showing::kSmallCopy;
  slot.mapping_wanted.store(showing == Showing::kCopiesFirst,
                            std::memory_order_relaxed);
  if (!rewrite) {
    slot.pages.Forget(0, touched_pages);
    slot.has_clean_copies.store(false, std::memory_order_relaxed);
  }
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
  slot.restore_ns = 0;
  slot.prefill_wanted = image != nullptr;
  BeginSamplingWindow(slot);
  slot.window.last_noted_at = ~uint32_t{0};
  slot.growth.pages = 0;
  slot.growth.pages_before = 0;
  SetImage(slot, image);
  return rewrite ? RewritePages(context, slot, touched_pages)
                 : absl::OkStatus();
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
      const uint64_t index = page / kPagesPerGroup;
      PageGroup& group = slot.pages.group(index);
      const uint64_t before = group.dirty.load(std::memory_order_relaxed);
      FillPrivate(context.fault_pool, number, page, pages);
      const uint64_t filled = WordMask(index, page, page + pages) &
                              group.dirty.load(std::memory_order_relaxed);
      // Notes the pages as if an earlier guest had changed them, so that they
      // are not dropped before guests have had time to change them.
      group.retained.fetch_or(filled, std::memory_order_relaxed);
      group.previous.fetch_or(filled, std::memory_order_relaxed);
      CountOwned(slot.counters.pages_prefilled,
                 std::popcount(filled & ~before));
    });
  }
  // Pages that are only read are mapped clean and have to stay within bounds:
  // mapping more would keep the guest waiting. Where the image is not mapped
  // they are private, too.
  uint64_t left = kMostMappedPages;
  if (!slot.image_mapped) {
    left = std::min(left, most_pages - std::min(most_pages, pages_to_fill));
  }
  if (slot.image_copied) return;
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
