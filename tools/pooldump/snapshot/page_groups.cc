#include "firsttouch/tools/pooldump/snapshot/page_groups.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/block.h"
#include "firsttouch/tools/pooldump/snapshot/block_bytes.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::pooldump {

PageState PageGroup::StateOf(uint64_t page) const {
  const auto bit = [page](uint64_t plane) { return (plane >> page & 1) != 0; };
  if (bit(dirty)) return bit(retained) ? PAGE_HOT : PAGE_DIRTY;
  if (!bit(present)) return PAGE_MISSING;
  return bit(untracked) ? PAGE_UNTRACKED : PAGE_CLEAN;
}

PageGroup PageGroups::At(std::span<const uint64_t> words,
                         uint64_t offset) const {
  const ControlPlanes& planes = header_.planes;
  const auto plane = [&](uint32_t at) { return words[(offset + at) / 8]; };
  return {.present = plane(planes.present),
          .untracked = plane(planes.untracked),
          .dirty = plane(planes.dirty),
          .retained = plane(planes.retained),
          .lately = plane(planes.recent) | plane(planes.previous)};
}

absl::StatusOr<PageGroup> PageGroups::Read(uint32_t slot,
                                           uint64_t group) const {
  const ControlPlanes& planes = header_.planes;
  std::vector<uint64_t> words(planes.group_bytes / 8);
  const uint64_t at = header_.pages.offset_bytes +
                      slot * header_.pages.record_bytes +
                      planes.group_offset_bytes + group * planes.group_bytes;
  if (absl::Status status = bytes_.Read(at, words); !status.ok()) {
    return status;
  }
  return At(words, 0);
}

absl::Status PageGroups::ForEachIn(uint64_t offset, uint64_t end,
                                   Visit visit) const {
  const ControlPlanes& planes = header_.planes;
  const uint64_t section = header_.pages.offset_bytes;
  const uint64_t per_slot = header_.pages.record_bytes;
  std::vector<uint64_t> words;
  while (offset < end) {
    absl::StatusOr<BlockBytes::Part> part = bytes_.NextData(offset, end);
    if (!part.ok()) return part.status();
    if (part->offset >= part->end) break;
    // Group by group: from the first that the part touches.
    uint64_t at = part->offset;
    while (at < part->end) {
      const uint64_t slot = (at - section) / per_slot;
      const uint64_t slot_at = section + slot * per_slot;
      const uint64_t groups_at = slot_at + planes.group_offset_bytes;
      const uint64_t first =
          at <= groups_at ? 0 : (at - groups_at) / planes.group_bytes;
      if (first >= planes.groups) {
        at = slot_at + per_slot;
        continue;
      }
      // As many as the part reaches into, but not too many at once.
      constexpr uint64_t kAtOnce = 4096;
      const uint64_t begin = groups_at + first * planes.group_bytes;
      if (begin >= part->end) {
        // The part ends in the summary.
        at = part->end;
        continue;
      }
      const uint64_t reach =
          (part->end - begin + planes.group_bytes - 1) / planes.group_bytes;
      const uint64_t count = std::min({reach, planes.groups - first, kAtOnce});
      words.resize(count * planes.group_bytes / 8);
      if (absl::Status status = bytes_.Read(begin, words); !status.ok()) {
        return status;
      }
      for (uint64_t i = 0; i < count; ++i) {
        const PageGroup pages = At(words, i * planes.group_bytes);
        if (pages.is_empty()) continue;
        visit(static_cast<uint32_t>(slot), first + i, pages);
      }
      at = first + count == planes.groups ? slot_at + per_slot
                                          : begin + count * planes.group_bytes;
    }
    // The last group may reach further than the part did.
    offset = std::max(at, part->end);
  }
  return absl::OkStatus();
}

absl::Status PageGroups::ForEachOf(uint32_t slot, Visit visit) const {
  const ControlSection& pages = header_.pages;
  const uint64_t at = pages.offset_bytes + slot * pages.record_bytes;
  return ForEachIn(at, at + pages.record_bytes, visit);
}

absl::Status PageGroups::ForEach(Visit visit) const {
  const ControlSection& pages = header_.pages;
  return ForEachIn(pages.offset_bytes,
                   pages.offset_bytes + pages.record_bytes * pages.records,
                   visit);
}

void SetRuns(const std::map<uint64_t, PageGroup>& groups, bool known,
             uint64_t most_pages, PageMap& map) {
  const uint64_t size_pages = PagesRoundedUp(map.slot().size_bytes()).value();
  const uint64_t image_pages =
      PagesRoundedUp(map.slot().image().size_bytes()).value();
  const uint64_t group_end =
      groups.empty() ? 0 : (groups.rbegin()->first + 1) * 64;
  const uint64_t end =
      std::min(std::max({size_pages, image_pages, group_end}), most_pages);

  PageRun run;
  const auto flush = [&] {
    if (run.pages() != 0) *map.add_runs() = run;
  };
  const auto add = [&](uint64_t page, uint64_t pages, PageState state) {
    while (pages > 0) {
      // Up to where the source changes.
      uint64_t stop = page + pages;
      PageSource source = PAGE_OUTSIDE;
      if (page < size_pages) {
        stop = std::min(stop, size_pages);
        source = PAGE_OF_ZEROES;
        if (page < image_pages) {
          stop = std::min(stop, image_pages);
          source = PAGE_OF_IMAGE;
        }
      }
      if (run.pages() != 0 && run.state() == state && run.source() == source) {
        run.set_pages(run.pages() + stop - page);
      } else {
        flush();
        run.set_first_page(page);
        run.set_pages(stop - page);
        run.set_state(state);
        run.set_source(source);
        run.set_resident(-1);
      }
      pages -= stop - page;
      page = stop;
    }
  };
  // Of the first pages only what was touched before is known.
  const uint64_t kernel_pages = map.slot().kernel_pages();
  const auto add_missing = [&](uint64_t page, uint64_t pages) {
    const uint64_t of_kernel =
        page < kernel_pages ? std::min(pages, kernel_pages - page) : 0;
    const uint64_t unknown = known ? of_kernel : pages;
    add(page, unknown, PAGE_STATE_UNSPECIFIED);
    add(page + unknown, pages - unknown, PAGE_MISSING);
  };
  uint64_t page = 0;
  for (const auto& [index, group] : groups) {
    if (page < index * 64) add_missing(page, index * 64 - page);
    const uint64_t stop = std::min((index + 1) * 64, end);
    for (page = index * 64; page < stop; ++page) {
      const PageState state = group.StateOf(page % 64);
      if (state == PAGE_MISSING) {
        add_missing(page, 1);
      } else {
        add(page, 1, state);
      }
    }
  }
  if (page < end) add_missing(page, end - page);
  flush();
}

}  // namespace firsttouch::pooldump
