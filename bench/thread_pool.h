// Threads that do the same thing from the same moment on, again and again.

#ifndef FIRSTTOUCH_BENCH_THREAD_POOL_H_
#define FIRSTTOUCH_BENCH_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace firsttouch::bench {

// The threads stay the same for as long as the pool lives: what a memory pool
// keeps for a thread is found by it in the next round. Between rounds they
// sleep.
class ThreadPool {
 public:
  explicit ThreadPool(uint32_t threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  // Runs body(0) to body(threads - 1) at the same time, on the first so many of
  // the pool's threads, each always on the same one, and returns when all are
  // done.
  void Run(uint32_t threads, absl::FunctionRef<void(uint32_t)> body);

 private:
  void Work(uint32_t thread);

  // Counts rounds; what follows is set before it moves.
  std::atomic<uint32_t> round_{0};
  bool end_ = false;
  uint32_t wanted_ = 0;
  const absl::FunctionRef<void(uint32_t)>* body_ = nullptr;
  std::atomic<uint32_t> ready_{0};
  // Threads that have still to see the round's end.
  std::atomic<uint32_t> working_{0};
  std::vector<std::thread> threads_;
};

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_THREAD_POOL_H_
