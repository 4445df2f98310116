// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/service/fill_ranges.h"

#include <algorithm>
#include <bit>

#include "firsttouch/init/image_fetch.h"
#include "firsttouch/service/page_states.h"

namespace firsttouch {
namespace {

// A guest that fills its heap upwards gets up to this many pages per fault.
constexpr uint64_t kMaxZeroRunPages = 16;

// A guest that reads an image from one end to the other gets up to this many
// pages mapped per fault: most of a fault's cost is the signal.
constexpr uint64_t kMaxReadRunPages = 256;
// A guest that writes an image from one end to the other gets up to this many
// private copies per fault.
constexpr uint64_t kMaxWriteRunPages = 16;

constexpr uint64_t BitOf(uint64_t page) {
  return uint64_t{1} << (page % kPagesPerGroup);
}

}  // namespace

bool FillRanges::HasSource() const {
  return slot_.image_fetch != nullptr && slot_.image_fetch->requests != nullptr;
}

uint64_t FillRanges::Missing(uint64_t group) const {
  const PageGroup& planes = slot_.pages.group(group);
  return ~planes.present.load(std::memory_order_relaxed) &
         ~planes.dirty.load(std::memory_order_relaxed);
}

PageRange FillRanges::FaultAround(uint64_t page) const {
  const uint64_t around = fault_pool_.fault_around_pages;
  uint64_t first = page / around * around;
  uint64_t end = std::min(first + around, size_pages_);
  if (HasSource()) {
    const uint64_t chunk = slot_.image_fetch->chunk_pages;
    const uint64_t chunk_first = page / chunk * chunk;
    first = std::max(first, chunk_first);
    end = std::min(end, chunk_first + chunk);
  }
  return {first, end - first};
}

PageRange FillRanges::AheadOfReader(uint64_t page) const {
  const PageRange range = FaultAround(page);
  if (HasSource()) return range;
  FillRun& last = slot_.read_run;
  uint64_t pages = fault_pool_.fault_around_pages;
  if (last.end.load(std::memory_order_relaxed) == range.first) {
    const uint64_t doubled = 2 * last.pages.load(std::memory_order_relaxed);
    pages = std::max(pages, std::min(doubled, kMaxReadRunPages));
  }
  last.end.store(range.first + pages, std::memory_order_relaxed);
  last.pages.store(pages, std::memory_order_relaxed);
  return {range.first, std::min(pages, size_pages_ - range.first)};
}

PageRange FillRanges::ImageRunAround(uint64_t page) const {
  return RunAround(page, StoredPages(slot_, page / kPagesPerGroup));
}

PageRange FillRanges::ZeroRunAround(uint64_t page) const {
  return RunAround(
      page, SameMapping(page) & ~StoredPages(slot_, page / kPagesPerGroup));
}

PageRange FillRanges::ImageRunFrom(uint64_t page) const {
  return RunFrom(page, slot_.write_run,
                 StoredPages(slot_, page / kPagesPerGroup), kMaxWriteRunPages);
}

PageRange FillRanges::ZeroRunFrom(uint64_t page) const {
  return RunFrom(page, slot_.zero_run,
                 ~StoredPages(slot_, page / kPagesPerGroup), kMaxZeroRunPages);
}

uint64_t FillRanges::SameMapping(uint64_t page) const {
  if (!slot_.image_mapped) return ~uint64_t{0};
  const uint64_t group = page / kPagesPerGroup;
  const uint64_t border = std::max(slot_.image_pages, slot_.kernel_pages);
  return page < border ? WordMask(group, slot_.kernel_pages, slot_.image_pages)
                       : ~WordMask(group, 0, border);
}

PageRange FillRanges::RunAround(uint64_t page, uint64_t eligible) const {
  const uint64_t group = page / kPagesPerGroup;
  const PageRange around = FaultAround(page);
  const uint64_t missing = (WordMask(group, around.first, around.end()) &
                            eligible & Missing(group)) |
                           BitOf(page);
  const uint64_t bit = page % kPagesPerGroup;
  const uint64_t above = std::countr_one(missing >> bit);
  const uint64_t below = bit == 0 ? 0 : std::countl_one(missing << (64 - bit));
  return {page - below, below + above};
}

PageRange FillRanges::RunFrom(uint64_t page, FillRun& last, uint64_t eligible,
                              uint64_t most) const {
  uint64_t pages = 1;
  if (last.end.load(std::memory_order_relaxed) == page) {
    const uint64_t group = page / kPagesPerGroup;
    const uint64_t missing =
        (eligible & SameMapping(page) & Missing(group)) | BitOf(page);
    const uint64_t free = std::countr_one(missing >> (page % kPagesPerGroup));
    // At first the last run is none, and ends at page 0.
    const uint64_t doubled =
        std::max<uint64_t>(2 * last.pages.load(std::memory_order_relaxed), 1);
    pages = std::min({doubled, most, fault_pool_.fault_around_pages,
                      size_pages_ - page, free});
  }
  last.end.store(page + pages, std::memory_order_relaxed);
  last.pages.store(pages, std::memory_order_relaxed);
  return {page, pages};
}

}  // namespace firsttouch
