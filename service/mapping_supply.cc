#include "firsttouch/service/mapping_supply.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/service/in_bounds_faults.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/restore_page.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr int kAccessible = PROT_READ | PROT_WRITE;

// Regions per call of the kernel: enough for a memory whose retained pages are
// all apart.
constexpr size_t kRegions = 512;

// The most pages of a working set that are populated, as with userfaultfd.
constexpr uint64_t kMostPopulatedPages = 4096;

void AddRun(WorkingSet::Words& words, uint64_t first_page, uint64_t pages) {
  ForEachWordOf(first_page, first_page + pages,
                [&](uint64_t index, uint64_t bits) {
                  if (words.size() <= index) words.resize(index + 1);
                  words[index] |= bits;
                });
}

// NOLINTNEXTLINE(performance-no-int-to-ptr): addresses of slots are numbers.
std::byte* PointerTo(const SlotState& slot, uint64_t page) {
  return reinterpret_cast<std::byte*>(AddressOf(slot, page));
}

absl::Status Failed(const FaultPool& fault_pool, const SlotState& slot,
                    int error, const char* call, uint64_t first_page,
                    uint64_t pages) {
  return PagesCallFailed(
      fault_pool, slot, error, call, first_page, pages,
      {.data_bytes = pages * kPageBytes,
       .mappings = " (without userfaultfd a slot needs three mappings)"});
}

// Copies the initial bytes over pages that are present. Never reads a hole of
// the image, since the kernel would fill it. Returns false where the image's
// file was cut short.
bool RestoreBytes(const SlotState& slot, uint64_t first_page, uint64_t pages) {
  const uint64_t end = first_page + pages;
  for (uint64_t page = first_page; page < end;) {
    const bool stored = IsStored(slot, page);
    uint64_t run_end = page + 1;
    while (run_end < end && IsStored(slot, run_end) == stored) ++run_end;
    const size_t bytes = (run_end - page) * kPageBytes;
    if (stored) {
      if (!CopyGuarded(PointerTo(slot, page), StoredPage(slot, page), bytes)) {
        return false;
      }
    } else {
      memset(PointerTo(slot, page), 0, bytes);
    }
    page = run_end;
  }
  return true;
}

}  // namespace

MappingSupply::MappingSupply(const SuppliedPool& pool, Supply supply,
                             std::string reason)
    : fault_pool_(pool.fault_pool),
      kernel_(pool.kernel),
      options_(pool.options),
      layout_(pool.layout),
      supply_(supply),
      reason_(std::move(reason)),
      slots_(std::make_unique<SlotMappings[]>(pool.layout.slots())) {}

absl::StatusOr<std::unique_ptr<MappingSupply>> MappingSupply::Open(
    const SuppliedPool& pool, Supply supply, std::string reason,
    bool may_choose) {
  std::unique_ptr<MappingSupply> mappings(
      new MappingSupply(pool, supply, std::move(reason)));
  if (absl::Status status = mappings->OpenScan(may_choose); !status.ok()) {
    return status;
  }
  const absl::Status limits = CheckLimits(
      pool.layout, {.fixed_maps = 5, .maps_per_slot = 4}, ReadLimitFacts());
  if (limits.ok()) return mappings;
  return absl::Status(
      limits.code(),
      absl::StrCat(limits.message(), " [supply ", SupplyName(mappings->supply_),
                   ": ", mappings->reason_, "]"));
}

absl::Status MappingSupply::OpenScan(bool may_choose) {
  absl::StatusOr<Pagemap> pagemap = Pagemap::Open(kernel_);
  absl::Status status = pagemap.status();
  if (status.ok()) status = CheckPrivatePagesAreFound(kernel_, pagemap->fd());
  if (status.ok()) {
    pagemap_.emplace(*std::move(pagemap));
    return absl::OkStatus();
  }
  // A full descriptor table is an error: it must not make the pool slow for
  // good.
  if (absl::IsResourceExhausted(status)) return status;
  if (supply_ == Supply::kMappingsDrop) return absl::OkStatus();
  if (may_choose) {
    supply_ = Supply::kMappingsDrop;
    absl::StrAppend(&reason_,
                    "\nmappings-scan is not possible: ", status.message());
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("supply mappings-scan, ", reason_,
                   ", needs PAGEMAP_SCAN (Linux 6.7): ", status.message(),
                   "; take scan = false (mappings-drop), or leave scan unset"));
}

