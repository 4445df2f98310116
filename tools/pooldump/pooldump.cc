// Shows pools on paper, alive, and after a crash. See README.md beside this
// file.

#include <unistd.h>

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/cli/terminal.h"
#include "firsttouch/tools/imagetool/output_path.h"
#include "firsttouch/tools/pooldump/batch.h"
#include "firsttouch/tools/pooldump/commands.h"
#include "firsttouch/tools/pooldump/flags.h"
#include "firsttouch/tools/pooldump/print.h"
#include "firsttouch/tools/pooldump/process_text.h"
#include "firsttouch/tools/pooldump/watch.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch::pooldump {
namespace {

// As --color takes it.
bool WantsColor(Color color) {
  return cli::WantsColor(absl::AsciiStrToLower(Color_Name(color)),
                         STDOUT_FILENO);
}

int Fail(int exit_code, const std::string& error) {
  return cli::End("pooldump", {.exit_code = exit_code, .error = error});
}

int RunWatch(const Options& options, bool color) {
  if (options.format() != TEXT) {
    return Fail(kExitUsage,
                "--watch is for people: leave out --format, or --watch");
  }
  if (isatty(STDOUT_FILENO) != 1 || isatty(STDIN_FILENO) != 1) {
    return Fail(kExitUsage,
                "--watch needs a terminal for input and output: leave it out, "
                "or take --interval=SECONDS, which prints each look");
  }
  // What is wrong with the filter or the column is known before the screen is
  // cleared.
  Report none;
  none.mutable_live();
  Options filter = options;
  filter.clear_sort();
  const absl::Status status = FilterAndSort(filter, &none);
  if (!status.ok()) return Fail(kExitUsage, absl::StrCat(status.message()));
  const auto columns = SlotColumnsFor(options, /*rated=*/true);
  if (!columns.ok()) {
    return Fail(kExitUsage,
                absl::StrCat("--columns: ", columns.status().message()));
  }
  const std::string& sort = options.sort();
  const auto column = cli::FindColumn(
      *columns, sort.substr(sort.empty() || sort.front() != '-' ? 0 : 1));
  if (!sort.empty() && !column.ok()) {
    return Fail(kExitUsage,
                absl::StrCat("--sort: ", column.status().message()));
  }
  const absl::Status watched = Watch(options, color);
  if (watched.ok()) return kExitOk;
  return Fail(kExitCannotRead, CannotRead(watched).error);
}

int Main(const std::vector<std::string>& words) {
  const CommandLine line = ParseCommandLine(words);
  if (line.ending.has_value()) return cli::End("pooldump", *line.ending);
  Options options = line.options;
  if (options.width() == 0) {
    options.set_width(static_cast<uint32_t>(
        cli::TerminalColumns(STDOUT_FILENO, /*otherwise=*/80)));
  }
  options.set_lines(static_cast<uint32_t>(
      cli::TerminalLines(STDOUT_FILENO, /*otherwise=*/24)));
  const bool color = WantsColor(options.color());
  if (options.watch()) return RunWatch(options, color);
  const cli::TextStyle style{
      .color = color,
      .bytes = options.bytes(),
      .columns = static_cast<size_t>(
          cli::TerminalColumns(STDOUT_FILENO, /*otherwise=*/0)),
  };
  if (options.batch()) {
    const Answer answer = Batch(options, style, cli::WriteOut);
    return Fail(answer.exit_code, answer.error);
  }
  if (const auto streamed = Stream(line, RealKernel(), style, cli::WriteOut)) {
    if (streamed->error.empty()) return streamed->exit_code;
    return Fail(streamed->exit_code, streamed->error);
  }
  const Answer answer = MakeAnswer(line, RealKernel());
  if (!answer.error.empty()) return Fail(answer.exit_code, answer.error);
  if (imagetool::SameOutput(options.svg(), options.html())) {
    return Fail(kExitUsage, absl::StrCat("--svg and --html both name ",
                                         options.svg(), "; name two files"));
  }
  for (const bool html : {false, true}) {
    const std::string& path = html ? options.html() : options.svg();
    if (path.empty()) continue;
    const absl::StatusOr<std::string> picture =
        PictureFile(answer.report, html, style);
    absl::Status status = picture.status();
    if (status.ok()) status = imagetool::WriteTextFile(path, *picture);
    if (!status.ok()) {
      return Fail(kExitCannotRead, CannotRead(status).error);
    }
  }
  // Who asked for files wants no picture beside them.
  if (options.format() == TEXT &&
      !(options.svg().empty() && options.html().empty())) {
    return answer.exit_code;
  }
  const absl::StatusOr<std::string> text =
      PrintReport(answer.report, options, style);
  if (!text.ok()) {
    return Fail(kExitCannotRead, absl::StrCat(text.status().message()));
  }
  return cli::End("pooldump", {.exit_code = answer.exit_code, .out = *text});
}

}  // namespace
}  // namespace firsttouch::pooldump

int main(int argc, char** argv) {
  return firsttouch::pooldump::Main(
      std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
}
