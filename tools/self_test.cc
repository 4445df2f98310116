#include "firsttouch/tools/self_test.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/tools/feature_tests.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {
namespace {

[[noreturn]] void RunChild(Kernel& kernel, const FeatureTest& test, bool hang,
                           int output) {
  dup2(output, STDOUT_FILENO);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (hang) HangAtAFault(kernel);
  const Tried tried = test.body(kernel);
  (void)!write(STDOUT_FILENO, tried.detail.data(), tried.detail.size());
  _exit(static_cast<int>(tried.verdict));
}

// Reaps a child that was killed or is ending. False: it does not end.
bool Reap(pid_t child, int* status, absl::Time deadline) {
  for (;;) {
    const pid_t reaped = waitpid(child, status, WNOHANG);
    if (reaped == child) return true;
    if (reaped < 0 && errno != EINTR) return false;
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
}

SelfTestResult Run(Kernel& kernel, const FeatureTest& test,
                   const SelfTestOptions& options) {
  SelfTestResult result{.test = test.info};
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    result.detail = absl::StrCat("pipe2: ", ErrnoText(errno));
    return result;
  }
  UniqueFd from_child(ends[0]);
  UniqueFd to_parent(ends[1]);
  const pid_t child = fork();
  if (child < 0) {
    result.detail = absl::StrCat("fork: ", ErrnoText(errno));
    return result;
  }
  if (child == 0) {
    RunChild(kernel, test, options.hang == test.info.id, to_parent.get());
  }
  to_parent.reset();

  const absl::Time deadline = absl::Now() + options.time_limit;
  bool hung = false;
  for (;;) {
    // Rounded up, so that the last poll does not end before the deadline.
    const absl::Duration left =
        absl::Ceil(deadline - absl::Now(), absl::Milliseconds(1));
    pollfd readable{from_child.get(), POLLIN, 0};
    const int polled =
        left <= absl::ZeroDuration()
            ? 0
            : poll(&readable, 1,
                   static_cast<int>(absl::ToInt64Milliseconds(left)));
    if (polled < 0 && errno == EINTR) continue;
    if (polled <= 0) {
      hung = true;
      break;
    }
    char buffer[512];
    const ssize_t n = read(from_child.get(), buffer, sizeof(buffer));
    if (n <= 0) break;  // the child has ended, or is about to
    result.detail.append(buffer, static_cast<size_t>(n));
  }
  int status = 0;
  if (!hung) {
    hung = !Reap(child, &status, absl::Now() + options.time_limit);
  }
  if (hung) {
    kill(child, SIGKILL);
    const bool dead = Reap(child, &status, absl::Now() + absl::Seconds(2));
    result.outcome = SelfTestOutcome::kHung;
    result.detail = absl::StrCat(
        "no answer within ", absl::FormatDuration(options.time_limit),
        " on Linux ", KernelRelease(),
        dead ? "" : ", and its process cannot be killed");
    return result;
  }
  if (WIFSIGNALED(status)) {
    result.outcome = SelfTestOutcome::kCrashed;
    result.detail =
        absl::StrCat("killed by SIG", sigabbrev_np(WTERMSIG(status)),
                     " on Linux ", KernelRelease());
    return result;
  }
  switch (static_cast<Verdict>(WEXITSTATUS(status))) {
    case Verdict::kWorks:
      result.outcome = SelfTestOutcome::kWorks;
      break;
    case Verdict::kMissing:
      result.outcome = SelfTestOutcome::kMissing;
      break;
    default:
      result.outcome = SelfTestOutcome::kFailed;
      break;
  }
  return result;
}

}  // namespace

std::span<const SelfTestInfo> SelfTests() {
  static const std::vector<SelfTestInfo>& infos = *[] {
    auto* list = new std::vector<SelfTestInfo>;
    for (const FeatureTest& test : FeatureTests()) list->push_back(test.info);
    return list;
  }();
  return infos;
}

SelfTestResult RunSelfTest(Kernel& kernel, std::string_view id,
                           const SelfTestOptions& options) {
  for (const FeatureTest& test : FeatureTests()) {
    if (test.info.id == id) return Run(kernel, test, options);
  }
  SelfTestResult result;
  result.detail =
      absl::StrCat("there is no self-test \"", std::string(id), "\"");
  return result;
}

std::vector<SelfTestResult> RunSelfTests(Kernel& kernel,
                                         const SelfTestOptions& options) {
  std::vector<SelfTestResult> results;
  for (const FeatureTest& test : FeatureTests()) {
    results.push_back(Run(kernel, test, options));
  }
  return results;
}

}  // namespace firsttouch
