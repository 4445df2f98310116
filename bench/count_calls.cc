#include "firsttouch/bench/count_calls.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/examples/system_calls.h"

namespace firsttouch::bench {

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
