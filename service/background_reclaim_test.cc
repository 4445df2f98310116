#include "firsttouch/service/background_reclaim.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/uffd/mutex.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// Work that begins each round only when the test allows it.
class Work {
 public:
  std::unique_ptr<BackgroundReclaim> Start() {
    absl::StatusOr<std::unique_ptr<BackgroundReclaim>> reclaim =
        BackgroundReclaim::Start(
            "a pool with a long name", [this] { return Do(); },
            absl::ZeroDuration());
    EXPECT_TRUE(reclaim.ok()) << reclaim.status();
    return reclaim.ok() ? *std::move(reclaim) : nullptr;
  }

  void WaitUntilBegun(int times) {
    MutexLock lock(&mutex_);
    while (begun_ < times) changed_.Wait(&mutex_);
  }
  // Makes the work ask for this many rounds in all without another Wake().
  void Want(int rounds) {
    MutexLock lock(&mutex_);
    rounds_ = rounds;
  }
  // Allows this many more rounds.
  void Allow(int times) {
    MutexLock lock(&mutex_);
    allowed_ += times;
    changed_.SignalAll();
  }
  void WaitUntilDone(int times) {
    MutexLock lock(&mutex_);
    while (done_ < times) changed_.Wait(&mutex_);
  }
  int done() {
    MutexLock lock(&mutex_);
    return done_;
  }
  std::string name() {
    MutexLock lock(&mutex_);
    return name_;
  }
  bool blocks_signals() {
    MutexLock lock(&mutex_);
    return blocks_signals_;
  }

 private:
  bool Do() {
    char name[16] = {};
    pthread_getname_np(pthread_self(), name, sizeof(name));
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    MutexLock lock(&mutex_);
    name_ = name;
    blocks_signals_ =
        sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGUSR1) == 1;
    ++begun_;
    changed_.SignalAll();
    while (allowed_ <= done_) changed_.Wait(&mutex_);
    ++done_;
    changed_.SignalAll();
    return done_ < rounds_;
  }

  Mutex mutex_;
  CondVar changed_;
  int begun_ ABSL_GUARDED_BY(mutex_) = 0;
  int allowed_ ABSL_GUARDED_BY(mutex_) = 0;
  int rounds_ ABSL_GUARDED_BY(mutex_) = 0;
  int done_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string name_ ABSL_GUARDED_BY(mutex_);
  bool blocks_signals_ ABSL_GUARDED_BY(mutex_) = false;
};

TEST(BackgroundReclaimTest, EndsWithoutEverHavingWorked) {
  Work work;
  std::unique_ptr<BackgroundReclaim> reclaim = work.Start();
  reclaim.reset();
  EXPECT_EQ(work.done(), 0);
}

TEST(BackgroundReclaimTest, WorksOnceForAllThatCameWhileItWorked) {
  Work work;
  std::unique_ptr<BackgroundReclaim> reclaim = work.Start();
  reclaim->Wake();
  work.WaitUntilBegun(1);
  for (int i = 0; i < 5; ++i) reclaim->Wake();
  work.Allow(10);
  // A Wake() during the first round is never lost, and five of them are one.
  work.WaitUntilDone(2);
  reclaim.reset();
  EXPECT_EQ(work.done(), 2);
}

TEST(BackgroundReclaimTest, ItsEndWaitsForTheWorkAndBeginsNoOther) {
  Work work;
  std::unique_ptr<BackgroundReclaim> reclaim = work.Start();
  reclaim->Wake();
  work.WaitUntilBegun(1);
  std::thread allow([&] { work.Allow(10); });
  reclaim.reset();
  EXPECT_EQ(work.done(), 1);
  allow.join();
}

TEST(BackgroundReclaimTest, GoesOnAsLongAsThereIsMore) {
  Work work;
  work.Want(4);
  work.Allow(10);
  std::unique_ptr<BackgroundReclaim> reclaim = work.Start();
  reclaim->Wake();
  work.WaitUntilDone(4);
  reclaim.reset();
  EXPECT_EQ(work.done(), 4);
}

// Destroying the object ends a rest of an hour at once.
TEST(BackgroundReclaimTest, RestsBetweenRoundsButNotAtItsEnd) {
  std::atomic<int> rounds{0};
  absl::StatusOr<std::unique_ptr<BackgroundReclaim>> reclaim =
      BackgroundReclaim::Start(
          "rest",
          [&] {
            ++rounds;
            return true;
          },
          absl::Hours(1));
  ASSERT_TRUE(reclaim.ok()) << reclaim.status();
  (*reclaim)->Wake();
  while (rounds == 0) std::this_thread::yield();
  (*reclaim)->Wake();
  reclaim->reset();
  EXPECT_EQ(rounds, 1);
}

TEST(BackgroundReclaimTest, HasANameAndBlocksTheHostsSignals) {
  Work work;
  work.Allow(1);
  std::unique_ptr<BackgroundReclaim> reclaim = work.Start();
  reclaim->Wake();
  work.WaitUntilDone(1);
  EXPECT_EQ(work.name(), "ft-trim:a pool ");
  EXPECT_TRUE(work.blocks_signals());
  // The signal mask of the thread that called Start() is unchanged.
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGTERM), 0);
}

TEST(BackgroundReclaimTest, NoWakeIsLost) {
  Work work;
  work.Allow(1'000'000);
  std::unique_ptr<BackgroundReclaim> reclaim = work.Start();
  for (int round = 1; round <= 200; ++round) {
    const int before = work.done();
    std::vector<std::thread> wakers;
    for (int i = 0; i < 2; ++i) {
      wakers.emplace_back([&] { reclaim->Wake(); });
    }
    for (std::thread& waker : wakers) waker.join();
    work.WaitUntilDone(before + 1);
  }
}

}  // namespace
}  // namespace firsttouch
