#include "firsttouch/uffd/mutex.h"

#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// Under ThreadSanitizer each of these tests reports a race if an acquisition is
// not announced.

TEST(Mutex, OrdersWhatItGuards) {
  struct {
    Mutex mutex;
    int value ABSL_GUARDED_BY(mutex) = 0;
  } counter;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&counter] {
      for (int n = 0; n < 1000; ++n) {
        MutexLock lock(&counter.mutex);
        ++counter.value;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  MutexLock lock(&counter.mutex);
  EXPECT_EQ(counter.value, 4000);
}

TEST(Mutex, TryLockFailsWhileHeld) {
  Mutex mutex;
  mutex.Lock();
  bool taken = true;
  std::thread([&] {
    if (mutex.TryLock()) {
      mutex.Unlock();
    } else {
      taken = false;
    }
  }).join();
  EXPECT_FALSE(taken);
  mutex.AssertHeld();
  mutex.Unlock();
  if (mutex.TryLock()) {
    mutex.Unlock();
  } else {
    ADD_FAILURE() << "not taken, and still not to be had";
  }
}

TEST(CondVar, HandsAValueOver) {
  struct {
    Mutex mutex;
    CondVar changed;
    int value ABSL_GUARDED_BY(mutex) = 0;
  } box;
  std::thread writer([&box] {
    for (int i = 1; i <= 100; ++i) {
      MutexLock lock(&box.mutex);
      while (box.value != 0) box.changed.Wait(&box.mutex);
      box.value = i;
      box.changed.SignalAll();
    }
  });
  int sum = 0;
  for (int i = 1; i <= 100; ++i) {
    MutexLock lock(&box.mutex);
    while (box.value == 0) box.changed.Wait(&box.mutex);
    sum += box.value;
    box.value = 0;
    box.changed.Signal();
  }
  writer.join();
  EXPECT_EQ(sum, 5050);
}

TEST(CondVar, ReportsAPassedDeadline) {
  Mutex mutex;
  CondVar never;
  MutexLock lock(&mutex);
  while (!never.WaitWithDeadline(&mutex, absl::InfinitePast())) {
  }
  mutex.AssertHeld();
}

}  // namespace
}  // namespace firsttouch
