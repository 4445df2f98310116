#include "firsttouch/init/page_map.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/page_words.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

absl::StatusOr<PageMap> PageMap::Create(PageCount pages) {
  if (pages.value() > kMaxPages) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a page map of ", pages.value(), " pages exceeds the limit ", "of ",
        kMaxPages, " pages (1 TiB of memory)"));
  }
  PageMap map;
  const size_t bytes = WordsFor(pages.value()) * sizeof(uint64_t);
  if (bytes != 0) {
    // Anonymous memory reads as zero and is backed by memory only where it has
    // been written: that is what makes the set sparse.
    void* words = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (words == MAP_FAILED) {
      const int error = errno;
      return absl::ErrnoToStatus(
          error, absl::StrCat("mmap of ", bytes, " bytes for a page map of ",
                              pages.value(), " pages failed with errno ", error,
                              error == ENOMEM ? ShortageText(bytes) : ""));
    }
    map.words_ = static_cast<uint64_t*>(words);
  }
  map.pages_ = pages;
  return map;
}

PageMap::PageMap(PageMap&& other) noexcept
    : pages_(std::exchange(other.pages_, PageCount(0))),
      count_(std::exchange(other.count_, 0)),
      words_(std::exchange(other.words_, nullptr)) {}

PageMap& PageMap::operator=(PageMap&& other) noexcept {
  if (this != &other) {
    Free();
    pages_ = std::exchange(other.pages_, PageCount(0));
    count_ = std::exchange(other.count_, 0);
    words_ = std::exchange(other.words_, nullptr);
  }
  return *this;
}

PageMap::~PageMap() { Free(); }

void PageMap::Free() {
  if (words_ != nullptr) munmap(words_, word_count() * sizeof(uint64_t));
}

uint64_t* PageMap::WordOf(PageIndex page, const char* operation) {
  if (page.value() >= pages_.value()) {
    std::fprintf(
        stderr, "firsttouch: PageMap::%s of page %llu in a map of %llu pages\n",
        operation, static_cast<unsigned long long>(page.value()),
        static_cast<unsigned long long>(pages_.value()));
    std::abort();
  }
  return &words_[page.value() / kPagesPerWord];
}

bool PageMap::Insert(PageIndex page) {
  uint64_t& word = *WordOf(page, "Insert");
  const uint64_t bit = uint64_t{1} << (page.value() % kPagesPerWord);
  if ((word & bit) != 0) return false;
  word |= bit;
  ++count_;
  return true;
}

void PageMap::InsertRun(PageRun run) {
  if (run.length == PageCount(0)) return;
  // Also where first + length wraps.
  WordOf(run.first, "InsertRun");
  if (run.length > pages_ - (run.first - PageIndex(0))) {
    WordOf(PageIndex(0) + pages_, "InsertRun");
  }
  const uint64_t end = run.end().value();
  // All of a long run's words are about to be there: in one call, where the
  // kernel has it (5.14), rather than in a fault for each 4 KiB of them.
  const auto at = [&](uint64_t page) {
    return RoundDownToPage(
        reinterpret_cast<uintptr_t>(&words_[page / kPagesPerWord]));
  };
  constexpr int kMadvPopulateWrite = 23;
  if (const uintptr_t first = at(run.first.value()), last = at(end - 1);
      last > first) {
    madvise(reinterpret_cast<void*>(first), last + kPageBytes - first,
            kMadvPopulateWrite);
  }
  ForEachWordOf(run.first.value(), end, [&](uint64_t index, uint64_t bits) {
    const uint64_t fresh = bits & ~words_[index];
    // Most words of a long run; to count bits costs more than to look.
    count_ += fresh == ~uint64_t{0} ? kPagesPerWord : std::popcount(fresh);
    words_[index] |= bits;
  });
}

bool PageMap::Erase(PageIndex page) {
  uint64_t& word = *WordOf(page, "Erase");
  const uint64_t bit = uint64_t{1} << (page.value() % kPagesPerWord);
  if ((word & bit) == 0) return false;
  word &= ~bit;
  --count_;
  return true;
}

uint64_t PageMap::Find(uint64_t from, uint64_t end, bool wanted) const {
  if (from >= end) return end;
  size_t index = from / kPagesPerWord;
  // Bits below `from` are masked out; after the first word none are.
  uint64_t mask = ~uint64_t{0} << (from % kPagesPerWord);
  for (; index * kPagesPerWord < end; ++index, mask = ~uint64_t{0}) {
    const uint64_t word = (wanted ? words_[index] : ~words_[index]) & mask;
    if (word != 0) {
      // The word reaches past the end, where the complement has ones.
      return std::min(index * kPagesPerWord + std::countr_zero(word), end);
    }
  }
  return end;
}

std::optional<PageRun> PageMap::Next(uint64_t from, uint64_t end,
                                     bool wanted) const {
  const uint64_t first = Find(from, end, wanted);
  if (first >= end) return std::nullopt;
  return PageRun{PageIndex(first),
                 PageCount(Find(first, end, !wanted) - first)};
}

std::optional<PageRun> PageMap::NextRun(PageIndex from) const {
  return Next(from.value(), pages_.value(), true);
}

std::optional<PageRun> PageMap::NextRun(PageIndex from, PageIndex end) const {
  return Next(from.value(), std::min(end.value(), pages_.value()), true);
}

std::optional<PageRun> PageMap::NextGap(PageIndex from) const {
  return Next(from.value(), pages_.value(), false);
}

uint64_t PageMap::CountIn(PageIndex from, PageCount length) const {
  const uint64_t begin = std::min(from.value(), pages_.value());
  const uint64_t end = begin + std::min(length.value(), pages_.value() - begin);
  uint64_t count = 0;
  ForEachWordOf(begin, end, [&](uint64_t index, uint64_t bits) {
    count += std::popcount(words_[index] & bits);
  });
  return count;
}

}  // namespace firsttouch
