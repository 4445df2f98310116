// Sets of pages as words of 64 bits: page p is bit p % 64 of word p / 64.
//
// What a set is kept in differs (a mapping of its own, a vector, planes that
// signal handlers change); the arithmetic is here. All of it is pure, allocates
// nothing and may be used in a signal handler.

#ifndef FIRSTTOUCH_UFFD_PAGE_WORDS_H_
#define FIRSTTOUCH_UFFD_PAGE_WORDS_H_

#include <bit>
#include <cstdint>

namespace firsttouch {

inline constexpr uint64_t kPagesPerWord = 64;

// The number of words for `pages` pages.
constexpr uint64_t WordsFor(uint64_t pages) {
  return (pages + kPagesPerWord - 1) / kPagesPerWord;
}

// The bits of word `index` that lie in pages [first_page, end_page).
constexpr uint64_t WordMask(uint64_t index, uint64_t first_page,
                            uint64_t end_page) {
  const uint64_t word_first = index * kPagesPerWord;
  const uint64_t from = first_page > word_first ? first_page - word_first : 0;
  const uint64_t to = end_page > word_first ? end_page - word_first : 0;
  if (from >= kPagesPerWord || to <= from) return 0;
  const uint64_t upto =
      to >= kPagesPerWord ? ~uint64_t{0} : (uint64_t{1} << to) - 1;
  return upto & (~uint64_t{0} << from);
}

// Calls visit(index, bits) for each word that has some of the pages
// [first_page, end_page), ascending, with the bits of those.
template <typename Visit>
constexpr void ForEachWordOf(uint64_t first_page, uint64_t end_page,
                             Visit visit) {
  while (first_page < end_page) {
    const uint64_t index = first_page / kPagesPerWord;
    visit(index, WordMask(index, first_page, end_page));
    first_page = (index + 1) * kPagesPerWord;
  }
}

// Calls visit(first_bit, length) for each run of ones in `bits`, ascending.
template <typename Visit>
constexpr void ForEachRun(uint64_t bits, Visit visit) {
  while (bits != 0) {
    const int first = std::countr_zero(bits);
    const int length = std::countr_one(bits >> first);
    visit(static_cast<uint64_t>(first), static_cast<uint64_t>(length));
    if (first + length >= 64) return;
    bits &= ~uint64_t{0} << (first + length);
  }
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_PAGE_WORDS_H_
