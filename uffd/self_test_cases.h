// What the self-tests do, each in a child process that does one of them and
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

// Exit codes of the child; what it writes to the pipe is the detail.
inline constexpr int kExitWorks = 0;
inline constexpr int kExitMissing = 10;
inline constexpr int kExitFailed = 11;

// How a test ended.
struct SelfTestVerdict {
  int exit_code = kExitWorks;
  std::string detail;
};

struct SelfTestCase {
  SelfTestInfo info;
  SelfTestVerdict (*body)(Kernel&);
};

// In the order they run.
std::span<const SelfTestCase> SelfTestCases();

// Touches a page that nobody will ever fill.
[[noreturn]] void HangInSelfTest(Kernel& kernel);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_SELF_TEST_CASES_H_
