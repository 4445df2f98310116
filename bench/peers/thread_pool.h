// Threads that measure at the same time.

#ifndef FIRSTTOUCH_BENCH_PEERS_THREAD_POOL_H_
#define FIRSTTOUCH_BENCH_PEERS_THREAD_POOL_H_

#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace firsttouch::bench {

// Threads that stay the same for as long as this is there: what a pool keeps
// for one is found by it in the next round. The calling thread is the first.
class ThreadPool {
 public:
  explicit ThreadPool(uint32_t threads) : together_(threads) {
    for (uint32_t thread = 1; thread < threads; ++thread) {
      others_.emplace_back([this, thread] {
        for (together_.arrive_and_wait(); body_; together_.arrive_and_wait()) {
          body_(thread);
          together_.arrive_and_wait();
        }
      });
    }
  }
  ~ThreadPool() {
    body_ = nullptr;
    together_.arrive_and_wait();
    for (std::thread& other : others_) other.join();
  }

  // Calls body(thread) in all of them at once. Those that wake up first wait
  // for the others without sleeping.
  void Run(absl::FunctionRef<void(uint32_t)> body) {
    std::atomic<size_t> ready = 0;
    body_ = [&](uint32_t thread) {
      ready.fetch_add(1, std::memory_order_relaxed);
      while (ready.load(std::memory_order_relaxed) != others_.size() + 1) {
        std::this_thread::yield();
      }
      body(thread);
    };
    together_.arrive_and_wait();
    body_(0);
    together_.arrive_and_wait();
  }

 private:
  std::barrier<> together_;
  std::function<void(uint32_t)> body_;
  std::vector<std::thread> others_;
};

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_PEERS_THREAD_POOL_H_
