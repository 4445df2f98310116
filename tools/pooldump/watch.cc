#include "firsttouch/tools/pooldump/watch.h"

#include <curses.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <clocale>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/snapshot/live.h"
#include "firsttouch/tools/pooldump/watch_view.h"

namespace firsttouch::pooldump {

using cli::Tint;

namespace {

volatile std::sig_atomic_t g_leave = 0;

void Leave(int) { g_leave = 1; }

// Signals that ask to leave, taken while it lives. Without SA_RESTART, so that
// a wait for a key ends.
class LeaveOnSignals {
 public:
  LeaveOnSignals() {
    g_leave = 0;
    struct sigaction action = {};
    action.sa_handler = Leave;
    for (size_t i = 0; i < std::size(kSignals); ++i) {
      sigaction(kSignals[i], &action, &before_[i]);
    }
  }
  ~LeaveOnSignals() {
    for (size_t i = 0; i < std::size(kSignals); ++i) {
      sigaction(kSignals[i], &before_[i], nullptr);
    }
  }
  LeaveOnSignals(const LeaveOnSignals&) = delete;
  LeaveOnSignals& operator=(const LeaveOnSignals&) = delete;

 private:
  static constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
  struct sigaction before_[std::size(kSignals)] = {};
};

// The terminal in ncurses' hands.
class Screen {
 public:
  explicit Screen(bool color) {
    std::setlocale(LC_ALL, "");
    screen_ = newterm(nullptr, stdout, stdin);
    if (screen_ == nullptr) return;
    set_term(screen_);
    cbreak();
    noecho();
    keypad(stdscr, TRUE);
    curs_set(0);
    // An escape key is told from a sequence after so many ms.
    set_escdelay(50);
    if (color && has_colors()) {
      start_color();
      use_default_colors();
      init_pair(1, COLOR_GREEN, -1);
      init_pair(2, COLOR_MAGENTA, -1);
      init_pair(3, COLOR_RED, -1);
      colors_ = true;
    }
  }
  ~Screen() {
    if (screen_ == nullptr) return;
    endwin();
    delscreen(screen_);
  }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  bool ok() const { return screen_ != nullptr; }

  void Paint(const std::vector<ScreenLine>& lines) {
    erase();
    for (size_t i = 0; i < lines.size(); ++i) {
      move(static_cast<int>(i), 0);
      const attr_t base = lines[i].inverse ? A_REVERSE : A_NORMAL;
      for (const cli::Piece& piece : lines[i].pieces) {
        attrset(base | Attributes(piece.tint));
        addstr(piece.text.c_str());
      }
      attrset(A_NORMAL);
    }
    refresh();
  }

  // The next key, -1 after `ms` without one, or for a change of size.
  int Wait(int ms) {
    timeout(ms);
    const int key = getch();
    switch (key) {
      case KEY_UP:
        return static_cast<int>(Key::kUp);
      case KEY_DOWN:
        return static_cast<int>(Key::kDown);
      case KEY_PPAGE:
        return static_cast<int>(Key::kPageUp);
      case KEY_NPAGE:
        return static_cast<int>(Key::kPageDown);
      case KEY_HOME:
        return static_cast<int>(Key::kHome);
      case KEY_END:
        return static_cast<int>(Key::kEnd);
      case KEY_LEFT:
        return static_cast<int>(Key::kLeft);
      case KEY_RIGHT:
        return static_cast<int>(Key::kRight);
      case KEY_ENTER:
      case '\n':
      case '\r':
        return static_cast<int>(Key::kEnter);
      case 27:
        return static_cast<int>(Key::kEscape);
      case KEY_BACKSPACE:
      case 127:
      case '\b':
        return static_cast<int>(Key::kBackspace);
      default:
        return key >= 0 && key < 256 ? key : -1;
    }
  }

 private:
  attr_t Attributes(Tint tint) const {
    switch (tint) {
      case Tint::kGood:
        return colors_ ? COLOR_PAIR(1) : A_NORMAL;
      case Tint::kWeak:
        return colors_ ? COLOR_PAIR(2) : A_NORMAL;
      case Tint::kBad:
        return colors_ ? COLOR_PAIR(3) | A_BOLD : A_BOLD;
      case Tint::kDim:
        return A_DIM;
      case Tint::kHead:
        return A_BOLD;
      case Tint::kNone:
        break;
    }
    return A_NORMAL;
  }

  SCREEN* screen_ = nullptr;
  bool colors_ = false;
};

}  // namespace

absl::Status Watch(const Options& options, bool color) {
  absl::StatusOr<LiveProcess> process = LiveProcess::Open(options.pid());
  if (!process.ok()) return process.status();
  const SnapshotOptions wanted{.pool = options.pool_name(), .smaps = false};
  absl::StatusOr<ProcessSnapshot> snapshot = process->Snapshot(wanted);
  if (!snapshot.ok()) return snapshot.status();
  WatchView view(options);
  view.Take(*std::move(snapshot));

  const LeaveOnSignals signals;
  Screen screen(color);
  if (!screen.ok()) {
    const char* name = std::getenv("TERM");
    return absl::FailedPreconditionError(absl::StrCat(
        "--watch: ncurses does not know the terminal \"",
        name == nullptr ? "" : name,
        "\" (TERM): set TERM to one that it knows, or leave out --watch"));
  }
  using Clock = std::chrono::steady_clock;
  Clock::time_point looked = Clock::now();
  while (g_leave == 0) {
    screen.Paint(view.Lines(LINES, COLS));
    const auto interval = std::chrono::milliseconds(view.interval_ms());
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        looked + interval - Clock::now());
    const int key = screen.Wait(
        view.paused() ? 1000
                      : static_cast<int>(std::max<int64_t>(0, left.count())));
    if (g_leave != 0) break;
    if (key >= 0 && !view.Press(key)) break;
    const bool asked = view.TakeRefresh();
    if (view.ended() ||
        (!asked && (view.paused() || Clock::now() < looked + interval))) {
      continue;
    }
    snapshot = process->Snapshot(wanted);
    looked = Clock::now();
    if (snapshot.ok()) {
      view.Take(*std::move(snapshot));
    } else if (!absl::IsUnavailable(snapshot.status()) &&
               !absl::IsPermissionDenied(snapshot.status())) {
      // It closes one pool before it makes the next, or is in between.
      view.Lose(absl::StrCat(snapshot.status().message()));
    } else {
      view.End(absl::StrCat(snapshot.status().message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace firsttouch::pooldump
