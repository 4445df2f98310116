// What a program prints to, and how.
//
// Threads: one.

#ifndef FIRSTTOUCH_TOOLS_CLI_TERMINAL_H_
#define FIRSTTOUCH_TOOLS_CLI_TERMINAL_H_

#include <cstdint>
#include <functional>
#include <string>

namespace firsttouch::cli {

// Whether `fd` is to get colours. `mode` is "always", "never", or "auto": if it
// is a terminal that knows them and NO_COLOR is not set.
bool WantsColor(const std::string& mode, int fd);

// Columns of the terminal at `fd`; `otherwise` if it is none or does not tell.
int TerminalColumns(int fd, int otherwise);
// Its lines.
int TerminalLines(int fd, int otherwise);

// Writes all of `text` to standard output. Empty, or what went wrong: a full
// disk must not look like a short answer.
std::string WriteOut(const std::string& text);

// How far long work is, on standard error: "pack guest.ftimg: 42 % of 1.50 GiB"
// in a line that is written over and taken away in the end. Nothing unless
// standard error is a terminal.
class Progress {
 public:
  explicit Progress(std::string what);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();

  // Borrows this object. Null where there is nothing to print to.
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> Callback();

 private:
  void Show(uint64_t done_bytes, uint64_t total_bytes);

  const std::string what_;
  const bool visible_;
  int percent_ = -1;  // What the line says; -1: there is none.
};

}  // namespace firsttouch::cli

#endif  // FIRSTTOUCH_TOOLS_CLI_TERMINAL_H_
