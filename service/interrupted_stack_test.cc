#include "firsttouch/service/interrupted_stack.h"

#include <signal.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "firsttouch/uffd/test_util.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

// Where things ran, in addresses of local variables.
struct Seen {
  uintptr_t handler = 0;
  int signal = 0;
  int code = 0;
  void* value = nullptr;
  bool context_is_near = false;
  bool came_back = false;
};
Seen g_seen;

void Handler(int signal, siginfo_t* info, void* context) {
  int here = 0;
  g_seen.handler = reinterpret_cast<uintptr_t>(&here);
  g_seen.signal = signal;
  g_seen.code = info->si_code;
  g_seen.value = info->si_value.sival_ptr;
  // The frame has come along: it lies just above.
  g_seen.context_is_near =
      reinterpret_cast<uintptr_t>(context) - g_seen.handler < 64 * 1024;
  // What the handler leaves in the context holds for the interrupted code.
  sigaddset(&static_cast<ucontext_t*>(context)->uc_sigmask, SIGUSR2);
}

void Installed(int signal, siginfo_t* info, void* context) {
  CallOnInterruptedStack(&Handler, signal, info, context);
  g_seen.came_back = true;
}

class InterruptedStackTest : public testing::Test {
 protected:
  InterruptedStackTest() {
    g_seen = {};
    stack_t alternate = {};
    alternate.ss_sp = stack_.data();
    alternate.ss_size = stack_.bytes();
    sigaltstack(&alternate, &old_stack_);
  }
  ~InterruptedStackTest() override {
    sigaction(SIGUSR1, &old_action_, nullptr);
    sigaltstack(&old_stack_, nullptr);
    sigset_t mine;
    sigemptyset(&mine);
    sigaddset(&mine, SIGUSR2);
    sigprocmask(SIG_UNBLOCK, &mine, nullptr);
  }

  void Signal(int flags) {
    struct sigaction action = {};
    action.sa_sigaction = &Installed;
    action.sa_flags = SA_SIGINFO | flags;
    sigaction(SIGUSR1, &action, &old_action_);
    sigval value;
    value.sival_ptr = this;
    sigqueue(getpid(), SIGUSR1, value);
  }
  bool OnAlternateStack(uintptr_t address) const {
    return address - stack_.address() < stack_.bytes();
  }

  const ScratchMemory stack_{kStackBytes};
  stack_t old_stack_ = {};
  struct sigaction old_action_ = {};
};

#if defined(__x86_64__)
TEST_F(InterruptedStackTest, TheHandlerRunsWhereTheInterruptedCodeRan) {
  Signal(SA_ONSTACK);
  if (g_seen.came_back) GTEST_SKIP() << "a shadow stack is in use";
  ASSERT_NE(g_seen.handler, 0u);
  EXPECT_FALSE(OnAlternateStack(g_seen.handler));
  int here = 0;
  EXPECT_LT(reinterpret_cast<uintptr_t>(&here) - g_seen.handler, 128u * 1024);
  EXPECT_EQ(g_seen.signal, SIGUSR1);
  EXPECT_EQ(g_seen.code, SI_QUEUE);
  EXPECT_EQ(g_seen.value, this);
  EXPECT_TRUE(g_seen.context_is_near);
  sigset_t now;
  sigprocmask(SIG_SETMASK, nullptr, &now);
  EXPECT_EQ(sigismember(&now, SIGUSR2), 1);
}

TEST_F(InterruptedStackTest, TheAlternateStackIsFreeAfterwards) {
  Signal(SA_ONSTACK);
  stack_t now = {};
  sigaltstack(nullptr, &now);
  EXPECT_EQ(now.ss_flags, 0);
  Signal(SA_ONSTACK);
  EXPECT_EQ(g_seen.signal, SIGUSR1);
}
#endif

TEST_F(InterruptedStackTest, OnTheInterruptedStackAlreadyItIsCalledInPlace) {
  Signal(0);
  EXPECT_TRUE(g_seen.came_back);
  EXPECT_EQ(g_seen.handler, 0u);
}

TEST_F(InterruptedStackTest, AFrameThatTheKernelHasNotMadeIsLeftAlone) {
  siginfo_t info = {};
  ucontext_t context = {};
  getcontext(&context);
  context.uc_stack.ss_sp = stack_.data();
  context.uc_stack.ss_size = stack_.bytes();
  Installed(SIGUSR1, &info, &context);
  EXPECT_TRUE(g_seen.came_back);
  EXPECT_EQ(g_seen.handler, 0u);
}

}  // namespace
}  // namespace firsttouch
