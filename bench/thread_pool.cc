#include "firsttouch/bench/thread_pool.h"

namespace firsttouch::bench {

ThreadPool::ThreadPool(uint32_t threads) {
  for (uint32_t t = 0; t < threads; ++t) {
    threads_.emplace_back([this, t] { Work(t); });
  }
}

ThreadPool::~ThreadPool() {
  end_ = true;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Run(uint32_t threads, absl::FunctionRef<void(uint32_t)> body) {
  wanted_ = threads;
  body_ = &body;
  ready_.store(0, std::memory_order_relaxed);
  working_.store(static_cast<uint32_t>(threads_.size()),
                 std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (uint32_t working; (working = working_.load()) != 0;) {
    working_.wait(working);
  }
}

void ThreadPool::Work(uint32_t thread) {
  uint32_t seen = 0;
  for (;;) {
    round_.wait(seen, std::memory_order_acquire);
    ++seen;
    if (end_) return;
    if (thread < wanted_) {
      // Those that wake up first wait for the others without sleeping.
      ready_.fetch_add(1, std::memory_order_relaxed);
      while (ready_.load(std::memory_order_relaxed) != wanted_) {
        std::this_thread::yield();
      }
      (*body_)(thread);
    }
    if (working_.fetch_sub(1) == 1) working_.notify_all();
  }
}

}  // namespace firsttouch::bench
