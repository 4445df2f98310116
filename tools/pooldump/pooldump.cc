// Shows pools on paper, alive, and after a crash. See README.md beside this
// file.

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/pooldump/commands.h"
#include "firsttouch/tools/pooldump/flags.h"
#include "firsttouch/tools/pooldump/print.h"
#include "firsttouch/tools/pooldump/table.h"
#include "firsttouch/tools/pooldump/watch.h"
#include "firsttouch/tools/pooldump/watch_view.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch::pooldump {
namespace {

bool WantsColor(Color color) {
  if (color != AUTO) return color == ALWAYS;
  const char* no_color = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  return isatty(STDOUT_FILENO) == 1 &&
         (no_color == nullptr || *no_color == '\0') && terminal != nullptr &&
         std::strcmp(terminal, "dumb") != 0;
}

int Fail(int exit_code, const std::string& error) {
  std::fprintf(stderr, "pooldump: %s\n", error.c_str());
  return exit_code;
}

// Whatever could not be written is an error: a full disk must not look like a
// short answer.
int Write(const std::string& text, int exit_code) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
      std::fflush(stdout) == 0) {
    return exit_code;
  }
  return Fail(kExitCannotRead,
              std::string("standard output: ") + std::strerror(errno));
}

int RunWatch(const Options& options, bool color) {
  if (options.format() != TEXT) {
    return Fail(kExitUsage,
                "--watch is for people: leave out --format, or --watch");
  }
  if (isatty(STDOUT_FILENO) != 1 || isatty(STDIN_FILENO) != 1) {
    return Fail(kExitUsage,
                "--watch needs a terminal for input and output: leave it out, "
                "and call pooldump again and again");
  }
  // What is wrong with the filter or the column is known before the screen is
  // cleared.
  Report none;
  none.mutable_live();
  Options filter = options;
  filter.clear_sort();
  const absl::Status status = FilterAndSort(filter, &none);
  if (!status.ok()) return Fail(kExitUsage, std::string(status.message()));
  const std::string& sort = options.sort();
  const auto column = FindColumn(
      WatchColumns(), sort.substr(sort.empty() || sort.front() != '-' ? 0 : 1));
  if (!sort.empty() && !column.ok()) {
    return Fail(
        kExitUsage,
        absl::StrCat("--sort: ", std::string(column.status().message())));
  }
  const absl::Status watched = Watch(options, color);
  if (watched.ok()) return kExitOk;
  return Fail(kExitCannotRead, CannotRead(watched).error);
}

int Main(const std::vector<std::string>& words) {
  const CommandLine line = ParseCommandLine(words);
  if (line.ending.has_value()) {
    if (!line.ending->err.empty()) {
      return Fail(line.ending->exit_code, line.ending->err);
    }
    return Write(line.ending->out, line.ending->exit_code);
  }
  const Options& options = line.options;
  const bool color = WantsColor(options.color());
  if (options.watch()) return RunWatch(options, color);
  const Answer answer = MakeAnswer(line, RealKernel());
  if (!answer.error.empty()) return Fail(answer.exit_code, answer.error);
  const absl::StatusOr<std::string> text = PrintReport(
      answer.report, options,
      {.color = WantsColor(options.color()), .bytes = options.bytes()});
  if (!text.ok()) {
    return Fail(kExitCannotRead, std::string(text.status().message()));
  }
  return Write(*text, answer.exit_code);
}

}  // namespace
}  // namespace firsttouch::pooldump

int main(int argc, char** argv) {
  return firsttouch::pooldump::Main(
      std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
}
