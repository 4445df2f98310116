#include "firsttouch/tools/pooldump/commands.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/imagetool/page_map_report.h"
#include "firsttouch/tools/pooldump/answer.h"
#include "firsttouch/tools/pooldump/diff.h"
#include "firsttouch/tools/pooldump/layout_command.h"
#include "firsttouch/tools/pooldump/locate_command.h"
#include "firsttouch/tools/pooldump/location_text.h"
#include "firsttouch/tools/pooldump/print.h"
#include "firsttouch/tools/pooldump/rates.h"
#include "firsttouch/tools/pooldump/saved.h"
#include "firsttouch/tools/pooldump/snapshot/core_file.h"
#include "firsttouch/tools/pooldump/snapshot/live.h"
#include "firsttouch/tools/pooldump/snapshot/pool_choice.h"
#include "firsttouch/tools/pooldump/snapshot/processes.h"
#include "firsttouch/tools/pooldump/stream.h"

namespace firsttouch::pooldump {
namespace {

Answer AnswerLive(const Options& options) {
  absl::StatusOr<LiveProcess> process = LiveProcess::Open(options.pid());
  if (!process.ok()) return CannotRead(process.status());
  absl::StatusOr<ProcessSnapshot> snapshot =
      process->Snapshot({.pool = options.pool_name()});
  if (!snapshot.ok()) return CannotRead(snapshot.status());
  Answer answer;
  *answer.report.mutable_live() = *std::move(snapshot);
  return answer;
}

Answer AnswerCore(const Options& options) {
  absl::StatusOr<CoreFile> core = CoreFile::Open(options.file());
  if (!core.ok()) return CannotRead(core.status());
  absl::StatusOr<ProcessSnapshot> snapshot =
      core->Snapshot(options.pool_name());
  if (!snapshot.ok()) return CannotRead(snapshot.status());
  Answer answer;
  CoreReport& report = *answer.report.mutable_core();
  report.set_path(cli::Printable(options.file()));
  if (snapshot->has_crash())
    report.set_crash_text(CrashText(snapshot->crash()));
  *report.mutable_process() = *std::move(snapshot);
  return answer;
}

Answer AnswerMap(const Options& options) {
  absl::StatusOr<LiveProcess> process = LiveProcess::Open(options.pid());
  if (!process.ok()) return CannotRead(process.status());
  absl::StatusOr<PageMap> pages =
      process->Pages(options.pool_name(), options.slot());
  if (!pages.ok()) return CannotRead(pages.status());
  Answer answer;
  *answer.report.mutable_map() = *std::move(pages);
  return answer;
}

Answer AnswerImage(const Options& options) {
  std::vector<std::string> outputs;
  for (const std::string* path : {&options.svg(), &options.html()}) {
    if (!path->empty()) outputs.push_back(*path);
  }
  absl::StatusOr<imagetool::MapReport> map =
      imagetool::Map(options.file(), outputs);
  if (!map.ok()) return CannotRead(map.status());
  Answer answer;
  *answer.report.mutable_image() = *std::move(map);
  return answer;
}

// What was read of one process for `ps`.
class PsProcess {
 public:
  PsProcess(LiveProcess process, ProcessSnapshot first)
      : process_(std::move(process)), snapshot_(std::move(first)) {
    meter_.Measure(&snapshot_);
  }

  absl::Status LookAgain() {
    absl::StatusOr<ProcessSnapshot> again = process_.Snapshot({.smaps = false});
    if (!again.ok()) return again.status();
    snapshot_ = *std::move(again);
    meter_.Measure(&snapshot_);
    return absl::OkStatus();
  }

  const ProcessSnapshot& snapshot() const { return snapshot_; }

