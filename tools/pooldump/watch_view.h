// What `live --watch` shows, without a terminal: takes snapshots and keys, and
// gives lines. watch.h paints them.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_WATCH_VIEW_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_WATCH_VIEW_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "firsttouch/tools/cli/table.h"
#include "firsttouch/tools/pooldump/pooldump.pb.h"
#include "firsttouch/tools/pooldump/rates.h"
#include "firsttouch/tools/pooldump/snapshot/snapshot.pb.h"

namespace firsttouch::pooldump {

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

// A line of the screen, printable, in pieces from the left.
struct ScreenLine {
  std::vector<cli::Piece> pieces;
  bool inverse = false;

  std::string text() const;
};

class WatchView {
 public:
  // Takes filter, sort, columns, limit, bytes, all and interval from the
  // options. A column that it does not have is ignored.
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
  // Pools of one name are told apart by their number.
  struct Row {
    std::string pool;
    int pool_index = 0;  // In now_.
    Slot slot;
  };

  void EditFilter(int key);
  void SetFilter(const std::string& text);
  void MoveSort(int by);
  void Arrange();
  void DropRates();
  std::vector<ScreenLine> Head() const;
  std::vector<ScreenLine> Help() const;
  ScreenLine PoolLine(const PoolSnapshot& pool) const;
  ScreenLine RatesLine() const;
  // "rows 1-19 of 64, by private, the largest first; ..."
  std::string Position(size_t rows, size_t first_column,
                       size_t end_column) const;
  // Why no row is shown, in lines.
  std::vector<std::string> Nothing() const;
  // Appends the table: its titles and at most `room` rows.
  void AppendTable(size_t room, size_t width, std::vector<ScreenLine>* lines);

  cli::TextStyle style_;
  bool all_ = false;
  bool reverse_ = false;
  bool paused_ = false;
  bool help_ = false;
  bool editing_ = false;
  bool refresh_ = false;
  uint32_t interval_ms_ = 1000;
  size_t limit_ = 0;  // 0: none.
  // Those of `columns_` before `frozen_` stay where the others are scrolled.
  cli::Columns<Slot> columns_;
  size_t frozen_ = 0;
  size_t sort_ = 0;              // In columns_.
  size_t left_ = 0;              // The first column behind the frozen ones.
  bool reveal_sort_ = false;     // The column was chosen just now.
  bool more_columns_ = false;    // To the right of what the screen shows.
  bool at_last_column_ = false;  // The screen was scrolled to it.
  std::string filter_;
  std::string edited_;
  std::string wrong_filter_;  // Why `edited_` is none.
  std::string ended_;
  std::string lost_;

  RateMeter meter_;
  ProcessSnapshot now_;        // Without slots.
  std::vector<Row> rows_;      // All.
  std::vector<size_t> shown_;  // Filtered and sorted, into rows_.
  size_t found_ = 0;           // Of them, before the limit.
  size_t top_ = 0;             // The first of `shown_` on the screen.
  size_t page_ = 1;            // Rows on the screen.
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_WATCH_VIEW_H_
