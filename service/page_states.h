// What is known about every page of a slot.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.
//
// Seven bits a page, kept as bit planes over groups of 64 pages. Four say what
// state it is in:
//
//   present untracked dirty retained  state       what is known
//      0        0       0      -      kMissing    nothing is mapped; the next
//                                                 touch faults
//      1        0       0      -      kClean      mapped, write-protected: its
//                                                 bytes are the initial ones
//      1        1       0      -      kUntracked  mapped, not protected: it may
//                                                 have changed; a scan tells
//      *        *       1      0      kDirty      unprotected since this lease:
//                                                 must be restored
//      *        *       1      1      kRetained   unprotected since an earlier
//                                                 lease and kept so
//                                                 (retained-dirty): must be
//                                                 restored
//
// What moves a page from which state to which:
//   fault path   kMissing -> kClean      minor fault, or copy with protection
//   fault path   kMissing -> kUntracked  zero page for a read
//   fault path   kMissing, kClean, kUntracked -> kDirty   first write
//   release      kUntracked -> kClean (protected), kDirty (the scan found it
//                written) or kMissing (dropped)
//   release      kDirty -> kRetained, after its bytes were restored
//   release      any -> kMissing, when the page was dropped
//   bind         kDirty, kRetained: stay so, with the bytes of another image
//                (uffd_bind.h), or become kMissing as all others do
// Three more planes say when the page was last found changed at a release:
// `last`, at the last one (a steady release notes nothing), `recent`, in this
// sampling window of cycles, and `previous`, in the window before
// (uffd_restore.h). They are kept when a page is dropped.
//
// A bit of `dirty` or `untracked` is set BEFORE the kernel is asked for a page
// that can be written, and cleared only after the page is gone or protected: a
// page that can have changed is always in one of these planes. `present` is set
// after the kernel has mapped the page and may lag behind while a fill is under
// way. A release needs it exactly, so it waits for fills first.
// A dirty or untracked page that is not present is one whose fill was not
// completed (it failed, or was left by longjmp): a release drops it, since it
// may or may not be there. A clean page can be there without `present` only
// where the image has one, so that it lies within every lease's bounds and
// holds what the lease is to see (SlotState::has_clean_copies, where it is a
// copy); binding another image drops it.
//
// One cache line describes 64 pages: 4 KiB of page states for 15 MiB.

#ifndef FIRSTTOUCH_SERVICE_PAGE_STATES_H_
#define FIRSTTOUCH_SERVICE_PAGE_STATES_H_

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "firsttouch/uffd/page_words.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

enum class PageState : uint8_t {
  kMissing,
  kClean,
  kUntracked,
  kDirty,
  kRetained,
};

// "missing", "clean", ...; a static string.
const char* PageStateName(PageState state);

inline constexpr uint64_t kPagesPerGroup = kPagesPerWord;

// The planes of 64 neighbouring pages; bit i is page i of the group. All zero,
// as in fresh memory, means that every page is missing.
struct alignas(64) PageGroup {
  std::atomic<uint64_t> present;
  std::atomic<uint64_t> untracked;
  std::atomic<uint64_t> dirty;
  std::atomic<uint64_t> retained;
  std::atomic<uint64_t> recent;
  std::atomic<uint64_t> previous;
  std::atomic<uint64_t> last;
};
static_assert(sizeof(PageGroup) == 64);

// The page states of one slot, in memory that the caller provides, zeroed.
//
// Any number of threads may set bits (the fault path). Everything that clears
// bits, and the walks, belong to the slot's owner while no fill is in flight.
class PageStates {
 public:
  // Bytes of zeroed memory that PageStates needs for `pages` pages, in whole
  // cache lines. Not in whole pages: the states of small memories lie side by
  // side, so that the first use of a slot does not always take a fault there.
  static constexpr uint64_t BytesFor(PageCount pages) {
    return SummaryBytes(Groups(pages)) + Groups(pages) * sizeof(PageGroup);
  }

  PageStates() = default;

  // Uses BytesFor(pages) bytes at `memory`, which must be zero, aligned to a
  // cache line and outlive the object.
  PageStates(void* memory, PageCount pages)
      : summary_(static_cast<std::atomic<uint64_t>*>(memory)),
        groups_(reinterpret_cast<PageGroup*>(static_cast<std::byte*>(memory) +
                                             SummaryBytes(Groups(pages)))),
        group_count_(Groups(pages)) {}

  uint64_t group_count() const { return group_count_; }
  // Bytes from the memory's start to the first group; the summary lies before
  // it.
  uint64_t groups_offset_bytes() const { return SummaryBytes(group_count_); }

  PageGroup& group(uint64_t index) const { return groups_[index]; }
  PageGroup& GroupOf(uint64_t page) const {
    return groups_[page / kPagesPerGroup];
  }

