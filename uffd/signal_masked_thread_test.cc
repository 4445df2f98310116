#include "firsttouch/uffd/signal_masked_thread.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(SignalMaskedThread, TakesNoSignalAndLeavesTheMaskOfItsStarter) {
  sigset_t before;
  pthread_sigmask(SIG_SETMASK, nullptr, &before);
  sigset_t of_thread;
  sigemptyset(&of_thread);
  absl::StatusOr<std::thread> thread = StartSignalMaskedThread(
      "masked", [&] { pthread_sigmask(SIG_SETMASK, nullptr, &of_thread); });
  ASSERT_TRUE(thread.ok()) << thread.status();
  thread->join();
  sigset_t after;
  pthread_sigmask(SIG_SETMASK, nullptr, &after);
  for (const int signal : {SIGTERM, SIGINT, SIGCHLD, SIGUSR1, SIGPROF}) {
    EXPECT_EQ(sigismember(&of_thread, signal), 1) << signal;
    EXPECT_EQ(sigismember(&after, signal), sigismember(&before, signal))
        << signal;
  }
}

// A crash in a host's code that runs in such a thread, for example a
// PageSource, must reach the host's crash handler.
TEST(SignalMaskedThread,
     TakesTheSignalsOfItsOwnFaultsWhateverItsStarterBlocks) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  sigset_t of_thread;
  sigemptyset(&of_thread);
  absl::StatusOr<std::thread> thread = StartSignalMaskedThread(
      "masked", [&] { pthread_sigmask(SIG_SETMASK, nullptr, &of_thread); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ASSERT_TRUE(thread.ok()) << thread.status();
  thread->join();
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS}) {
    EXPECT_EQ(sigismember(&of_thread, signal), 0) << signal;
  }
}

TEST(SignalMaskedThreadDeathTest, ACrashInItReachesTheHostsHandler) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        struct sigaction action = {};
        action.sa_handler = [](int) { _exit(7); };
        sigaction(SIGSEGV, &action, nullptr);
        absl::StatusOr<std::thread> thread =
            StartSignalMaskedThread("masked", [] {
              volatile uintptr_t null = 16;
              *reinterpret_cast<volatile char*>(null) = 1;
            });
        thread->join();
      },
      testing::ExitedWithCode(7), "");
}

TEST(SignalMaskedThread, IsNamedAsFarAsTheKernelTakesIt) {
  std::string name;
  absl::StatusOr<std::thread> thread =
      StartSignalMaskedThread("sixteen and more of bytes", [&] {
        char text[32] = {};
        // The starting thread sets the name, perhaps a moment later.
        while (pthread_getname_np(pthread_self(), text, sizeof text) == 0 &&
               std::string(text).substr(0, 7) != "sixteen") {
          std::this_thread::yield();
        }
        name = text;
      });
  ASSERT_TRUE(thread.ok()) << thread.status();
  thread->join();
  EXPECT_EQ(name, "sixteen and mor");
}

}  // namespace
}  // namespace firsttouch
