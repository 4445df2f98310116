// On the fault path: see source_requests.h.

#include "firsttouch/init/source_requests.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "firsttouch/uffd/signal_mask.h"

namespace firsttouch {
namespace {

using Requests = SourceRequests;

void Want(Requests& requests, uint64_t chunk) {
  uint32_t head = requests.wanted.load(std::memory_order_relaxed);
  do {
    requests.links[chunk].store(head, std::memory_order_relaxed);
  } while (!requests.wanted.compare_exchange_weak(
      head, static_cast<uint32_t>(chunk) + 1, std::memory_order_release,
      std::memory_order_relaxed));
  requests.bell.fetch_add(1, std::memory_order_seq_cst);
  FutexWakeAll(requests.bell);
}

int PullChunk(Requests& requests, uint64_t chunk, const SignalSet* wait_mask) {
  std::atomic<uint32_t>& word = requests.states[chunk];
  // Between the two steps of a request (the chunk is kWanted, and is in the
  // list) nobody else can make it: whoever left here would leave others to wait
  // for ever.
  const SignalSet before = ChangeSignalMask(SIG_BLOCK, kAsynchronousSignals);
  uint32_t state = word.load(std::memory_order_acquire);
  while (Requests::KindOf(state) == Requests::kAbsent ||
         Requests::KindOf(state) == Requests::kEarly) {
    const uint32_t wanted = Requests::With(state, Requests::kWanted);
    if (word.compare_exchange_weak(state, wanted, std::memory_order_acq_rel,
                                   std::memory_order_acquire)) {
      state = wanted;
      Want(requests, chunk);
    }
  }
  const uint32_t attempt = Requests::AttemptOf(state);
  ChangeSignalMask(SIG_SETMASK, wait_mask == nullptr ? before : *wait_mask);
  int error = 0;
  while (Requests::KindOf(state) != Requests::kPresent) {
    if (Requests::AttemptOf(state) != attempt) {
      error = requests.errors[chunk].load(std::memory_order_relaxed);
      break;
    }
    FutexWait(word, state);
    state = word.load(std::memory_order_acquire);
  }
  if (wait_mask != nullptr) ChangeSignalMask(SIG_SETMASK, before);
  return error;
}

}  // namespace

void FutexWait(const std::atomic<uint32_t>& word, uint32_t value) noexcept {
  const int saved_errno = errno;
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr);
  errno = saved_errno;
}

void FutexWakeAll(const std::atomic<uint32_t>& word) noexcept {
  const int saved_errno = errno;
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX);
  errno = saved_errno;
}

int PullPages(Requests& requests, uint64_t first, uint64_t end,
              const SignalSet* wait_mask) noexcept {
  for (uint64_t chunk = first / requests.chunk_pages;
       chunk * requests.chunk_pages < end; ++chunk) {
    const uint32_t state =
        requests.states[chunk].load(std::memory_order_acquire);
    if (Requests::KindOf(state) == Requests::kPresent) continue;
    if (const int error = PullChunk(requests, chunk, wait_mask)) {
      return error;
    }
  }
  return 0;
}

}  // namespace firsttouch
