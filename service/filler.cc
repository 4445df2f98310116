// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/service/filler.h"

#include <errno.h>

#include <algorithm>

#include "firsttouch/init/image_fetch.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/fill_ranges.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

class Filler {
 public:
  Filler(FaultPool& fault_pool, SlotState& slot, uint64_t size_pages,
         const SignalSet* interrupted_mask = nullptr)
      : fault_pool_(fault_pool),
        slot_(slot),
        ranges_(fault_pool, slot, size_pages),
        interrupted_mask_(interrupted_mask) {
    // A thread that resolves for others must wake them even when the page is
    // present already: it may have come before they went to sleep.
    policy_.wake_present = fault_pool.resolve == Resolve::kHandlerThread;
    if (!slot.filled.load(std::memory_order_relaxed)) {
      slot.filled.store(true, std::memory_order_relaxed);
    }
  }

  FaultResult Read(uint64_t page);
  FaultResult Write(uint64_t page, bool protection);
  FaultResult FillPrivate(uint64_t first, uint64_t end);
  FaultResult MapClean(uint64_t first, uint64_t end);
  // Whether a page is present now that was missing before.
  bool has_filled() const { return has_filled_; }

 private:
  // Fills the missing pages of [first, end), run by run: `fill_image`(first
  // page, pages) fills image pages that are stored, `fill_zeroes` the others.
  // Ends at the first run that is not resolved.
  template <typename FillImage, typename FillZeroes>
  FaultResult ForEachMissingRun(uint64_t first, uint64_t end,
                                FillImage fill_image, FillZeroes fill_zeroes);

  // Called when more of the image is touched than was copied in beforehand.
  void AskForMapping() {
    if (fault_pool_.backing == Backing::kShared && !slot_.image_mapped &&
        !slot_.image_copied &&
        !slot_.mapping_wanted.load(std::memory_order_relaxed)) {
      slot_.mapping_wanted.store(true, std::memory_order_relaxed);
    }
  }

  // The pages of a group that are filled as private ones even for a read.
  uint64_t ReadThenWritten(uint64_t group) const {
    return slot_.read_then_written != nullptr &&
                   group * kPagesPerGroup < slot_.image_pages
               ? slot_.read_then_written[group].load(std::memory_order_relaxed)
               : 0;
  }

  void CountFilled(std::atomic<uint64_t>& counter, const FillResult& fill) {
    Count(counter, fill.pages_filled());
    if (fill.pages_filled() != 0) has_filled_ = true;
  }

  FaultResult Outcome(const FillResult& fill, const char* call) {
    Count(slot_.counters.kernel_calls, 1 + fill.stalls + fill.pages_present);
    if (fill.ok()) return {};
    if (fill.error == ESRCH) return {FaultResult::Kind::kGone, ESRCH, call};
    return {FaultResult::Kind::kFailed, fill.error, call};
  }

  // Maps image pages, protected, wherever the fault-around range lacks them; up
  // to 1 MiB for a guest that reads upwards.
  FaultResult MapImageAround(uint64_t page);
  // Maps image pages of one group, protected.
  FaultResult MapRun(uint64_t page, uint64_t pages);
  // Copies image pages, protected, wherever the fault-around range lacks them.
  FaultResult CopyImageAround(uint64_t page);
  // Copies image pages of one group, protected.
  FaultResult CopyRun(uint64_t page, uint64_t pages);
  // Converts the result of a copy from the image: EFAULT says that the image's
  // page cannot be read, for example since its file has been cut short.
  static FaultResult WithoutContents(FaultResult result) {
    if (result.kind == FaultResult::Kind::kFailed && result.error == EFAULT) {
      result.kind = FaultResult::Kind::kNoContents;
    }
    return result;
  }
  // Whether the touched page may be supplied alone, although it could not be
  // supplied together with its neighbours. (A source gives its chunk or
  // nothing.)
  bool MayDoAlone(const FaultResult& result) const {
    return result.kind == FaultResult::Kind::kNoContents &&
           !ranges_.HasSource();
  }
  // Fetches image pages to where they can be mapped and copied from.
  FaultResult Fetch(uint64_t page, uint64_t pages) const;
  // For each run of image pages in `range` that are not there, and `page`
  // itself, ascending.
  template <typename Fill>
  FaultResult ForMissingImageRuns(uint64_t page, PageRange range, Fill fill);