 private:
  LiveProcess process_;
  RateMeter meter_;
  ProcessSnapshot snapshot_;
};

PsReport::Process PsRow(const ProcessSnapshot& snapshot) {
  PsReport::Process row;
  row.set_pid(snapshot.pid());
  row.set_user_id(snapshot.user_id());
  row.set_user(cli::Printable(UserName(snapshot.user_id())));
  row.set_command(snapshot.command());
  row.set_stopped(snapshot.stopped());
  row.set_pools(static_cast<uint32_t>(snapshot.pools_size()));
  for (const PoolSnapshot& pool : snapshot.pools()) {
    const Totals& totals = pool.totals();
    row.set_slots(row.slots() + totals.slots());
    row.set_held(row.held() + totals.held());
    row.set_quarantined(row.quarantined() + totals.quarantined());
    row.set_traps(row.traps() + totals.counters().traps());
    if (totals.has_resident_bytes()) {
      row.set_resident_bytes(row.resident_bytes() + totals.resident_bytes());
      row.set_private_bytes(row.private_bytes() + totals.private_bytes());
    }
    if (totals.has_rates()) {
      row.set_traps_per_second(row.traps_per_second() + totals.rates().traps());
    }
  }
  return row;
}

// Whether what went wrong with a process is worth a line: not that it ended,
// nor that it only inherited the descriptor of another's pool.
bool IsWorthALine(const absl::Status& status, PsReport* report) {
  if (absl::IsPermissionDenied(status)) {
    report->set_forbidden(report->forbidden() + 1);
    return false;
  }
  return !absl::IsNotFound(status) && !absl::IsUnavailable(status);
}

Answer AnswerPs(const Options& options) {
  const absl::StatusOr<ProcessList> list = FindProcesses();
  if (!list.ok()) return CannotRead(list.status());
  Answer answer;
  PsReport& report = *answer.report.mutable_ps();
  report.set_forbidden(list->forbidden);
  const auto tell = [&report](pid_t pid, const absl::Status& status) {
    if (!IsWorthALine(status, &report)) return;
    report.add_warnings(absl::StrCat("process ", pid, ": ", OneLine(status)));
  };
  std::vector<PsProcess> processes;
  for (const pid_t pid : list->pids) {
    absl::StatusOr<LiveProcess> process = LiveProcess::Open(pid);
    if (!process.ok()) {
      tell(pid, process.status());
      continue;
    }
    absl::StatusOr<ProcessSnapshot> first = process->Snapshot(
        {.residency = options.interval_ms() == 0, .smaps = false});
    if (first.ok()) {
      processes.emplace_back(*std::move(process), *std::move(first));
    } else {
      tell(pid, first.status());
    }
  }
  if (options.interval_ms() != 0 && !processes.empty()) {
    absl::SleepFor(absl::Milliseconds(options.interval_ms()));
  }
  for (PsProcess& process : processes) {
    if (options.interval_ms() != 0) {
      const auto pid = static_cast<pid_t>(process.snapshot().pid());
      if (const absl::Status again = process.LookAgain(); !again.ok()) {
        tell(pid, again);
        continue;
      }
    }
    *report.add_processes() = PsRow(process.snapshot());
  }
  return answer;
}

// The process of a report of live or core; null of any other.
ProcessSnapshot* ProcessOf(Report* report) {
  if (report->has_live()) return report->mutable_live();
  if (report->has_core()) return report->mutable_core()->mutable_process();
  return nullptr;
}

// Leaves the pools of a saved process that --pool means.
absl::Status ChoosePools(const Options& options, const std::string& path,
                         ProcessSnapshot* process) {
  google::protobuf::RepeatedPtrField<PoolSnapshot> kept;
  std::vector<PoolName> names;
  for (PoolSnapshot& pool : *process->mutable_pools()) {
    names.push_back({cli::Printable(pool.name()), pool.pool_id()});
    if (IsCalled({pool.name(), pool.pool_id()}, options.pool_name())) {
      kept.Add()->Swap(&pool);
    }
  }
  if (kept.empty() && !names.empty()) {
    return absl::NotFoundError(
        absl::StrCat(cli::Printable(path), " has no pool \"",
                     options.pool_name(), "\"; it has ", PoolNames(names)));
  }
  process->mutable_pools()->Swap(&kept);
  return absl::OkStatus();
}

Answer AnswerShow(const Options& options) {
  absl::StatusOr<Report> saved = ReadReport(options.file());
  if (!saved.ok()) return CannotRead(saved.status());
  if (ProcessSnapshot* const process = ProcessOf(&*saved)) {
    const absl::Status chosen = ChoosePools(options, options.file(), process);
    if (!chosen.ok()) return CannotRead(chosen);
  } else if (!options.pool_name().empty()) {
    return WrongUsage(absl::InvalidArgumentError(
        absl::StrCat(cli::Printable(options.file()),
                     " is no report of live or core: leave out --pool")));
  }
  const bool has_table = saved->has_live() || saved->has_core() ||
                         saved->has_ps() || saved->has_diff();
  if (!has_table && (!options.columns().empty() || options.limit() != 0)) {
    return WrongUsage(absl::InvalidArgumentError(absl::StrCat(
        cli::Printable(options.file()),
        " has no table of slots or processes: leave out --columns and "
        "--limit")));
  }
  Answer answer;
  answer.report = *std::move(saved);
  return answer;
}

// The process of a file that was saved, with the pools that --pool means.
absl::StatusOr<ProcessSnapshot> SavedProcess(const Options& options,
                                             const std::string& path) {
  absl::StatusOr<Report> saved = ReadReport(path);
  if (!saved.ok()) return saved.status();
  ProcessSnapshot* const found = ProcessOf(&*saved);
  if (found == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(cli::Printable(path),
                     " is no report of live or core, which are what diff "
                     "compares"));
  }
  ProcessSnapshot process = std::move(*found);
  absl::Status chosen = ChoosePools(options, path, &process);
  if (!chosen.ok()) return chosen;
  return process;
}

Answer AnswerDiff(const Options& options) {
  const absl::StatusOr<ProcessSnapshot> before =
      SavedProcess(options, options.file());
  if (!before.ok()) return CannotRead(before.status());
  const absl::StatusOr<ProcessSnapshot> after =
      SavedProcess(options, options.other_file());
  if (!after.ok()) return CannotRead(after.status());
  Answer answer;
  DiffReport& report = *answer.report.mutable_diff();
  report = Diff(*before, *after);
  report.set_before_path(cli::Printable(options.file()));
  report.set_path(cli::Printable(options.other_file()));
  return answer;
}

}  // namespace

