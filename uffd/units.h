// Lengths and positions that cannot be mixed up.
//
// A byte count, a number of pages and the number of a page are all integers,
// and confusing them is how a guard ends up 4096 times too small. Everything
// below the service passes bytes as `uint64_t ..._bytes` and pages as one of
// the two types here; the name of a conversion says which way it rounds.
//
//   PageCount pages = PagesRoundedUp(size_bytes);      // may end in a page
//   PageIndex last = PageIndex(0) + pages - PageCount(1);
//   uintptr_t address = base + last.offset_bytes();
//
// All of this is constexpr, allocates nothing, takes no lock and may be used
// in a signal handler.

#ifndef FIRSTTOUCH_UFFD_UNITS_H_
#define FIRSTTOUCH_UFFD_UNITS_H_

#include <cassert>
#include <compare>
#include <cstdint>

namespace firsttouch {

// The page size of x86-64. The code that creates a mapping checks it against
// sysconf(_SC_PAGESIZE) once; from there on it is a constant.
inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kPageShift = 12;
static_assert(kPageBytes == uint64_t{1} << kPageShift);

// A number of pages: a length.
class PageCount {
 public:
  constexpr PageCount() = default;
  constexpr explicit PageCount(uint64_t pages) : value_(pages) {}

  // The number of pages.
  constexpr uint64_t value() const { return value_; }

  // The same length in bytes. Wraps beyond 2^52 - 1 pages, more than an
  // address space holds.
  constexpr uint64_t bytes() const { return value_ << kPageShift; }

  friend constexpr auto operator<=>(PageCount, PageCount) = default;

  friend constexpr PageCount operator+(PageCount a, PageCount b) {
    return PageCount(a.value_ + b.value_);
  }
  // `a` must not be smaller than `b` (asserted in debug builds).
  friend constexpr PageCount operator-(PageCount a, PageCount b) {
    assert(a.value_ >= b.value_);
    return PageCount(a.value_ - b.value_);
  }
  constexpr PageCount& operator+=(PageCount other) {
    return *this = *this + other;
  }
  constexpr PageCount& operator-=(PageCount other) {
    return *this = *this - other;
  }

 private:
  uint64_t value_ = 0;
};

// The number of a page, counted from the start of its memory or image: a
// position.
class PageIndex {
 public:
  constexpr PageIndex() = default;
  constexpr explicit PageIndex(uint64_t index) : value_(index) {}

  // The number of the page.
  constexpr uint64_t value() const { return value_; }

  // The position of the page in bytes, from the same start.
  constexpr uint64_t offset_bytes() const { return value_ << kPageShift; }

  friend constexpr auto operator<=>(PageIndex, PageIndex) = default;

  friend constexpr PageIndex operator+(PageIndex a, PageCount b) {
    return PageIndex(a.value_ + b.value());
  }
  // `a` must be at least `b` pages in (asserted in debug builds).
  friend constexpr PageIndex operator-(PageIndex a, PageCount b) {
    assert(a.value_ >= b.value());
    return PageIndex(a.value_ - b.value());
  }
  // The pages from `b` up to, not including, `a`, which must not lie before
  // `b` (asserted in debug builds).
  friend constexpr PageCount operator-(PageIndex a, PageIndex b) {
    assert(a.value_ >= b.value_);
    return PageCount(a.value_ - b.value_);
  }
  constexpr PageIndex& operator++() {
    ++value_;
    return *this;
  }
  constexpr PageIndex& operator+=(PageCount pages) {
    return *this = *this + pages;
  }

 private:
  uint64_t value_ = 0;
};

// The pages that `bytes` bytes need; a partly used page counts. Correct for
// every value up to UINT64_MAX.
constexpr PageCount PagesRoundedUp(uint64_t bytes) {
  return PageCount((bytes >> kPageShift) + ((bytes & (kPageBytes - 1)) != 0));
}

// The pages that `bytes` bytes fill; a partly used page does not count.
constexpr PageCount PagesRoundedDown(uint64_t bytes) {
  return PageCount(bytes >> kPageShift);
}

// The page that holds the byte at `offset_bytes`.
constexpr PageIndex PageContaining(uint64_t offset_bytes) {
  return PageIndex(offset_bytes >> kPageShift);
}

// `bytes` rounded up to whole pages. Wraps to 0 above UINT64_MAX - 4095.
constexpr uint64_t RoundUpToPage(uint64_t bytes) {
  return (bytes + kPageBytes - 1) & ~(kPageBytes - 1);
}

// `bytes` rounded down to whole pages.
constexpr uint64_t RoundDownToPage(uint64_t bytes) {
  return bytes & ~(kPageBytes - 1);
}

// Whether `bytes` (a length or an address) is a multiple of the page size.
constexpr bool IsPageAligned(uint64_t bytes) {
  return (bytes & (kPageBytes - 1)) == 0;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_UNITS_H_
