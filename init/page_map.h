// A set of pages of one memory, one bit a page: which pages an image stores.
//
// What it is for: "is page p in the set", "how many", "the next run of pages
// that are (or are not) in it", and the raw words for code that wants 64 pages
// at a time. It is sparse in what it costs, not in how it is addressed: the
// words of a 1 TiB memory are 32 MiB of address space, of which only the 4 KiB
// blocks that hold a set bit are ever backed by memory. So two pages 1 GB apart
// cost 8 KiB, and reading a word never needs a lookup.
//
// When not to use it: for page contents (see image.h), or for a set that
// several threads change (nothing here is atomic).
//
// Example:
//   absl::StatusOr<PageMap> map = PageMap::Create(PageCount(1000));
//   if (!map.ok()) return map.status();
//   map->Insert(PageIndex(3));
//   map->Insert(PageIndex(4));
//   for (auto run = map->NextRun(PageIndex(0)); run.has_value();
//        run = map->NextRun(run->end())) {
//     // run->first == 3, run->length == 2
//   }
//
// Threads: any number may read a map that is not changed meanwhile. Signals:
// Contains, Word and words() only read memory; they take no lock, allocate
// nothing and may be used in a signal handler. Create and the destructor may
// not.

#ifndef FIRSTTOUCH_INIT_PAGE_MAP_H_
#define FIRSTTOUCH_INIT_PAGE_MAP_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// A maximal stretch of neighbouring pages: first, first + 1, ...
struct PageRun {
  PageIndex first{0};
  PageCount length{0};

  PageIndex end() const { return first + length; }

  friend bool operator==(const PageRun& a, const PageRun& b) {
    return a.first == b.first && a.length == b.length;
  }
};

class PageMap {
 public:
  // The largest map: 2^28 pages, 1 TiB of memory.
  static constexpr uint64_t kMaxPages = uint64_t{1} << 28;

  // An empty set that can hold the pages 0 .. pages - 1. Zero pages is legal.
  //
  // Errors: InvalidArgument when `pages` is above kMaxPages; ResourceExhausted
  // (with errno) when there is no address space for the words.
  static absl::StatusOr<PageMap> Create(PageCount pages);

  // A map of zero pages.
  PageMap() = default;
  PageMap(PageMap&& other) noexcept;
  PageMap& operator=(PageMap&& other) noexcept;
  PageMap(const PageMap&) = delete;
  PageMap& operator=(const PageMap&) = delete;
  ~PageMap();

  // How many pages the map can hold, and how many are in the set.
  PageCount pages() const { return pages_; }
  uint64_t count() const { return count_; }

  // Whether the page is in the set. A page at or past pages() is not.
  bool Contains(PageIndex page) const {
    if (page.value() >= pages_.value()) return false;
    return (words_[page.value() / kPagesPerWord] >>
            (page.value() % kPagesPerWord)) &
           1;
  }

  // Puts a page in or takes it out; true when that changed the set. The page
  // must be below pages(): anything else ends the process with a message, in
  // every build, since the bit would land in foreign memory.
  bool Insert(PageIndex page);
  bool Erase(PageIndex page);

  // Puts all pages of a run in, 64 at a time. The run must end within pages(),
  // as above.
  void InsertRun(PageRun run);

  // The first maximal run of pages in the set (NextRun) or of pages below
  // pages() that are not in it (NextGap), cut to begin at or after `from`;
  // nullopt when there is none. `from` may be anything.
  std::optional<PageRun> NextRun(PageIndex from) const;
  // As far as it lies before `end`: does not look for the end of a run that may
  // be all of the map. nullopt where none begins before `end`.
  std::optional<PageRun> NextRun(PageIndex from, PageIndex end) const;
  std::optional<PageRun> NextGap(PageIndex from) const;

  // How many pages of [from, from + length) are in the set. The range may reach
  // past pages(); nothing there is.
  uint64_t CountIn(PageIndex from, PageCount length) const;

  // The bits: page p is bit p % 64 of word p / 64. Bits past pages() are zero.
  // ceil(pages / 64) words, in memory that does not move while the map lives
  // (moving the PageMap object does not move them). Null for a map of no pages.
  const uint64_t* words() const { return words_; }
  size_t word_count() const {
    return (pages_.value() + kPagesPerWord - 1) / kPagesPerWord;
  }

  // Word `index` of words(); zero at or past word_count().
  uint64_t Word(size_t index) const {
    return index < word_count() ? words_[index] : 0;
  }

 private:
  // As uffd/page_words.h has it, which is not for users.
  static constexpr uint64_t kPagesPerWord = 64;

  // The first page of [from, end) whose membership is `wanted`, or `end`, which
  // is at most pages().
  uint64_t Find(uint64_t from, uint64_t end, bool wanted) const;
  std::optional<PageRun> Next(uint64_t from, uint64_t end, bool wanted) const;
  uint64_t* WordOf(PageIndex page, const char* operation);
  void Free();

  PageCount pages_{0};
  uint64_t count_ = 0;
  uint64_t* words_ = nullptr;  // Its own mapping: see the top of this file.
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_PAGE_MAP_H_
