// Which pages the guests of an image touch: what is worth having ready before
// the next one asks for it.
//
// Two sets of pages, counted from the memory's start and not ending where the
// image does (a heap lies behind it): those that guests write, and those that
// they read or write. Programs write to the same pages every time (the top of
// the stack, heads of the allocator's lists, globals), so a slot that gets an
// image for the first time can have them made private in a few calls, where the
// guest would take a fault for each.
//
// Every image has one (Image::working_set()). The service learns it and the
// file format keeps it. It says nothing about the bytes: a wrong set costs
// time, never contents.
//
// What teaches and what does not: a page that a guest wrote to by itself is
// learned. A page that was made private because the set said so is not: it has
// to be found changed first, or is forgotten again once no guest writes it any
// more. A page that a guest read first is learned together with what was mapped
// along with it (fault-around: that costs less than a fault). A page that was
// mapped because the set said so teaches nothing; whether it is read is
// unknown, so it stays in the set until Replace().
//
// Threads: all methods from any thread. Not async-signal-safe: a lock, and
// memory is allocated.

#ifndef FIRSTTOUCH_INIT_WORKING_SET_H_
#define FIRSTTOUCH_INIT_WORKING_SET_H_

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {

class WorkingSet {
 public:
  // A set of pages: page p is bit p % 64 of word p / 64. Ends with its last
  // word that is not zero.
  using Words = std::vector<uint64_t>;

  // Whether anything was learned (or loaded) yet. Until then guests of the
  // image are best left alone and looked at when they go.
  bool known() const { return known_.load(std::memory_order_acquire); }

  // Changes whenever one of the sets does; for callers that keep a copy.
  uint64_t version() const { return version_.load(std::memory_order_acquire); }

  // The sets as they are now.
  Words written() const;
  Words read() const;

  // Adds pages that a guest wrote to. The working set is known from here on,
  // even if there were none. Bits behind kMaxPages are dropped.
  void LearnWritten(std::span<const uint64_t> pages);
  // Adds pages that a guest read; does not make the working set known.
  void LearnRead(std::span<const uint64_t> pages);

  // Takes pages out that guests have stopped writing to.
  void ForgetWritten(std::span<const uint64_t> pages);

  // Puts sets in place of what was known: from a file, or to start again (with
  // empty ones nothing is known).
  void Replace(std::span<const uint64_t> written,
               std::span<const uint64_t> read);

  // The largest memory there is: 1 TiB.
  static constexpr uint64_t kMaxPages = uint64_t{1} << 28;

 private:
  void Changed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  Words written_ ABSL_GUARDED_BY(mutex_);
  Words read_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> known_{false};
  std::atomic<uint64_t> version_{0};
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_WORKING_SET_H_
