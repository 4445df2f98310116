// What the self-test (self_test.h) tries: one function for each feature, which
// does what a pool would do, faults included, and compares what comes of it.
//
// Each takes over the process's signals, and may hang: it is run in a process
// of its own, which ends after it.

#ifndef FIRSTTOUCH_TOOLS_FEATURE_TESTS_H_
#define FIRSTTOUCH_TOOLS_FEATURE_TESTS_H_

#include <span>
#include <string>
#include <string_view>

#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

struct SelfTestInfo {
  std::string_view id;     // "in-thread.copy"
  std::string_view what;   // "missing page filled by COPY"
  std::string_view since;  // "4.14": the first kernel that can have it
};

// What came of one; the exit code of its process.
enum class Verdict : int { kWorks = 0, kMissing = 10, kFailed = 11 };

struct Tried {
  Verdict verdict = Verdict::kWorks;
  // Why not, in one line; empty where it works.
  std::string detail;
};

struct FeatureTest {
  SelfTestInfo info;
  Tried (*body)(Kernel& kernel);
};

// All of them, in the order they run.
std::span<const FeatureTest> FeatureTests();

// Touches a page that nobody will ever fill.
[[noreturn]] void HangAtAFault(Kernel& kernel);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_TOOLS_FEATURE_TESTS_H_