absl::Status MappingSupply::Attach(const Reservation&) {
  // A slot that is inaccessible traps: nothing needs to be done before a
  // Bind().
  fault_pool_.backing = Backing::kShared;
  fault_pool_.resolve = Resolve::kInThread;
  fault_pool_.resolve_signal = &ResolveSignalOfKernelsPage;
  return absl::OkStatus();
}

std::string MappingSupply::Describe() const {
  return absl::StrCat(
      "supply: ", SupplyName(supply_), " (", reason_, ")\n",
      "memory: private mappings of the image, PROT_NONE outside the size\n"
      "faults: resolved by the kernel, also those of system calls\n"
      "changed pages: ",
      supply_ == Supply::kMappingsScan
          ? "found by one PAGEMAP_SCAN at release, and copied back"
          : "dropped at release, by MADV_DONTNEED",
      "\n");
}

absl::Status MappingSupply::CheckImage(const Image& image) const {
  return image.FetchAll();
}

absl::Status MappingSupply::MapAnew(SlotState& slot, uint64_t first_page,
                                    uint64_t pages,
                                    const Image::Mapping& file) {
  const uintptr_t start = AddressOf(slot, first_page);
  const size_t bytes = pages * kPageBytes;
  int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
  if (file.fd < 0) flags |= MAP_ANONYMOUS;
  Count(slot.counters.kernel_calls);
  // Inaccessible, so that nothing populates it: see mapping_properties.h.
  const CallResult mapped =
      kernel_.Mmap(start, bytes, PROT_NONE, flags, file.fd,
                   file.fd < 0 ? 0 : file.offset_bytes);
  if (!mapped.ok()) {
    if (!StaysReserved(kernel_, start, bytes)) slot.place_lost = true;
    return Failed(fault_pool_, slot, mapped.error, "mmap", first_page, pages);
  }
  const MappingResult set = SetMappingProperties(
      kernel_, start, bytes,
      {.include_in_core_dump = options_.include_in_core_dump});
  Count(slot.counters.kernel_calls, set.calls);
  if (!set.ok()) {
    return Failed(fault_pool_, slot, set.error, set.call, first_page, pages);
  }
  if (absl::Status status =
          Protect(slot, first_page, first_page + pages, kAccessible);
      !status.ok()) {
    return status;
  }
  // Naming also merges it into one mapping with what lies behind.
  if (file.fd < 0) NameReservedRange(start, bytes, fault_pool_.name);
  return absl::OkStatus();
}

void MappingSupply::Prefill(SlotState& slot, uint64_t size_pages,
                            uint64_t /*most_pages*/) {
  slot.prefill_wanted = false;
  const WorkingSet& set = slot.image->working_set();
  if (!set.known()) return;
  uint64_t left = kMostPopulatedPages;
  const auto populate = [&](const WorkingSet::Words& words, int advice) {
    for (uint64_t index = 0; index < words.size(); ++index) {
      ForEachRun(words[index] & WordMask(index, 0, size_pages),
                 [&](uint64_t bit, uint64_t pages) {
                   pages = std::min(pages, left);
                   if (pages == 0) return;
                   left -= pages;
                   Count(slot.counters.kernel_calls);
                   kernel_.Madvise(
                       AddressOf(slot, index * kPagesPerGroup + bit),
                       pages * kPageBytes, advice);
                 });
    }
  };
  const WorkingSet::Words written = set.written();
  populate(written, kMadvPopulateWrite);
  WorkingSet::Words read = set.read();
  for (size_t i = 0; i < std::min(read.size(), written.size()); ++i) {
    read[i] &= ~written[i];
  }
  populate(read, kMadvPopulateRead);
  for (uint64_t words = 0; words < written.size(); ++words) {
    const uint64_t pages = written[words] & WordMask(words, 0, size_pages);
    if (pages == 0) continue;
    Of(slot).private_end = std::max<uint64_t>(
        Of(slot).private_end, words * kPagesPerGroup + std::bit_width(pages));
    CountOwned(slot.counters.pages_prefilled, std::popcount(pages));
  }
}

