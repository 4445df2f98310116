#include "firsttouch/tools/pooldump/batch.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/cli/json.h"
#include "firsttouch/tools/pooldump/print.h"
#include "firsttouch/tools/pooldump/process_text.h"
#include "firsttouch/tools/pooldump/rates.h"
#include "firsttouch/tools/pooldump/snapshot/live.h"

namespace firsttouch::pooldump {
namespace {

// One look as the format has it.
absl::StatusOr<std::string> LookText(const Report& report,
                                     const Options& options,
                                     const cli::TextStyle& style, bool first) {
  switch (options.format()) {
    case JSON:
      return cli::AsJsonLine(report);
    case CSV:
      return absl::StrCat(
          first ? SlotsCsvTitles(options, /*rated=*/true) : std::string(),
          SlotsCsvRows(report.live(), options, /*rated=*/true));
    default:
      return absl::StrCat(first ? "" : "\n",
                          LiveText(report.live(), options, style));
  }
}

// It has closed one pool before it makes the next, or is in between.
bool IsForAMoment(const absl::Status& status) {
  return !absl::IsUnavailable(status) && !absl::IsPermissionDenied(status);
}

}  // namespace

Answer Batch(const Options& options, const cli::TextStyle& style,
             const Sink& sink) {
  absl::StatusOr<LiveProcess> process = LiveProcess::Open(options.pid());
  if (!process.ok()) return CannotRead(process.status());
  const SnapshotOptions wanted{
      .pool = options.pool_name(),
      .smaps = options.format() != CSV,
  };
  absl::StatusOr<ProcessSnapshot> snapshot = process->Snapshot(wanted);
  if (!snapshot.ok()) return CannotRead(snapshot.status());
  RateMeter meter;
  meter.Measure(&*snapshot);
  const absl::Duration interval = absl::Milliseconds(options.interval_ms());
  absl::Time due = absl::Now();
  bool first = true;
  bool lost = false;
  for (uint32_t look = 0; options.count() == 0 || look < options.count();
       ++look) {
    // A look that took longer than the interval is not made up for.
    due = std::max(due + interval, absl::Now());
    absl::SleepFor(due - absl::Now());
    snapshot = process->Snapshot(wanted);
    if (!snapshot.ok() && IsForAMoment(snapshot.status())) {
      if (!std::exchange(lost, true)) {
        std::fprintf(stderr, "pooldump: %s; looking on\n",
                     CannotRead(snapshot.status()).error.c_str());
      }
      continue;
    }
    if (!snapshot.ok()) return CannotRead(snapshot.status());
    lost = false;
    meter.Measure(&*snapshot);
    Report report;
    *report.mutable_live() = *std::move(snapshot);
    if (absl::Status status = FilterAndSort(options, &report); !status.ok()) {
      return WrongUsage(status);
    }
    const absl::StatusOr<std::string> text =
        LookText(report, options, style, std::exchange(first, false));
    const std::string wrong =
        text.ok() ? sink(*text) : absl::StrCat(text.status().message());
    if (wrong.empty()) continue;
    Answer answer;
    answer.exit_code = cli::kExitCannotPrint;
    answer.error = wrong;
    return answer;
  }
  return Answer();
}

}  // namespace firsttouch::pooldump
