#include "firsttouch/uffd/quiet_thread.h"

#include <pthread.h>
#include <signal.h>

#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(QuietThread, TakesNoSignalAndLeavesTheMaskOfItsStarter) {
  sigset_t before;
  pthread_sigmask(SIG_SETMASK, nullptr, &before);
  sigset_t of_thread;
  sigemptyset(&of_thread);
  absl::StatusOr<std::thread> thread = StartQuietThread(
      "quiet", [&] { pthread_sigmask(SIG_SETMASK, nullptr, &of_thread); });
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

TEST(QuietThread, IsNamedAsFarAsTheKernelTakesIt) {
  std::string name;
  absl::StatusOr<std::thread> thread =
      StartQuietThread("sixteen and more of bytes", [&] {
        char text[32] = {};
        // Named by the one that starts it, perhaps a moment later.
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
