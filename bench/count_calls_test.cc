#include "firsttouch/bench/count_calls.h"

#include <signal.h>
#include <unistd.h>

#include <thread>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

bool PtraceRefused(const absl::StatusOr<CallCounts>& counts) {
  return counts.status().code() == absl::StatusCode::kPermissionDenied;
}

TEST(CountCalls, CountsBetweenTheMarksOnly) {
  const auto counts = CountCalls([](absl::FunctionRef<void()> mark) {
    getppid();
    mark();
    for (int i = 0; i < 7; ++i) getppid();
    mark();
    getppid();
  });
  if (PtraceRefused(counts)) GTEST_SKIP() << "ptrace is refused here";
  ASSERT_TRUE(counts.ok()) << counts.status();
  EXPECT_EQ(counts->system_calls, 7u);
  EXPECT_EQ(counts->signals, 0u);
}

TEST(CountCalls, CountsSignalsAndTheirReturn) {
  const auto counts = CountCalls([](absl::FunctionRef<void()> mark) {
    signal(SIGBUS, [](int) {});
    mark();
    kill(getpid(), SIGBUS);
    mark();
  });
  if (PtraceRefused(counts)) GTEST_SKIP() << "ptrace is refused here";
  ASSERT_TRUE(counts.ok()) << counts.status();
  EXPECT_EQ(counts->signals, 1u);
  // getpid, kill, rt_sigreturn.
  EXPECT_EQ(counts->system_calls, 3u);
}

TEST(CountCalls, CountsOtherThreads) {
  const auto counts = CountCalls([](absl::FunctionRef<void()> mark) {
    std::thread other([&] {
      mark();
      getppid();
      mark();
    });
    other.join();
  });
  if (PtraceRefused(counts)) GTEST_SKIP() << "ptrace is refused here";
  ASSERT_TRUE(counts.ok()) << counts.status();
  // The first thread may enter its futex(2) meanwhile.
  EXPECT_GE(counts->system_calls, 1u);
  EXPECT_LE(counts->system_calls, 2u);
}

TEST(CountCalls, WaitsForThreadsThatAreStillBusy) {
  const auto counts = CountCalls([](absl::FunctionRef<void()> mark) {
    int ends[2];
    if (pipe(ends) != 0) return;
    std::thread other([&] {
      for (int i = 0; i < 300; ++i) getppid();
      char byte;
      static_cast<void>(!read(ends[0], &byte, 1));
    });
    WaitUntilOtherThreadsSleep();
    mark();
    mark();
    static_cast<void>(!write(ends[1], "", 1));
    other.join();
  });
  if (PtraceRefused(counts)) GTEST_SKIP() << "ptrace is refused here";
  ASSERT_TRUE(counts.ok()) << counts.status();
  EXPECT_EQ(counts->system_calls, 0u);
}

TEST(CountCalls, AChildThatDiesIsAnError) {
  const auto counts = CountCalls([](absl::FunctionRef<void()> mark) {
    mark();
    raise(SIGKILL);
  });
  if (PtraceRefused(counts)) GTEST_SKIP() << "ptrace is refused here";
  EXPECT_EQ(counts.status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(counts.status().message(), "the counted program died by signal 9");
}

TEST(CountCalls, ACountThatNeverEndsIsAnError) {
  const auto counts =
      CountCalls([](absl::FunctionRef<void()> mark) { mark(); });
  if (PtraceRefused(counts)) GTEST_SKIP() << "ptrace is refused here";
  EXPECT_EQ(counts.status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(counts.status().message(),
            "the counted child ended with exit status 0 after 0 counted parts; "
            "it should be 0 after 1");
}

}  // namespace
}  // namespace firsttouch::bench