absl::Status MappingSupply::Protect(SlotState& slot, uint64_t first_page,
                                    uint64_t end_page, int protection) {
  if (first_page >= end_page) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const uint64_t pages = end_page - first_page;
  const CallResult done = kernel_.Mprotect(AddressOf(slot, first_page),
                                           pages * kPageBytes, protection);
  if (done.ok()) return absl::OkStatus();
  return Failed(fault_pool_, slot, done.error, "mprotect", first_page, pages);
}

absl::Status MappingSupply::Drop(SlotState& slot, uint64_t first_page,
                                 uint64_t end_page) {
  if (first_page >= end_page) return absl::OkStatus();
  Count(slot.counters.kernel_calls);
  const uint64_t pages = end_page - first_page;
  const CallResult dropped =
      DropMappedPages(kernel_, AddressOf(slot, first_page), pages * kPageBytes);
  if (!dropped.ok()) {
    return Failed(fault_pool_, slot, dropped.error, "MADV_DONTNEED", first_page,
                  pages);
  }
  CountOwned(slot.counters.pages_dropped, pages);
  return absl::OkStatus();
}

absl::Status MappingSupply::MapImage(SlotState& slot, const ImageRef& image) {
  SlotMappings& mappings = Of(slot);
  const uint64_t old_pages = slot.image_pages;
  const uint64_t new_pages = image == nullptr ? 0 : image->pages().value();
  if (new_pages > 0) {
    const absl::StatusOr<Image::Mapping> file = image->PrivateMapping();
    if (!file.ok()) return file.status();
    slot.remap_wanted = true;
    // From here to the end of this function the slot is neither bound to the
    // old image nor to the new one.
    if (absl::Status status = MapAnew(slot, 0, new_pages, *file);
        !status.ok()) {
      return status;
    }
  }
  if (old_pages > new_pages) {
    slot.remap_wanted = true;
    if (absl::Status status =
            MapAnew(slot, new_pages, old_pages - new_pages, {});
        !status.ok()) {
      return status;
    }
  }
  const uint64_t fresh_pages = std::max(old_pages, new_pages);
  mappings.accessible_pages = std::max(mappings.accessible_pages, fresh_pages);
  if (mappings.private_end <= fresh_pages) mappings.private_end = 0;
  SetImage(slot, image);
  return absl::OkStatus();
}

