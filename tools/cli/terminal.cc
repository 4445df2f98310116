#include "firsttouch/tools/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/table.h"

namespace firsttouch::cli {
namespace {

bool IsSet(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

// A terminal on which colours and lines that are written over make sense.
bool IsTerminal(int fd) {
  const char* terminal = std::getenv("TERM");
  return isatty(fd) == 1 && terminal != nullptr &&
         std::strcmp(terminal, "dumb") != 0;
}

// Nothing but zeroes where it is not known.
winsize SizeOf(int fd) {
  winsize size = {};
  if (isatty(fd) != 1 || ioctl(fd, TIOCGWINSZ, &size) != 0) return {};
  return size;
}

}  // namespace

bool WantsColor(const std::string& mode, int fd) {
  if (mode != "auto") return mode == "always";
  return IsTerminal(fd) && !IsSet("NO_COLOR");
}

int TerminalColumns(int fd, int otherwise) {
  const int columns = SizeOf(fd).ws_col;
  return columns == 0 ? otherwise : columns;
}

int TerminalLines(int fd, int otherwise) {
  const int lines = SizeOf(fd).ws_row;
  return lines == 0 ? otherwise : lines;
}

std::string WriteOut(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() &&
      std::fflush(stdout) == 0) {
    return "";
  }
  return absl::StrCat("standard output: ", std::strerror(errno));
}

Progress::Progress(std::string what)
    : what_(std::move(what)), visible_(IsTerminal(STDERR_FILENO)) {}

Progress::~Progress() {
  if (percent_ >= 0) std::fputs("\r\033[K", stderr);
}

std::function<void(uint64_t, uint64_t)> Progress::Callback() {
  if (!visible_) return nullptr;
  return [this](uint64_t done, uint64_t total) { Show(done, total); };
}

void Progress::Show(uint64_t done_bytes, uint64_t total_bytes) {
  // Work that is over before anybody looks needs no line.
  constexpr uint64_t kLongBytes = uint64_t{16} << 20;
  if (total_bytes < kLongBytes) return;
  const int percent = static_cast<int>(100.0 * static_cast<double>(done_bytes) /
                                       static_cast<double>(total_bytes));
  if (percent == percent_) return;
  percent_ = percent;
  std::fprintf(stderr, "\r%s: %d %% of %s\033[K", Printable(what_).c_str(),
               percent, BytesText(total_bytes, {}).c_str());
  std::fflush(stderr);
}

}  // namespace firsttouch::cli
