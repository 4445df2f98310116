// The self-tests' steps. Each runs in a child process that does one test and
// ends.
//
// Internal to self_test.cc, which runs them.

#ifndef FIRSTTOUCH_UFFD_SELF_TEST_CASES_H_
#define FIRSTTOUCH_UFFD_SELF_TEST_CASES_H_

#include <span>
#include <string>

#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/self_test.h"

namespace firsttouch {

// The child's exit codes. What it writes to the pipe is the detail.
inline constexpr int kExitWorks = 0;
inline constexpr int kExitMissing = 10;
inline constexpr int kExitFailed = 11;

// The result of a test.
struct SelfTestVerdict {
  int exit_code = kExitWorks;
  std::string detail;
};

struct SelfTestCase {
  SelfTestInfo info;
  SelfTestVerdict (*body)(Kernel&);
};

// The tests, in the order they run.
std::span<const SelfTestCase> SelfTestCases();

// Touches a page that is never filled.
[[noreturn]] void HangInSelfTest(Kernel& kernel);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_SELF_TEST_CASES_H_
