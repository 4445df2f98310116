// Counts the system calls of this program, run again with an argument.
#include "firsttouch/examples/system_calls.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace firsttouch::examples {
namespace {

void Handler(int) {}

// The work of the counted program.
int Counted(const std::string& what) {
  struct sigaction action = {};
  action.sa_handler = &Handler;
  sigaction(SIGUSR1, &action, nullptr);
  syscall(SYS_sched_yield);
  BeginCountedPart();
  if (what == "yields") {
    for (int i = 0; i < 7; ++i) syscall(SYS_sched_yield);
  } else if (what == "signal") {
    raise(SIGUSR1);
  } else if (what == "thread") {
    std::thread([] {
      for (int i = 0; i < 5; ++i) syscall(SYS_sched_yield);
    }).join();
  } else if (what == "dies") {
    raise(SIGKILL);
  }
  EndCountedPart();
  syscall(SYS_sched_yield);
  return what == "thread" ? 3 : 0;
}

absl::StatusOr<SystemCalls> Count(const std::string& what) {
  return CountSystemCalls({"/proc/self/exe", "--counted=" + what});
}

// Skips the test where ptrace is refused.
class SystemCallsTest : public testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<SystemCalls> calls = Count("nothing");
    if (!calls.ok()) GTEST_SKIP() << "ptrace: " << calls.status();
    EXPECT_EQ(calls->total, 0u);
  }
};

TEST_F(SystemCallsTest, CountsWhatLiesBetweenTheMarks) {
  const absl::StatusOr<SystemCalls> calls = Count("yields");
  ASSERT_TRUE(calls.ok()) << calls.status();
  EXPECT_EQ(calls->total, 7u);
  EXPECT_EQ(calls->by_name.at("sched_yield"), 7u);
  EXPECT_EQ(calls->exit_status, 0);
}

TEST_F(SystemCallsTest, CountsTheReturnFromASignalHandler) {
  const absl::StatusOr<SystemCalls> calls = Count("signal");
  ASSERT_TRUE(calls.ok()) << calls.status();
  EXPECT_EQ(calls->by_name.at("rt_sigreturn"), 1u);
}

TEST_F(SystemCallsTest, CountsOtherThreads) {
  const absl::StatusOr<SystemCalls> calls = Count("thread");
  ASSERT_TRUE(calls.ok()) << calls.status();
  EXPECT_EQ(calls->by_name.at("sched_yield"), 5u);
  EXPECT_EQ(calls->exit_status, 3);
}

TEST_F(SystemCallsTest, CountsWhatAFunctionDoes) {
  signal(SIGBUS, &Handler);
  const absl::StatusOr<SystemCalls> calls = CountSystemCallsOf([] {
    for (int part = 0; part < 2; ++part) {
      syscall(SYS_sched_yield);
      BeginCountedPart();
      syscall(SYS_sched_yield);
      kill(getpid(), SIGBUS);
      EndCountedPart();
    }
  });
  signal(SIGBUS, SIG_DFL);
  ASSERT_TRUE(calls.ok()) << calls.status();
  EXPECT_EQ(calls->by_name.at("sched_yield"), 2u);
  EXPECT_EQ(calls->signals, 2u);
  EXPECT_EQ(calls->parts, 2u);
  EXPECT_EQ(calls->exit_status, 0);
}

TEST_F(SystemCallsTest, WaitsForThreadsThatAreStillBusy) {
  const absl::StatusOr<SystemCalls> calls = CountSystemCallsOf([] {
    int ends[2];
    if (pipe(ends) != 0) return;
    std::thread other([&] {
      for (int i = 0; i < 300; ++i) getppid();
      char byte;
      static_cast<void>(!read(ends[0], &byte, 1));
    });
    WaitUntilOtherThreadsSleep();
    BeginCountedPart();
    EndCountedPart();
    static_cast<void>(!write(ends[1], "", 1));
    other.join();
  });
  ASSERT_TRUE(calls.ok()) << calls.status();
  EXPECT_EQ(calls->parts, 1u);
  EXPECT_EQ(calls->total, 0u);
}

TEST_F(SystemCallsTest, AFunctionThatDiesIsAnError) {
  const absl::Status status = CountSystemCallsOf([] {
                                BeginCountedPart();
                                raise(SIGKILL);
                              }).status();
  EXPECT_EQ(status, absl::AbortedError("the counted program died by signal 9"));
}

TEST_F(SystemCallsTest, APartThatNeverEndsIsNoPart) {
  const absl::StatusOr<SystemCalls> calls =
      CountSystemCallsOf([] { BeginCountedPart(); });
  ASSERT_TRUE(calls.ok()) << calls.status();
  EXPECT_EQ(calls->parts, 0u);
}

TEST_F(SystemCallsTest, AProgramThatDiesIsAnError) {
  const absl::Status status = Count("dies").status();
  EXPECT_EQ(status, absl::AbortedError("the counted program died by signal 9"));
}

TEST_F(SystemCallsTest, AProgramThatIsNotThereIsAnError) {
  const absl::Status status = CountSystemCalls({"/no/such/program"}).status();
  EXPECT_EQ(status, absl::NotFoundError("cannot execute /no/such/program"));
}

}  // namespace
}  // namespace firsttouch::examples

int main(int argc, char** argv) {
  constexpr char kFlag[] = "--counted=";
  if (argc == 2 && strncmp(argv[1], kFlag, sizeof(kFlag) - 1) == 0) {
    return firsttouch::examples::Counted(argv[1] + sizeof(kFlag) - 1);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