  // Must be called for a group after a bit in it was set, so that the walks
  // find it. Idempotent.
  void NoteGroup(uint64_t index) const {
    std::atomic<uint64_t>& word = summary_[index / 64];
    const uint64_t bit = uint64_t{1} << (index % 64);
    if ((word.load(std::memory_order_relaxed) & bit) == 0) {
      NoteWord(index / 64);
      word.fetch_or(bit, std::memory_order_relaxed);
    }
  }

  // Sets the bits of [first_page, first_page + pages) in one plane. Whoever
  // sees them sees what was done before.
  void Mark(std::atomic<uint64_t> PageGroup::*plane, uint64_t first_page,
            uint64_t pages) const {
    ForEachWordOf(
        first_page, first_page + pages, [&](uint64_t index, uint64_t bits) {
          (group(index).*plane).fetch_or(bits, std::memory_order_release);
          NoteGroup(index);
        });
  }

  PageState StateOf(uint64_t page) const {
    const PageGroup& group = GroupOf(page);
    const uint64_t bit = uint64_t{1} << (page % kPagesPerGroup);
    if (group.dirty.load(std::memory_order_acquire) & bit) {
      return (group.retained.load(std::memory_order_relaxed) & bit)
                 ? PageState::kRetained
                 : PageState::kDirty;
    }
    if ((group.present.load(std::memory_order_relaxed) & bit) == 0) {
      return PageState::kMissing;
    }
    return (group.untracked.load(std::memory_order_relaxed) & bit)
               ? PageState::kUntracked
               : PageState::kClean;
  }

  // Calls visit(index, group) for every group that may have a bit set, in
  // ascending order.
  template <typename Visit>
  void ForEachGroup(Visit visit) const {
    const uint64_t words = NotedWords();
    for (uint64_t w = 0; w < words; ++w) {
      uint64_t bits = summary_[w].load(std::memory_order_relaxed);
      while (bits != 0) {
        const uint64_t index = w * 64 + std::countr_zero(bits);
        bits &= bits - 1;
        visit(index, groups_[index]);
      }
    }
  }

  // Like ForEachGroup(), in descending order.
  template <typename Visit>
  void ForEachGroupDown(Visit visit) const {
    for (uint64_t w = NotedWords(); w-- > 0;) {
      uint64_t bits = summary_[w].load(std::memory_order_relaxed);
      while (bits != 0) {
        const uint64_t bit = 63 - std::countl_zero(bits);
        bits &= ~(uint64_t{1} << bit);
        visit(w * 64 + bit, groups_[w * 64 + bit]);
      }
    }
  }

  // Forgets the state of pages [first_page, end_page): they are missing now.
  // Only after the kernel dropped them, by the slot's owner.
  void Forget(uint64_t first_page, uint64_t end_page) const;
  // Also forgets when the pages changed.
  void ForgetHistory() const;
  // `recent` becomes `previous`, and nothing has changed recently.
  void NextSamplingWindow() const;

 private:
  uint64_t NotedWords() const {
    return std::atomic_ref<uint64_t>(noted_words_)
        .load(std::memory_order_relaxed);
  }
  void NoteWord(uint64_t word) const {
    const std::atomic_ref<uint64_t> noted(noted_words_);
    uint64_t words = noted.load(std::memory_order_relaxed);
    while (words <= word && !noted.compare_exchange_weak(
                                words, word + 1, std::memory_order_relaxed)) {
    }
  }

  // Clears the summary's bit of a group that is all zero.
  void LeaveOutIfEmpty(uint64_t index) const;

  static constexpr uint64_t Groups(PageCount pages) {
    return WordsFor(pages.value());
  }
  // The bytes of a summary of one bit per group, in whole cache lines.
  static constexpr uint64_t SummaryBytes(uint64_t groups) {
    return (groups + 511) / 512 * 64;
  }

  std::atomic<uint64_t>* summary_ = nullptr;
  PageGroup* groups_ = nullptr;
  uint64_t group_count_ = 0;
  // The words of the summary up to the last in which a group was ever noted: a
  // memory that may grow to 4 GiB has 256, and its guests seldom come past the
  // first. Until a group is noted the memory is not read: for a slot that is
  // bound to its first image, the read would take a fault.
  alignas(std::atomic_ref<uint64_t>::required_alignment) mutable uint64_t
      noted_words_ = 0;
};

// Pages to be dropped with one call.
struct PageSpan {
  uint64_t first_page = 0;
  uint64_t end_page = 0;
  // Pages of the span that are known to be resident.
  uint64_t known_pages = 0;

  bool empty() const { return first_page == end_page; }
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_PAGE_STATES_H_