  FaultResult ReadZerosAround(uint64_t page);
  // Maps the zero page to pages of one group and one mapping.
  FaultResult ZeroRun(uint64_t first, uint64_t pages);
  FaultResult WriteImagePage(uint64_t page);
  // Makes missing image pages of one group private and writable, in the order
  // that page_states.h demands.
  FaultResult MakeImagePagesWritable(PageRange range);
  // Copies private, writable pages of one group from `source`, in the order
  // that page_states.h demands.
  FaultResult CopyWritable(PageRange range, uintptr_t source);
  // Takes the write protection off pages of one group.
  FaultResult Unprotect(uint64_t page, uint64_t pages);

  FaultPool& fault_pool_;
  SlotState& slot_;
  const FillRanges ranges_;
  const SignalSet* const interrupted_mask_;
  // Some image pages have turned out not to be in the memfd yet.
  bool fetch_first_ = false;
  bool has_filled_ = false;
  FillPolicy policy_;
};

template <typename Fill>
FaultResult Filler::ForMissingImageRuns(uint64_t page, PageRange range,
                                        Fill fill) {
  FaultResult result;
  ForEachWordOf(range.first, std::min(range.end(), slot_.image_pages),
                [&](uint64_t group, uint64_t bits) {
                  bits &= StoredPages(slot_, group) & ranges_.Missing(group) &
                          ~ReadThenWritten(group);
                  if (group == page / kPagesPerGroup) {
                    // The hardware knows better than the planes whether this
                    // page is there.
                    bits |= uint64_t{1} << (page % kPagesPerGroup);
                  }
                  ForEachRun(bits, [&](uint64_t bit, uint64_t pages) {
                    if (result.kind != FaultResult::Kind::kResolved) return;
                    result = fill(group * kPagesPerGroup + bit, pages);
                  });
                });
  return result;
}

FaultResult Filler::MapImageAround(uint64_t page) {
  return ForMissingImageRuns(
      page, ranges_.AheadOfReader(page),
      [&](uint64_t run, uint64_t pages) { return MapRun(run, pages); });
}

FaultResult Filler::MapRun(uint64_t page, uint64_t pages) {
  if (fetch_first_) {
    FetchImagePages(*slot_.image_fetch, page, pages, interrupted_mask_);
  }
  const auto map = [&] {
    const FillResult fill = ContinueRange(
        *fault_pool_.kernel, fault_pool_.uffd, AddressOf(slot_, page),
        pages * kPageBytes, kUffdContinueWp, policy_);
    CountFilled(slot_.counters.pages_mapped, fill);
    slot_.pages.Mark(&PageGroup::present, page, fill.bytes_done / kPageBytes);
    return Outcome(fill, "UFFDIO_CONTINUE");
  };
  FaultResult result = map();
  if (result.error == EFAULT && slot_.image_fetch != nullptr) {
    // The page is not in the memfd yet. Most other pages that would be mapped
    // along with it are not either.
    fetch_first_ = true;
    result = Fetch(page, pages);
    if (result.kind == FaultResult::Kind::kResolved) result = map();
  }
  return result;
}

FaultResult Filler::Fetch(uint64_t page, uint64_t pages) const {
  const int error =
      FetchImagePages(*slot_.image_fetch, page, pages, interrupted_mask_);
  if (error == 0) return {};
  return {FaultResult::Kind::kNoContents, error, "fetching the image's page"};
}

FaultResult Filler::CopyImageAround(uint64_t page) {
  return ForMissingImageRuns(
      page, ranges_.FaultAround(page),
      [&](uint64_t run, uint64_t pages) { return CopyRun(run, pages); });
}

