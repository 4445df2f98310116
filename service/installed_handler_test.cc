// What the installed handler passes on, called as a handler in front of it
// calls it; signals_test.cc has what the kernel does.

#include "firsttouch/service/installed_handler.h"

#include <errno.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <string>

#include "firsttouch/uffd/test_util.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// What a handler saw.
struct Seen {
  int calls = 0;
  int signal = 0;
  siginfo_t* info = nullptr;
  void* context = nullptr;
  sigset_t mask;
};
Seen g_seen;

void Handler(int signal, siginfo_t* info, void* context) {
  ++g_seen.calls;
  g_seen.signal = signal;
  g_seen.info = info;
  g_seen.context = context;
  pthread_sigmask(SIG_SETMASK, nullptr, &g_seen.mask);
  errno = 5;
}
void OldHandler(int signal) {
  ++g_seen.calls;
  g_seen.signal = signal;
}

class InstalledHandlerTest : public testing::Test {
 protected:
  InstalledHandlerTest() {
    g_seen = {};
    pthread_sigmask(SIG_SETMASK, nullptr, &before_);
    context_.uc_sigmask = before_;
    info_.si_signo = SIGSEGV;
    info_.si_code = SI_USER;
    previous_.action = {};
    previous_.action.sa_sigaction = &Handler;
    previous_.action.sa_flags = SA_SIGINFO;
    g_previous_actions[SlotOfSignal(SIGSEGV)] = &previous_;
  }
  ~InstalledHandlerTest() override {
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    g_previous_actions[SlotOfSignal(SIGSEGV)] = nullptr;
    g_actions_in_front[SlotOfSignal(SIGSEGV)] = nullptr;
  }

  void Signal() { OnSignal(SIGSEGV, &info_, &context_); }
  // How a child ends that gets the signal: the signal, or 0.
  int EndOfChild() {
    return RunInChild([this] {
             Signal();
             // Where the signal is to come when the handler returns.
             sigset_t none;
             sigemptyset(&none);
             sigprocmask(SIG_SETMASK, &none, nullptr);
             return std::string();
           })
        .signal;
  }

  sigset_t before_;
  siginfo_t info_ = {};
  ucontext_t context_ = {};
  PreviousAction previous_;
};

TEST_F(InstalledHandlerTest, EachSignalHasAPlaceOfItsOwn) {
  EXPECT_NE(SlotOfSignal(SIGBUS), SlotOfSignal(SIGSEGV));
}

TEST_F(InstalledHandlerTest, DefaultAndIgnoreAreNoFunctionsWhateverTheFlags) {
  struct sigaction action = {};
  action.sa_flags = SA_SIGINFO;
  action.sa_handler = SIG_DFL;
  EXPECT_FALSE(IsFunction(action));
  action.sa_handler = SIG_IGN;
  EXPECT_FALSE(IsFunction(action));
  action.sa_handler = &OldHandler;
  EXPECT_TRUE(IsFunction(action));
}

TEST_F(InstalledHandlerTest, WhatIsNotOursIsPassedOnAndErrnoStays) {
  errno = 77;
  Signal();
  EXPECT_EQ(errno, 77);
  EXPECT_EQ(g_seen.calls, 1);
  EXPECT_EQ(g_seen.signal, SIGSEGV);
  EXPECT_EQ(g_seen.info, &info_);
  EXPECT_EQ(g_seen.context, &context_);
}

TEST_F(InstalledHandlerTest, AHandlerOfTheOldKindIsCalled) {
  previous_.action.sa_flags = 0;
  previous_.action.sa_handler = &OldHandler;
  Signal();
  EXPECT_EQ(g_seen.calls, 1);
  EXPECT_EQ(g_seen.signal, SIGSEGV);
}

TEST_F(InstalledHandlerTest, AHandlerRunsWithTheMaskThatTheKernelWouldGiveIt) {
  sigaddset(&context_.uc_sigmask, SIGUSR1);
  sigaddset(&previous_.action.sa_mask, SIGUSR2);
  Signal();
  EXPECT_EQ(sigismember(&g_seen.mask, SIGUSR1), 1);
  EXPECT_EQ(sigismember(&g_seen.mask, SIGUSR2), 1);
  EXPECT_EQ(sigismember(&g_seen.mask, SIGSEGV), 1);
  EXPECT_EQ(sigismember(&g_seen.mask, SIGTERM), 0);
}

TEST_F(InstalledHandlerTest, AHandlerThatDoesNotDeferItsSignalGetsItAtOnce) {
  previous_.action.sa_flags |= SA_NODEFER;
  Signal();
  EXPECT_EQ(sigismember(&g_seen.mask, SIGSEGV), 0);
}

TEST_F(InstalledHandlerTest, AHandlerThatIsResetIsCalledOnce) {
  previous_.action.sa_flags |= SA_RESETHAND;
  Signal();
  EXPECT_EQ(g_seen.calls, 1);
  EXPECT_TRUE(previous_.spent);
  EXPECT_EQ(EndOfChild(), SIGSEGV);
}

TEST_F(InstalledHandlerTest, TheDefaultActionEndsTheProcessByTheSignal) {
  previous_.action.sa_handler = SIG_DFL;
  EXPECT_EQ(EndOfChild(), SIGSEGV);
}

TEST_F(InstalledHandlerTest, AnIgnoredSignalThatWasSentIsIgnored) {
  previous_.action.sa_handler = SIG_IGN;
  Signal();
  EXPECT_EQ(g_seen.calls, 0);
}

TEST_F(InstalledHandlerTest, AnIgnoredFaultEndsTheProcess) {
  previous_.action.sa_handler = SIG_IGN;
  info_.si_code = SEGV_MAPERR;
  EXPECT_EQ(EndOfChild(), SIGSEGV);
}

TEST_F(InstalledHandlerTest, WhoStandsInFrontIsNotCalledByWhomItCalls) {
  PreviousAction in_front;
  in_front.action = {};
  in_front.action.sa_handler = &OldHandler;
  g_actions_in_front[SlotOfSignal(SIGSEGV)] = &in_front;
  Signal();
  // The one behind us was.
  EXPECT_EQ(g_seen.info, &info_);
  EXPECT_EQ(g_seen.calls, 1);
}

}  // namespace
}  // namespace firsttouch
