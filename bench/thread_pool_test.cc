#include "firsttouch/bench/thread_pool.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

TEST(ThreadPool, EachBodyRunsOnceInTheSameThreadEachTime) {
  ThreadPool pool(3);
  std::vector<std::thread::id> first(3);
  pool.Run(3, [&](uint32_t t) { first[t] = std::this_thread::get_id(); });
  EXPECT_NE(first[0], first[1]);
  EXPECT_NE(first[1], first[2]);
  for (int round = 0; round < 200; ++round) {
    const uint32_t threads = round % 3 + 1;
    std::vector<int> runs(3);
    std::vector<std::thread::id> ids(3);
    pool.Run(threads, [&](uint32_t t) {
      ++runs[t];
      ids[t] = std::this_thread::get_id();
    });
    for (uint32_t t = 0; t < 3; ++t) {
      EXPECT_EQ(runs[t], t < threads ? 1 : 0);
      EXPECT_EQ(ids[t], t < threads ? first[t] : std::thread::id());
    }
  }
}

TEST(ThreadPool, TheyRunAtTheSameTime) {
  ThreadPool pool(2);
  std::atomic<int> here{0};
  pool.Run(2, [&](uint32_t) {
    here.fetch_add(1);
    while (here.load() != 2) std::this_thread::yield();
  });
  EXPECT_EQ(here.load(), 2);
}

}  // namespace
}  // namespace firsttouch::bench