FaultResult Filler::CopyRun(uint64_t page, uint64_t pages) {
  if (!slot_.has_clean_copies.load(std::memory_order_relaxed)) {
    slot_.has_clean_copies.store(true, std::memory_order_relaxed);
  }
  const auto copy = [&] {
    const FillResult fill =
        CopyRange(*fault_pool_.kernel, fault_pool_.uffd, AddressOf(slot_, page),
                  reinterpret_cast<uintptr_t>(StoredPage(slot_, page)),
                  pages * kPageBytes, kUffdCopyWp, policy_);
    CountFilled(slot_.counters.pages_copied, fill);
    slot_.pages.Mark(&PageGroup::present, page, fill.bytes_done / kPageBytes);
    return Outcome(fill, "UFFDIO_COPY");
  };
  FaultResult result = copy();
  if (result.error == EFAULT && ranges_.HasSource()) {
    result = Fetch(page, pages);
    if (result.kind == FaultResult::Kind::kResolved) result = copy();
  }
  return WithoutContents(result);
}

FaultResult Filler::ReadZerosAround(uint64_t page) {
  // Only pages that are zero, missing and neighbours of the touched one.
  const PageRange range = ranges_.ZeroRunAround(page);
  return ZeroRun(range.first, range.pages);
}

FaultResult Filler::ZeroRun(uint64_t first, uint64_t pages) {
  const uint64_t group = first / kPagesPerGroup;
  // No call maps the kernel's zero page and write-protects it in one step, so a
  // write to it would not be seen: a scan at release finds it.
  PageGroup& marks = slot_.pages.group(group);
  marks.untracked.fetch_or(WordMask(group, first, first + pages),
                           std::memory_order_relaxed);
  slot_.any_untracked.store(true, std::memory_order_relaxed);
  slot_.pages.NoteGroup(group);
  FillResult fill =
      ZeroRange(*fault_pool_.kernel, fault_pool_.uffd, AddressOf(slot_, first),
                pages * kPageBytes, 0, policy_);
  FaultResult result = Outcome(fill, "UFFDIO_ZEROPAGE");
  CountFilled(slot_.counters.pages_zeroed, fill);
  if (result.kind != FaultResult::Kind::kResolved) return result;
  if (fill.pages_present != 0) {
    // ZEROPAGE, unlike COPY, also calls a page present that only carries a
    // marker (write-protected when it was dropped, or poisoned). Pages that are
    // really there are so for COPY as well.
    fill = CopyRange(*fault_pool_.kernel, fault_pool_.uffd,
                     AddressOf(slot_, first), fault_pool_.zero_source,
                     pages * kPageBytes, 0, policy_);
    CountFilled(slot_.counters.pages_copied, fill);
    result = Outcome(fill, "UFFDIO_COPY");
    if (result.kind != FaultResult::Kind::kResolved) return result;
  }
  slot_.pages.Mark(&PageGroup::present, first, pages);
  return {};
}

FaultResult Filler::Unprotect(uint64_t page, uint64_t pages) {
  const FillResult fill =
      WriteProtectRange(*fault_pool_.kernel, fault_pool_.uffd,
                        AddressOf(slot_, page), pages * kPageBytes, 0, policy_);
  const FaultResult result = Outcome(fill, "UFFDIO_WRITEPROTECT");
  if (result.kind == FaultResult::Kind::kFailed) {
    // A page that is dirty and still protected would fault when it is restored.
    // A page that is dirty and not known to be present is dropped at release
    // instead.
    const uint64_t group = page / kPagesPerGroup;
    slot_.pages.group(group).present.fetch_and(
        ~WordMask(group, page, page + pages), std::memory_order_relaxed);
  }
  return result;
}

FaultResult Filler::WriteImagePage(uint64_t page) {
  AskForMapping();
  // Filled as a private page at once: filling a missing page costs no TLB
  // shootdown, copying a mapped one does.
  PageRange range{page, 1};
  if (fault_pool_.backing == Backing::kCopied || slot_.image_copied) {
    // The whole run of missing pages around it in one copy; all of them count
    // as changed, which costs less than to protect the others.
    range = ranges_.ImageRunAround(page);
  } else if (!ranges_.HasSource()) {
    range = ranges_.ImageRunFrom(page);
  }
  const FaultResult result = MakeImagePagesWritable(range);
  return MayDoAlone(result) ? MakeImagePagesWritable({page, 1}) : result;
}

