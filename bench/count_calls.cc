#include "firsttouch/bench/count_calls.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/examples/system_calls.h"

namespace firsttouch::bench {
namespace {

// Whether the thread sleeps; also true when it has ended.
bool Sleeps(const std::string& directory) {
  std::ifstream stat(absl::StrCat(directory, "/stat"));
  std::string text;
  std::getline(stat, text);
  // "<id> (<name>) <state> ...", where a name may have parentheses.
  const size_t name_end = text.rfind(") ");
  return name_end == std::string::npos || text[name_end + 2] == 'S';
}

}  // namespace

void WaitUntilOtherThreadsSleep() {
  const std::string self = absl::StrCat(syscall(SYS_gettid));
  // Twice in a row: a thread may sleep for a moment on its way.
  for (int quiet = 0; quiet < 2; ++quiet) {
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/self/task")) {
      if (task.path().filename() == self) continue;
      if (Sleeps(task.path().string())) continue;
      quiet = -1;
      break;
    }
    sched_yield();
  }
}

absl::StatusOr<CallCounts> CountCalls(
    absl::FunctionRef<void(absl::FunctionRef<void()> mark)> body) {
  const absl::StatusOr<examples::SystemCalls> calls =
      examples::CountSystemCallsOf([&] {
        bool begun = false;
        body([&] {
          if (begun) {
            examples::EndCountedPart();
          } else {
            examples::BeginCountedPart();
          }
          begun = true;
        });
      });
  if (!calls.ok()) return calls.status();
  if (calls->exit_status != 0 || calls->parts != 1) {
    return absl::AbortedError(absl::StrCat(
        "the counted child ended with exit status ", calls->exit_status,
        " after ", calls->parts, " counted parts; it should be 0 after 1"));
  }
  return CallCounts{.system_calls = calls->total, .signals = calls->signals};
}

}  // namespace firsttouch::bench
