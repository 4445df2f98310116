// How threads that need a page of an image's PageSource ask for it and wait:
// the part that is on the fault path. Internal to this folder.
//
// Async-signal-safe: takes no lock, allocates nothing, logs nothing, uses no
// thread-local storage, leaves errno alone. It waits, as long as the source
// takes. Threads: any.

#ifndef FIRSTTOUCH_INIT_SOURCE_REQUESTS_H_
#define FIRSTTOUCH_INIT_SOURCE_REQUESTS_H_

#include <atomic>
#include <cstdint>

#include "firsttouch/uffd/signal_mask.h"

namespace firsttouch {

// The state of each chunk, which is what a source is asked for at once.
//
//   kAbsent --request--> kWanted --a thread takes it--> kFetching --> kPresent
//      |                    ^                               |
//      '--early--> kEarly --'                               '--failed-->
//      kAbsent
//
// A state's upper bits count the attempts that failed. Who waits for an attempt
// and finds a larger count knows that it failed, also where another one is
// under way already.
struct SourceRequests {
  enum Kind : uint32_t {
    kAbsent = 0,
    kEarly = 1,  // asked for, and no thread waits
    kWanted = 2,
    kFetching = 3,
    kPresent = 4,
  };
  static constexpr uint32_t kKindBits = 3;
  static constexpr uint32_t kOneAttempt = 1u << kKindBits;

  static Kind KindOf(uint32_t state) {
    return static_cast<Kind>(state & (kOneAttempt - 1));
  }
  static uint32_t AttemptOf(uint32_t state) { return state >> kKindBits; }
  static uint32_t With(uint32_t state, Kind kind) {
    return (state & ~(kOneAttempt - 1)) | kind;
  }

  uint64_t chunk_pages = 0;
  uint64_t chunks = 0;
  // One for each chunk: its state (a futex), the errno of the last attempt
  // that failed, and the link of the list below.
  std::atomic<uint32_t>* states = nullptr;
  std::atomic<int32_t>* errors = nullptr;
  std::atomic<uint32_t>* links = nullptr;
  // Wanted chunks, as a list: its first one plus 1, or 0. Whoever makes a
  // chunk kWanted puts it in; the source's threads take all at once.
  std::atomic<uint32_t> wanted{0};
  // A futex: changes with each request.
  std::atomic<uint32_t> bell{0};
};

// Waits until the pages [first, end) are there. Gives 0, or the errno of the
// attempt that failed while this waited; the next call tries anew. Only in the
// process whose threads answer.
//
// A source may take its time, so signals are taken meanwhile: with the mask
// `*wait_mask`, or, where that is null, the one that the caller has. A handler
// may leave the wait by longjmp: nothing is held, and whoever else waits is
// woken all the same. Until the wait begins signals are blocked; the mask is
// the caller's at the return.
int PullPages(SourceRequests& requests, uint64_t first, uint64_t end,
              const SignalSet* wait_mask) noexcept;

// A word as a futex of this process: sleeps while it has this value (or wakes
// without reason), and wakes all who sleep. errno is as it was.
void FutexWait(const std::atomic<uint32_t>& word, uint32_t value) noexcept;
void FutexWakeAll(const std::atomic<uint32_t>& word) noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_SOURCE_REQUESTS_H_
