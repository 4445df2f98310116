// Tries each feature on scratch memory, in a child process, under a time limit.
//
// A kernel can have a feature and hang in it: write-protect faults did on 5.8.
// So each feature is tried before it is used: each test does what a pool would
// do, faults included, and compares the result byte by byte. A test that hangs
// or dies ends its child and nothing else.
//
//   for (const SelfTestResult& result : RunSelfTests(RealKernel(), {})) {
//     if (result.outcome != SelfTestOutcome::kWorks) ...
//   }
//
// Forks (and starts threads in the child): call it early, and not from a signal
// handler. Takes a few milliseconds where nothing hangs.

#ifndef FIRSTTOUCH_TOOLS_SELF_TEST_H_
#define FIRSTTOUCH_TOOLS_SELF_TEST_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "firsttouch/tools/feature_tests.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

enum class SelfTestOutcome {
  kWorks,
  kMissing,  // the kernel lacks it, or refuses it to this user
  kFailed,   // it did something else than it should
  kCrashed,  // the child died
  kHung,     // the time limit passed
};

struct SelfTestResult {
  SelfTestInfo test;
  SelfTestOutcome outcome = SelfTestOutcome::kFailed;
  // The reason in one line; empty where it works. Names the kernel where it
  // hung.
  std::string detail;

  bool works() const { return outcome == SelfTestOutcome::kWorks; }
};

struct SelfTestOptions {
  // The time limit of each test.
  absl::Duration time_limit = absl::Seconds(5);
  // A test hook: the test of this id touches a page that is never filled, as on
  // a kernel that loses the event.
  std::string hang;
};

// All tests, in the order they run. In-thread tests resolve faults by SIGBUS in
// the thread that took them, handler-thread tests by a second thread that reads
// events.
std::span<const SelfTestInfo> SelfTests();

// Runs the test with this id; kFailed where there is none.
SelfTestResult RunSelfTest(Kernel& kernel, std::string_view id,
                           const SelfTestOptions& options);

std::vector<SelfTestResult> RunSelfTests(Kernel& kernel,
                                         const SelfTestOptions& options);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_TOOLS_SELF_TEST_H_