std::optional<Answer> Stream(const CommandLine& line, Kernel& kernel,
                             const cli::TextStyle& style, const Sink& sink) {
  const Options& options = line.options;
  // What is sorted has to be kept.
  if (!options.sort().empty()) return std::nullopt;
  if (options.command() == Options::LAYOUT && options.all()) {
    return StreamLayout(line, kernel, style, sink);
  }
  if (options.command() == Options::LOCATE) {
    return StreamLocate(line, style, sink);
  }
  return std::nullopt;
}

Answer MakeAnswer(const CommandLine& line, Kernel& kernel) {
  Answer answer;
  switch (line.options.command()) {
    case Options::LAYOUT:
      answer = AnswerLayout(line, kernel);
      break;
    case Options::LIVE:
      answer = AnswerLive(line.options);
      break;
    case Options::LOCATE:
      answer = AnswerLocate(line);
      break;
    case Options::CORE:
      answer = AnswerCore(line.options);
      break;
    case Options::MAP:
      answer = AnswerMap(line.options);
      break;
    case Options::IMAGE:
      answer = AnswerImage(line.options);
      break;
    case Options::PS:
      answer = AnswerPs(line.options);
      break;
    case Options::SHOW:
      answer = AnswerShow(line.options);
      break;
    case Options::DIFF:
      answer = AnswerDiff(line.options);
      break;
    default:
      return WrongUsage(absl::InvalidArgumentError("no command is given"));
  }
  if (!answer.error.empty()) return answer;
  const absl::Status status = FilterAndSort(line.options, &answer.report);
  if (!status.ok()) return WrongUsage(status);
  return answer;
}

}  // namespace firsttouch::pooldump