FaultResult Filler::MakeImagePagesWritable(PageRange range) {
  return CopyWritable(
      range, reinterpret_cast<uintptr_t>(StoredPage(slot_, range.first)));
}

FaultResult Filler::CopyWritable(PageRange range, uintptr_t source) {
  const uint64_t first = range.first;
  const uint64_t pages = range.pages;
  slot_.pages.Mark(&PageGroup::dirty, first, pages);
  uint64_t were_present = 0;
  const auto copy = [&] {
    const FillResult fill = CopyRange(*fault_pool_.kernel, fault_pool_.uffd,
                                      AddressOf(slot_, first), source,
                                      pages * kPageBytes, 0, policy_);
    CountFilled(slot_.counters.pages_copied, fill);
    were_present = fill.pages_present;
    return Outcome(fill, "UFFDIO_COPY");
  };
  FaultResult result = copy();
  if (source != fault_pool_.zero_source) {
    if (result.error == EFAULT && ranges_.HasSource()) {
      result = Fetch(first, pages);
      if (result.kind == FaultResult::Kind::kResolved) result = copy();
    }
    result = WithoutContents(result);
  }
  if (result.kind != FaultResult::Kind::kResolved) return result;
  slot_.pages.Mark(&PageGroup::present, first, pages);
  // The thread that made one of them present may have protected it, and all of
  // them are dirty now.
  if (were_present != 0) return Unprotect(first, pages);
  return {};
}

FaultResult Filler::Read(uint64_t page) {
  const PageGroup& planes = slot_.pages.GroupOf(page);
  const uint64_t bit = uint64_t{1} << (page % kPagesPerGroup);
  if ((planes.dirty.load(std::memory_order_acquire) & bit) != 0) {
    // Another thread is writing to it for the first time right now: help.
    return Write(page, /*protection=*/false);
  }
  // Where neighbours are copied along, what is present says little of what was
  // read.
  if (!slot_.image_copied &&
      !slot_.reads_to_teach.load(std::memory_order_relaxed)) {
    slot_.reads_to_teach.store(true, std::memory_order_relaxed);
  }
  if (IsStored(slot_, page)) {
    if (slot_.image_mapped && (ReadThenWritten(page / kPagesPerGroup) & bit)) {
      Count(slot_.counters.missing_read_faults);
      FaultResult result = MakeImagePagesWritable({page, 1});
      if (result.kind == FaultResult::Kind::kResolved) return result;
      // The image's own page will do for a read. It is noted as dirty by now,
      // and must not be protected then.
      result = MapRun(page, 1);
      return result.kind == FaultResult::Kind::kResolved ? Unprotect(page, 1)
                                                         : result;
    }
    if (slot_.image_mapped) {
      Count(slot_.counters.minor_faults);
      const FaultResult result = MapImageAround(page);
      return MayDoAlone(result) ? MapRun(page, 1) : result;
    }
    Count(slot_.counters.missing_read_faults);
    if (slot_.image_copied) return WriteImagePage(page);
    AskForMapping();
    const FaultResult result = CopyImageAround(page);
    return MayDoAlone(result) ? CopyRun(page, 1) : result;
  }
  Count(slot_.counters.missing_read_faults);
  return ReadZerosAround(page);
}

FaultResult Filler::Write(uint64_t page, bool protection) {
  if (protection) {
    Count(slot_.counters.write_protect_faults);
    if (slot_.read_then_written != nullptr && page < slot_.image_pages) {
      slot_.read_then_written[page / kPagesPerGroup].fetch_or(
          uint64_t{1} << (page % kPagesPerGroup), std::memory_order_relaxed);
    }
    slot_.pages.Mark(&PageGroup::dirty, page, 1);
    return Unprotect(page, 1);
  }
  // The same where the planes say "present": the page may have been dropped
  // behind our back, or swapped out while protected. COPY finds out by EEXIST,
  // and then the page is unprotected.
  Count(slot_.counters.missing_write_faults);
  return IsStored(slot_, page)
             ? WriteImagePage(page)
             : CopyWritable(ranges_.ZeroRunFrom(page), fault_pool_.zero_source);
}

