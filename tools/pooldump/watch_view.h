// What `live --watch` shows, without a terminal: takes snapshots and keys, and
// gives lines. watch.h paints them.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_WATCH_VIEW_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_WATCH_VIEW_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

// A slot and what happened in it since the last look, each second.
struct WatchRow {
  std::string pool;
  Slot slot;
  // False at the first look, and where the process could not be read since.
  bool has_rates = false;
  double faults = 0;
  double traps = 0;
  double handovers = 0;
};

const cli::Columns<WatchRow>& WatchColumns();

// Keys that are no characters.
enum class Key : int {
  kUp = 256,
  kDown,
  kPageUp,
  kPageDown,
  kHome,
  kEnd,
  kLeft,
  kRight,
  kEnter,
  kEscape,
  kBackspace,
};

// A line of the screen, printable.
struct ScreenLine {
  std::string text;
  cli::Tint tint = cli::Tint::kNone;
  bool inverse = false;
};

class WatchView {
 public:
  // Takes filter, sort, bytes, all and interval from the options. A sort column
  // that it does not have is ignored.
  explicit WatchView(const Options& options);

  // The process as it is now.
  void Take(ProcessSnapshot snapshot);
  // The process has no pool now: `why` is shown above what was known, until it
  // has one again.
  void Lose(const std::string& why);
  // The process cannot be read any more: `why` is shown above what was known.
  void End(const std::string& why);
  bool ended() const { return !ended_.empty(); }

  // A character or a Key. False: the user wants to leave.
  bool Press(int key);

  // Exactly `rows` lines of at most `columns` columns.
  std::vector<ScreenLine> Lines(int rows, int columns);

  // Whether the process is to be looked at again by itself, and how often.
  bool paused() const { return paused_ || ended(); }
  uint32_t interval_ms() const { return interval_ms_; }
  // Whether the user asked for a look now; asking resets it.
  bool TakeRefresh() { return std::exchange(refresh_, false); }

 private:
  void EditFilter(int key);
  void SetFilter(const std::string& text);
  void MoveSort(int by);
  void Arrange();
  void DropRates();
  std::vector<ScreenLine> Head() const;
  std::vector<ScreenLine> Help() const;

  cli::TextStyle style_;
  bool all_ = false;
  bool reverse_ = false;
  bool paused_ = false;
  bool help_ = false;
  bool editing_ = false;
  bool refresh_ = false;
  uint32_t interval_ms_ = 1000;
  size_t sort_ = 0;  // In WatchColumns().
  std::string filter_;
  std::string edited_;
  std::string wrong_filter_;  // Why `edited_` is none.
  std::string ended_;
  std::string lost_;
  bool has_rates_ = false;

  ProcessSnapshot now_;
  // Counters at the last look but one, by pool and slot.
  std::map<uint32_t, std::vector<Counters>> before_;
  int64_t before_ns_ = 0;
  std::vector<WatchRow> rows_;  // All.
  std::vector<size_t> shown_;   // Filtered and sorted, into rows_.
  size_t top_ = 0;              // The first of `shown_` on the screen.
  size_t page_ = 1;             // Rows on the screen.
  double faults_ = 0, traps_ = 0, handovers_ = 0;  // All slots together.
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_WATCH_VIEW_H_
