#include "firsttouch/tools/pooldump/layout_command.h"

#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/answer.h"
#include "firsttouch/tools/pooldump/config.h"
#include "firsttouch/tools/pooldump/layout_report.h"
#include "firsttouch/tools/pooldump/machine.h"
#include "firsttouch/tools/pooldump/print.h"
#include "firsttouch/tools/pooldump/stream.h"

namespace firsttouch::pooldump {
namespace {

// What a layout is asked about.
struct LayoutQuestion {
  PlacedConfig config;
  Machine machine;
};

absl::StatusOr<LayoutQuestion> QuestionOf(const CommandLine& line,
                                          Kernel& kernel) {
  absl::StatusOr<PlacedConfig> config = ConfigOf(line);
  if (!config.ok()) return config.status();
  if (line.options.machine().empty()) {
    return LayoutQuestion{*std::move(config), ThisMachine(kernel)};
  }
  absl::StatusOr<Machine> other = ReadMachine(line.options.machine());
  if (!other.ok()) return other.status();
  return LayoutQuestion{*std::move(config), *std::move(other)};
}

}  // namespace

absl::StatusOr<PlacedConfig> ConfigOf(const CommandLine& line) {
  PlacedConfig config;
  if (!line.options.config().empty()) {
    absl::StatusOr<PlacedConfig> file = ReadPoolConfig(line.options.config());
    if (!file.ok()) {
      return absl::Status(file.status().code(),
                          absl::StrCat("--config: ", OneLine(file.status())));
    }
    config = *std::move(file);
  }
  Overlay({line.options.pool(), line.pool_places}, config);
  if (line.options.config().empty() && config.places.empty()) {
    return absl::InvalidArgumentError(
        "no pool is described: give --config=FILE, or --instances=N "
        "--memory-bytes=SIZE --guard-bytes=SIZE");
  }
  return config;
}

Answer AnswerLayout(const CommandLine& line, Kernel& kernel) {
  const absl::StatusOr<LayoutQuestion> question = QuestionOf(line, kernel);
  if (!question.ok()) return WrongUsage(question.status());
  LayoutReportOptions options{.all = line.options.all()};
  // Here already, so that a few of very many slots can be listed.
  absl::StatusOr<Filter> filter = MakeFilter(line.options);
  if (!filter.ok()) return WrongUsage(filter.status());
  options.wanted = *std::move(filter);
  absl::StatusOr<LayoutReport> report =
      MakeLayoutReport(question->config, question->machine, options);
  if (!report.ok()) return WrongUsage(report.status());
  Answer answer;
  answer.exit_code = report->fits() ? kExitOk : kExitBadNews;
  *answer.report.mutable_layout() = *std::move(report);
  return answer;
}

Answer StreamLayout(const CommandLine& line, Kernel& kernel,
                    const cli::TextStyle& style, const Sink& sink) {
  const absl::StatusOr<LayoutQuestion> question = QuestionOf(line, kernel);
  if (!question.ok()) return WrongUsage(question.status());
  const absl::StatusOr<PoolLayout> layout = LayoutOf(question->config);
  if (!layout.ok()) return WrongUsage(layout.status());
  absl::StatusOr<Filter> filter = MakeFilter(line.options);
  if (!filter.ok()) return WrongUsage(filter.status());
  const absl::StatusOr<LayoutReport> report =
      MakeLayoutReport(question->config, question->machine,
                       {.all = true, .wanted = *filter, .leave_out = true});
  if (!report.ok()) return WrongUsage(report.status());
  Answer answer;
  answer.exit_code = report->fits() ? kExitOk : kExitBadNews;
  answer.error = StreamRanges(
      *report, line.options.format(), style,
      [&](const std::function<bool(const LayoutReport::Range&)>& visit) {
        ForEachRange(*layout, report->name(), *filter, visit);
      },
      sink);
  if (!answer.error.empty()) answer.exit_code = cli::kExitCannotPrint;
  return answer;
}

}  // namespace firsttouch::pooldump