template <typename FillImage, typename FillZeroes>
FaultResult Filler::ForEachMissingRun(uint64_t first, uint64_t end,
                                      FillImage fill_image,
                                      FillZeroes fill_zeroes) {
  FaultResult result;
  ForEachWordOf(first, end, [&](uint64_t group, uint64_t bits) {
    const auto fill_with = [&](auto fill) {
      return [&result, group, fill](uint64_t bit, uint64_t pages) {
        if (result.kind != FaultResult::Kind::kResolved) return;
        result = fill(group * kPagesPerGroup + bit, pages);
      };
    };
    const uint64_t missing = bits & ranges_.Missing(group);
    const uint64_t image = missing & StoredPages(slot_, group);
    ForEachRun(image, fill_with(fill_image));
    // No call may cross the end of the image's mapping.
    const uint64_t in_image = WordMask(group, 0, slot_.image_pages);
    ForEachRun(missing & ~image & in_image, fill_with(fill_zeroes));
    ForEachRun(missing & ~image & ~in_image, fill_with(fill_zeroes));
  });
  return result;
}

FaultResult Filler::FillPrivate(uint64_t first, uint64_t end) {
  return ForEachMissingRun(
      first, end,
      [this](uint64_t page, uint64_t pages) {
        return MakeImagePagesWritable({page, pages});
      },
      [this](uint64_t page, uint64_t pages) {
        return CopyWritable({page, pages}, fault_pool_.zero_source);
      });
}

FaultResult Filler::MapClean(uint64_t first, uint64_t end) {
  return ForEachMissingRun(
      first, end,
      [this](uint64_t page, uint64_t pages) {
        return slot_.image_mapped ? MapRun(page, pages) : CopyRun(page, pages);
      },
      [this](uint64_t page, uint64_t pages) { return ZeroRun(page, pages); });
}

// Whether the same page has faulted too often in a row without a page having
// been filled.
bool FaultsWithoutEnd(SlotState& slot, uint64_t page) {
  if (slot.last_fault_page.load(std::memory_order_relaxed) != page) {
    slot.last_fault_page.store(page, std::memory_order_relaxed);
    slot.same_page_faults.store(0, std::memory_order_relaxed);
    return false;
  }
  return slot.same_page_faults.fetch_add(1, std::memory_order_relaxed) >=
         kMaxSamePageFaults;
}

}  // namespace

FaultResult ResolveFault(FaultPool& fault_pool, const Fault& fault) noexcept {
  SlotState& slot = fault_pool.slots[fault.slot];
  const uint64_t size_bytes = slot.size_bytes.load(std::memory_order_seq_cst);
  if (fault.offset_bytes >= size_bytes) {
    return {.kind = FaultResult::Kind::kOutOfBounds};
  }
  const uint64_t page = fault.offset_bytes / kPageBytes;
  if (FaultsWithoutEnd(slot, page)) {
    return {FaultResult::Kind::kFailed, ELOOP, "the fault's resolution"};
  }
  Filler filler(fault_pool, slot, PagesRoundedUp(size_bytes).value(),
                fault.interrupted_mask);
  const FaultResult result = fault.access == Access::kWrite
                                 ? filler.Write(page, fault.protection)
                                 : filler.Read(page);
  // Other code takes the page away each time, or the touching thread is told
  // each time that the page cannot be had: neither is a loop of ours.
  if (filler.has_filled() || result.kind != FaultResult::Kind::kResolved) {
    slot.same_page_faults.store(0, std::memory_order_relaxed);
  }
  return result;
}

FaultResult FillPrivate(FaultPool& fault_pool, uint32_t slot,
                        uint64_t first_page, uint64_t pages) noexcept {
  const uint64_t end = first_page + pages;
  return Filler(fault_pool, fault_pool.slots[slot], end)
      .FillPrivate(first_page, end);
}

FaultResult MapClean(FaultPool& fault_pool, uint32_t slot, uint64_t first_page,
                     uint64_t pages) noexcept {
  const uint64_t end = first_page + pages;
  return Filler(fault_pool, fault_pool.slots[slot], end)
      .MapClean(first_page, end);
}

}  // namespace firsttouch