absl::Status MappingSupply::MapAllAnew(SlotState& slot) {
  const uint64_t pages = layout_.memory_bytes() / kPageBytes;
  if (absl::Status status = MapAnew(slot, 0, pages, {}); !status.ok()) {
    return status;
  }
  SlotMappings& mappings = Of(slot);
  mappings.accessible_pages = pages;
  mappings.private_end = 0;
  mappings.private_pages = 0;
  mappings.releases_to_teach = 0;
  slot.image_id.store(0, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status MappingSupply::Unbind(SlotState& slot) {
  absl::Status status = MapAllAnew(slot);
  SlotMappings& mappings = Of(slot);
  if (status.ok()) {
    status = Protect(slot, 0, mappings.accessible_pages, PROT_NONE);
  }
  if (!status.ok()) return status;
  mappings.accessible_pages = 0;
  return status;
}

absl::Status MappingSupply::Bind(SlotState& slot, const ImageRef& image,
                                 uint64_t size_pages) {
  SlotMappings& mappings = Of(slot);
  absl::Status status;
  if (slot.remap_wanted) status = MapAllAnew(slot);
  const bool binds = slot.image != image;
  if (status.ok() && binds) status = MapImage(slot, image);
  if (!status.ok() && !slot.remap_wanted) return status;
  const uint64_t accessible = mappings.accessible_pages;
  if (accessible != size_pages) slot.remap_wanted = true;
  if (status.ok() && accessible > size_pages) {
    // Pages behind the new size hold initial bytes: they would leak nothing,
    // but nothing would count them as kept.
    if (mappings.private_end > size_pages) {
      status = Drop(slot, size_pages, mappings.private_end);
      mappings.private_end = size_pages;
    }
    if (status.ok()) status = Protect(slot, size_pages, accessible, PROT_NONE);
  } else if (status.ok()) {
    status = Protect(slot, accessible, size_pages, kAccessible);
  }
  if (!status.ok()) {
    Shut(slot);
    return status;
  }
  mappings.accessible_pages = size_pages;
  if (binds && image != nullptr) {
    mappings.releases_to_teach = supply_ == Supply::kMappingsScan ? 2 : 0;
    slot.prefill_wanted = true;
  }
  return absl::OkStatus();
}

absl::Status MappingSupply::Open(SlotState& slot, uint64_t end_page) {
  SlotMappings& mappings = Of(slot);
  const uint64_t accessible = mappings.accessible_pages;
  if (end_page <= accessible) return absl::OkStatus();
  absl::Status status = Protect(slot, accessible, end_page, kAccessible);
  if (status.ok()) {
    mappings.accessible_pages = end_page;
  } else {
    // A call that fails may have done a part.
    Protect(slot, accessible, end_page, PROT_NONE).IgnoreError();
  }
  return status;
}

absl::Status MappingSupply::SetWritable(SlotState& slot, bool writable) {
  return Protect(slot, 0, Of(slot).accessible_pages,
                 writable ? kAccessible : PROT_READ);
}

void MappingSupply::Shut(SlotState& slot) {
  Protect(slot, 0, layout_.memory_bytes() / kPageBytes, PROT_NONE)
      .IgnoreError();
}

int MappingSupply::Scan(const SlotState& slot, uint64_t end_page,
                        absl::FunctionRef<bool(const Run&)> visit,
                        uint64_t* calls) const {
  if (end_page == 0) return 0;
  ScanRequest request;
  request.start = slot.base;
  request.end = AddressOf(slot, end_page);
  request.any_of = kPageIsPresent | kPageIsSwapped;
  request.report = kPageIsFile | kPageIsPfnZero;
  PageRegion regions[kRegions];
  const ScanResult scan = ScanPages(
      kernel_, pagemap_->fd(), request, regions, kRegions,
      [&](const PageRegion& region) {
        Run run{(region.start - slot.base) / kPageBytes,
                (region.end - region.start) / kPageBytes, false};
        if ((region.categories & kPageIsFile) != 0) return visit(run);
        run.is_private = (region.categories & kPageIsPfnZero) == 0;
        if (run.is_private || run.first_page >= slot.image_pages) {
          return visit(run);
        }
        // Zero pages: where there is an image they are not its own.
        const uint64_t end = run.first_page + run.pages;
        const uint64_t split = std::min(end, slot.image_pages);
        return visit({run.first_page, split - run.first_page, true}) &&
               (split == end || visit({split, end - split, false}));
      });
  *calls = scan.calls;
  return scan.error;
}

absl::Status MappingSupply::ScanAndRestore(SlotState& slot, uint64_t keep_pages,
                                           uint64_t retained_pages_limit) {
  uint64_t restored = 0;
  uint64_t private_end = 0;
  bool drops_all = false;
  uint64_t calls = 0;
  const bool teaches = Of(slot).releases_to_teach > 0 && slot.image != nullptr;
  WorkingSet::Words written;
  WorkingSet::Words read;
  const int error = Scan(
      slot, keep_pages,
      [&](const Run& run) {
        if (teaches) {
          AddRun(read, run.first_page, run.pages);
          if (run.is_private) AddRun(written, run.first_page, run.pages);
        }
        if (!run.is_private) return true;
        if (restored + run.pages > retained_pages_limit ||
            !RestoreBytes(slot, run.first_page, run.pages)) {
          drops_all = true;
          return false;
        }
        restored += run.pages;
        private_end = run.first_page + run.pages;
        return true;
      },
      &calls);
  Count(slot.counters.kernel_calls, calls);
  if (error != 0) {
    return Failed(fault_pool_, slot, error, "PAGEMAP_SCAN", 0, keep_pages);
  }
  if (drops_all) {
    private_end = 0;
    if (absl::Status status = Drop(slot, 0, keep_pages); !status.ok()) {
      return status;
    }
  } else {
    CountOwned(slot.counters.pages_restored, restored);
  }
  if (teaches && !drops_all) {
    --Of(slot).releases_to_teach;
    WorkingSet& set = slot.image->working_set();
    // Where the set is known, pages are private because the set says so.
    if (!set.known()) set.LearnWritten(written);
    set.LearnRead(read);
  }
  Of(slot).private_end = private_end;
  Of(slot).private_pages = drops_all ? 0 : restored;
  return absl::OkStatus();
}

absl::Status MappingSupply::NoteDropped(SlotState& slot, const PageSpan& span,
                                        int error) {
  if (error != 0) {
    return Failed(fault_pool_, slot, error, "MADV_DONTNEED", span.first_page,
                  span.end_page - span.first_page);
  }
  CountOwned(slot.counters.pages_dropped, span.known_pages);
  Of(slot).private_end = 0;
  Of(slot).private_pages = 0;
  return absl::OkStatus();
}

absl::Status MappingSupply::Restore(SlotState& slot, uint64_t /*size_bytes*/,
                                    uint64_t most_private_pages) {
  SlotMappings& mappings = Of(slot);
  const uint64_t keep_pages = slot.kept_pages;
  const uint64_t accessible = mappings.accessible_pages;
  const bool drop_all = supply_ == Supply::kMappingsDrop;
  absl::Status status = Drop(slot, drop_all ? 0 : keep_pages, accessible);
  if (status.ok()) {
    status = Protect(slot, keep_pages, accessible, PROT_NONE);
  }
  if (status.ok() && !drop_all) {
    status = ScanAndRestore(slot, keep_pages, most_private_pages);
  }
  if (!status.ok()) {
    Shut(slot);
    return status;
  }
  mappings.accessible_pages = keep_pages;
  return absl::OkStatus();
}

std::vector<MappingSupply::Run> MappingSupply::Resident(
    const SlotState& slot, uint64_t end_page) const {
  std::vector<Run> runs;
  if (pagemap_.has_value()) {
    uint64_t calls = 0;
    const int error = Scan(
        slot, end_page,
        [&](const Run& run) {
          runs.push_back(run);
          return true;
        },
        &calls);
    if (error == 0) return runs;
    runs.clear();
  }
  for (uint64_t page = 0; page < end_page; ++page) {
    std::byte now[kPageBytes];
    // Where the image's file was cut short, the kernel has taken the pages
    // away, including changed ones.
    if (CopyGuarded(now, PointerTo(slot, page), kPageBytes) &&
        DiffersFrom(now, InitialPage(slot, page))) {
      runs.push_back({page, 1, true});
    }
  }
  return runs;
}

absl::Status MappingSupply::ForEachChangedPage(
    SlotState& slot, uint64_t end_page,
    absl::FunctionRef<void(uint64_t page)> visit) {
  for (const Run& run : Resident(slot, end_page)) {
    if (!run.is_private) continue;
    for (uint64_t i = 0; i < run.pages; ++i) visit(run.first_page + i);
  }
  return absl::OkStatus();
}

MemoryPages MappingSupply::CountPages(SlotState& slot) {
  MemoryPages count;
  const uint64_t size_bytes = slot.size_bytes.load(std::memory_order_acquire);
  for (const Run& run : Resident(slot, PagesRoundedUp(size_bytes).value())) {
    count.touched += run.pages;
    if (!run.is_private) continue;
    count.writable += run.pages;
    for (uint64_t page = run.first_page; page < run.first_page + run.pages;
         ++page) {
      count.changed +=
          DiffersFrom(PointerTo(slot, page), InitialPage(slot, page));
    }
  }
  return count;
}

}  // namespace firsttouch
