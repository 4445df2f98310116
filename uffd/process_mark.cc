#include "firsttouch/uffd/process_mark.h"

#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <new>

#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Used where the kernel wipes no page.
constinit std::atomic<uint64_t> g_word_cleared_at_fork{0};

// Null: no mark has been made. The page that the word lies in stays mapped.
constinit std::atomic<std::atomic<uint64_t>*> g_word{nullptr};

// The last mark that this process or one of its ancestors has made.
constinit std::atomic<uint64_t> g_last_mark{0};

std::atomic<uint64_t>* WordInWipedPage() {
  void* const page = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return nullptr;
  if (madvise(page, kPageBytes, MADV_WIPEONFORK) != 0) {
    munmap(page, kPageBytes);
    return nullptr;
  }
  return new (page) std::atomic<uint64_t>(0);
}

std::atomic<uint64_t>* MakeWord() {
  std::atomic<uint64_t>* const wiped = WordInWipedPage();
  std::atomic<uint64_t>* const fresh =
      wiped != nullptr ? wiped : &g_word_cleared_at_fork;
  if (wiped == nullptr) {
    pthread_atfork(nullptr, nullptr, [] {
      g_word_cleared_at_fork.store(0, std::memory_order_relaxed);
    });
  }
  std::atomic<uint64_t>* there = nullptr;
  if (g_word.compare_exchange_strong(there, fresh, std::memory_order_acq_rel)) {
    return fresh;
  }
  if (wiped != nullptr) munmap(wiped, kPageBytes);
  return there;
}

}  // namespace

ProcessMark ProcessMark::Here() {
  std::atomic<uint64_t>* word = g_word.load(std::memory_order_acquire);
  if (word == nullptr) word = MakeWord();
  uint64_t mark = word->load(std::memory_order_relaxed);
  if (mark == 0) {
    const uint64_t fresh =
        g_last_mark.fetch_add(1, std::memory_order_relaxed) + 1;
    // A mark that another thread has made meanwhile serves as well.
    if (word->compare_exchange_strong(mark, fresh, std::memory_order_relaxed)) {
      mark = fresh;
    }
  }
  return {word, mark};
}

}  // namespace firsttouch
