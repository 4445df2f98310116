// A process whose sigaction(2) was replaced, as by a sanitizer that keeps
// SIGSEGV for itself (allow_user_segv_handler=0), or by a preloaded library.

#include <dlfcn.h>
#include <signal.h>

#include <string>

#include "absl/status/status.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace {

// The signal whose new actions are dropped without an error.
int g_swallowed = 0;

}  // namespace

extern "C" int sigaction(int signal, const struct sigaction* action,
                         struct sigaction* old) noexcept {
  using Function = int (*)(int, const struct sigaction*, struct sigaction*);
  static const auto real =
      reinterpret_cast<Function>(dlsym(RTLD_NEXT, "sigaction"));
  return real(signal, signal == g_swallowed ? nullptr : action, old);
}

namespace firsttouch {
namespace {

using testing::HasSubstr;

TEST(SwallowedSignalsTest, AnInstallThatDidNothingIsAnError) {
  for (const int signal : {SIGBUS, SIGSEGV}) {
    SCOPED_TRACE(signal);
    struct sigaction before[2], after[2];
    sigaction(SIGBUS, nullptr, &before[0]);
    sigaction(SIGSEGV, nullptr, &before[1]);
    g_swallowed = signal;
    const absl::Status status = InstallFaultHandler();
    const absl::Status of_service =
        Service::Create({.name = "swallowed",
                         .layout = {.instances = 1, .max_memory_bytes = 4096}})
            .status();
    g_swallowed = 0;
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(std::string("sigaction(2) for ") +
                          (signal == SIGBUS ? "SIGBUS" : "SIGSEGV") +
                          " said that it installed the fault handler, and did "
                          "not: a sanitizer (allow_user_segv_handler=0;"));
    EXPECT_EQ(of_service, status);
    // Nothing is left installed.
    sigaction(SIGBUS, nullptr, &after[0]);
    sigaction(SIGSEGV, nullptr, &after[1]);
    EXPECT_EQ(after[0].sa_sigaction, before[0].sa_sigaction);
    EXPECT_EQ(after[1].sa_sigaction, before[1].sa_sigaction);
    EXPECT_EQ(UninstallFaultHandler().code(),
              absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(InstallFaultHandler(), absl::OkStatus());
  EXPECT_EQ(UninstallFaultHandler(), absl::OkStatus());
}

}  // namespace
}  // namespace firsttouch
