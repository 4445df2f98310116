#include "firsttouch/tools/pooldump/watch_view.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "firsttouch/tools/pooldump/columns.h"
#include "firsttouch/tools/pooldump/layout_report.h"
#include "firsttouch/tools/pooldump/process_text.h"
#include "firsttouch/tools/pooldump/text_lines.h"
#include "re2/re2.h"

namespace firsttouch::pooldump {

using cli::BytesText;
using cli::Column;
using cli::Columns;
using cli::Piece;
using cli::Printable;
using cli::Tint;
using cli::Value;
using cli::Width;

namespace {

constexpr uint32_t kLeastIntervalMs = 100;
constexpr uint32_t kMostIntervalMs = 3'600'000;
constexpr size_t kMostFilterBytes = 200;

void Cut(size_t columns, ScreenLine* line) {
  size_t used = 0;
  for (Piece& piece : line->pieces) {
    piece.text = cli::Cut(piece.text, columns - used);
    used += Width(piece.text);
  }
  // The title's bar goes over all of the screen.
  if (line->inverse) line->pieces.push_back({std::string(columns - used, ' ')});
}

ScreenLine Plain(std::string text, Tint tint = Tint::kNone) {
  return {.pieces = {{std::move(text), tint}}};
}

bool NothingToTell(const Slot& slot) {
  return slot.state() == Slot::FREE && slot.image_name().empty() &&
         slot.counters().handovers() == 0;
}

}  // namespace

std::string ScreenLine::text() const {
  std::string all;
  for (const Piece& piece : pieces) all += piece.text;
  return all;
}

WatchView::WatchView(const Options& options)
    : style_{.bytes = options.bytes()},
      all_(options.all()),
      interval_ms_(
          std::clamp(options.interval_ms() == 0 ? 1000 : options.interval_ms(),
                     kLeastIntervalMs, kMostIntervalMs)),
      limit_(options.limit()) {
  const absl::StatusOr<Columns<Slot>> chosen =
      SlotColumnsFor(options, /*rated=*/true);
  columns_ = chosen.ok() ? *chosen : RatedSlotColumns();
  while (frozen_ < columns_.size() && (columns_[frozen_].name == "slot" ||
                                       columns_[frozen_].name == "state")) {
    ++frozen_;
  }
  left_ = frozen_;
  SetFilter(options.filter());
  std::string sort = options.sort();
  if (!sort.empty() && sort.front() == '-') {
    reverse_ = true;
    sort.erase(0, 1);
  }
  for (size_t i = 0; i < columns_.size(); ++i) {
    if (sort.empty() ||
        (columns_[i].name != sort && columns_[i].title != sort)) {
      continue;
    }
    sort_ = i;
    reveal_sort_ = true;
  }
}

void WatchView::Take(ProcessSnapshot snapshot) {
  meter_.Measure(&snapshot);
  lost_.clear();
  std::map<std::string, int> times;  // Of names.
  for (const PoolSnapshot& pool : snapshot.pools()) ++times[pool.name()];
  rows_.clear();
  for (int i = 0; i < snapshot.pools_size(); ++i) {
    PoolSnapshot& pool = *snapshot.mutable_pools(i);
    const std::string name =
        times[pool.name()] > 1 ? absl::StrCat(pool.name(), "#", pool.pool_id())
                               : pool.name();
    for (Slot& slot : *pool.mutable_slots()) {
      Row& row = rows_.emplace_back();
      row.pool = name;
      row.pool_index = i;
      row.slot.Swap(&slot);
    }
    pool.clear_slots();
  }
  now_ = std::move(snapshot);
  Arrange();
}

void WatchView::Lose(const std::string& why) {
  lost_ = Printable(why);
  DropRates();
}

void WatchView::End(const std::string& why) {
  lost_.clear();
  ended_ = Printable(why);
  DropRates();
}

void WatchView::DropRates() {
  for (Row& row : rows_) row.slot.clear_rates();
  for (PoolSnapshot& pool : *now_.mutable_pools()) {
    pool.mutable_totals()->clear_rates();
  }
  Arrange();
}

void WatchView::SetFilter(const std::string& text) {
  RE2::Options quiet;
  quiet.set_log_errors(false);
  const RE2 regex(text, quiet);
  wrong_filter_ = regex.ok() ? "" : regex.error();
  if (regex.ok()) filter_ = text;
}

void WatchView::Arrange() {
  RE2::Options quiet;
  quiet.set_log_errors(false);
  const RE2 regex(filter_, quiet);
  std::vector<std::pair<Value, size_t>> keys;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    if (!all_ && NothingToTell(row.slot)) continue;
    if (!filter_.empty() &&
        !RE2::PartialMatch(SlotName(row.pool, row.slot.slot()), regex) &&
        (row.slot.image_name().empty() ||
         !RE2::PartialMatch(row.slot.image_name(), regex))) {
      continue;
    }
    keys.emplace_back(columns_[sort_].value(row.slot), i);
  }
  // The number of a slot says nothing without its pool: pools stay together.
  const bool by_pool = columns_[sort_].name == "slot";
  std::stable_sort(keys.begin(), keys.end(), [&](const auto& a, const auto& b) {
    const int pool_a = rows_[a.second].pool_index;
    const int pool_b = rows_[b.second].pool_index;
    if (by_pool && pool_a != pool_b) return pool_a < pool_b;
    return reverse_ ? Value::Before(b.first, a.first)
                    : Value::Before(a.first, b.first);
  });
  shown_.clear();
  for (const auto& [key, index] : keys) shown_.push_back(index);
  found_ = shown_.size();
  if (limit_ != 0 && found_ > limit_) shown_.resize(limit_);
}

void WatchView::MoveSort(int by) {
  const auto count = static_cast<int>(columns_.size());
  sort_ = static_cast<size_t>((static_cast<int>(sort_) + by + count) % count);
  reveal_sort_ = true;
  top_ = 0;
}

void WatchView::EditFilter(int key) {
  if (key == static_cast<int>(Key::kEscape)) {
    editing_ = false;
    wrong_filter_.clear();
  } else if (key == static_cast<int>(Key::kEnter)) {
    SetFilter(edited_);
    editing_ = !wrong_filter_.empty();
    top_ = 0;
  } else if (key == static_cast<int>(Key::kBackspace)) {
    // All bytes of the last character.
    while (!edited_.empty() &&
           (static_cast<unsigned char>(edited_.back()) & 0xc0) == 0x80) {
      edited_.pop_back();
    }
    if (!edited_.empty()) edited_.pop_back();
  } else if (key >= ' ' && key < 256 && key != 127 &&
             edited_.size() < kMostFilterBytes) {
    edited_ += static_cast<char>(key);
  }
}

bool WatchView::Press(int key) {
  if (editing_) {
    EditFilter(key);
    Arrange();
    return true;
  }
  if (help_) {
    help_ = false;
    return key != 'q';
  }
  switch (key) {
    case 'q':
      return false;
    case 'h':
    case '?':
      help_ = true;
      break;
    case '/':
      editing_ = true;
      edited_ = filter_;
      break;
    case '>':
      MoveSort(1);
      break;
    case '<':
      MoveSort(-1);
      break;
    case static_cast<int>(Key::kRight):
      if (more_columns_) ++left_;
      break;
    case static_cast<int>(Key::kLeft):
      if (left_ > frozen_) --left_;
      at_last_column_ = false;
      break;
    case 'r':
      reverse_ = !reverse_;
      break;
    case 'a':
      all_ = !all_;
      break;
    case 'b':
      style_.bytes = !style_.bytes;
      break;
    case 'p':
      paused_ = !paused_;
      break;
    case ' ':
      refresh_ = true;
      break;
    case '+':
      interval_ms_ = std::max(kLeastIntervalMs, interval_ms_ / 2);
      break;
    case '-':
      interval_ms_ = std::min(kMostIntervalMs, interval_ms_ * 2);
      break;
    case static_cast<int>(Key::kUp):
      if (top_ > 0) --top_;
      break;
    case static_cast<int>(Key::kDown):
      ++top_;
      break;
    case static_cast<int>(Key::kPageUp):
      top_ -= std::min(top_, page_);
      break;
    case static_cast<int>(Key::kPageDown):
      top_ += page_;
      break;
    case static_cast<int>(Key::kHome):
      top_ = 0;
      break;
    case static_cast<int>(Key::kEnd):
      top_ = shown_.size();
      break;
    default:
      break;
  }
  Arrange();
  return true;
}

std::vector<ScreenLine> WatchView::Help() const {
  std::vector<ScreenLine> lines;
  for (const char* text :
       {"q, Ctrl-C      quit",
        "< >            sort by the column before, behind",
        "r              the other way round", "left, right    further columns",
        "up, down, page up, page down, home, end    further rows",
        "/              filter: a regular expression for slots and images",
        "a              also slots that were never used",
        "b              sizes in bytes",
        "p              pause; space: look now",
        "+ -            look more often, less often", "h, ?           this", "",
        "any key goes back"}) {
    lines.push_back(Plain(text));
  }
  return lines;
}

ScreenLine WatchView::PoolLine(const PoolSnapshot& pool) const {
  const Totals& totals = pool.totals();
  ScreenLine line =
      pool.has_guest()
          ? Plain(absl::StrCat("guest ", Printable(pool.name()), ", process ",
                               pool.guest().pid(), ": ", totals.slots(),
                               totals.slots() == 1 ? " region" : " regions"))
          : Plain(absl::StrCat("pool ", Printable(pool.name()), ": ",
                               totals.slots(), " slots, ", totals.held(),
                               " held"));
  if (pool.guest().waiting_faults() > 0) {
    line.pieces.push_back({", "});
    line.pieces.push_back(
        {absl::StrCat(pool.guest().waiting_faults(), " faults wait"),
         Tint::kBad});
  }
  if (totals.quarantined() > 0) {
    line.pieces.push_back({", "});
    line.pieces.push_back(
        {absl::StrCat(totals.quarantined(), " quarantined"), Tint::kBad});
  }
  // Where there is no room for all, that goes last which worries nobody.
  if (pool.options().has_resident_budget_bytes() &&
      totals.has_idle_private_bytes()) {
    const uint64_t budget = pool.options().resident_budget_bytes();
    const uint64_t kept = totals.idle_private_bytes();
    line.pieces.push_back({"; "});
    line.pieces.push_back({absl::StrCat(BytesText(kept, style_), " idle of ",
                                        BytesText(budget, style_), " budget"),
                           kept > budget ? Tint::kBad : Tint::kNone});
  }
  if (totals.has_resident_bytes()) {
    line.pieces.push_back({absl::StrCat(
        "; ", BytesText(totals.resident_bytes(), style_), " resident, ",
        BytesText(totals.private_bytes(), style_), " private")});
  }
  return line;
}

ScreenLine WatchView::RatesLine() const {
  Rates sum;
  bool known = false;
  for (const PoolSnapshot& pool : now_.pools()) {
    const Rates& rates = pool.totals().rates();
    known |= pool.totals().has_rates();
    sum.set_traps(sum.traps() + rates.traps());
    sum.set_handovers(sum.handovers() + rates.handovers());
    if (rates.has_faults()) sum.set_faults(sum.faults() + rates.faults());
  }
  if (!known) return Plain("all slots: no rates yet");
  const auto text = [this](double rate, const char* unit) {
    return absl::StrCat(cli::ShownAs(Value::Rate(rate), style_), unit);
  };
  ScreenLine line = Plain(
      absl::StrCat("all slots: ",
                   sum.has_faults() ? text(sum.faults(), " faults/s, ") : ""));
  line.pieces.push_back({text(sum.traps(), " traps/s"),
                         sum.traps() > 0 ? Tint::kBad : Tint::kNone});
  line.pieces.push_back({text(sum.handovers(), " cycles/s").insert(0, ", ")});
  return line;
}

std::vector<ScreenLine> WatchView::Head() const {
  std::vector<ScreenLine> lines;
  lines.push_back(Plain(
      absl::StrCat(
          "pooldump: process ", now_.pid(), " (", Printable(now_.command()),
          "), ",
          ended() ? std::string("as it was last")
                  : absl::StrCat("every ",
                                 absl::StrFormat("%.3g", interval_ms_ / 1000.0),
                                 " s"),
          paused_ ? ", paused" : "", "; h: help, q: quit"),
      Tint::kHead));
  if (!now_.stopped().empty() && !ended()) {
    lines.push_back(
        Plain(absl::StrCat("the process is ", now_.stopped()), Tint::kWeak));
  }
  if (!lost_.empty()) {
    lines.push_back(
        Plain(lost_ + "; below is what was known last", Tint::kWeak));
  }
  if (ended()) lines.push_back(Plain(ended_ + "; q quits", Tint::kBad));
  for (const PoolSnapshot& pool : now_.pools()) lines.push_back(PoolLine(pool));
  lines.push_back(RatesLine());
  for (const std::string& warning : now_.warnings()) {
    lines.push_back(Plain(Printable(warning), Tint::kWeak));
  }
  if (editing_) {
    lines.push_back(Plain(absl::StrCat("filter: ", Printable(edited_), "_",
                                       wrong_filter_.empty() ? "" : "   ",
                                       Printable(wrong_filter_)),
                          wrong_filter_.empty() ? Tint::kHead : Tint::kBad));
  } else if (!filter_.empty()) {
    lines.push_back(Plain("filter: " + Printable(filter_), Tint::kHead));
  }
  return lines;
}

std::string WatchView::Position(size_t rows, size_t first_column,
                                size_t end_column) const {
  const bool rises = !shown_.empty() &&
                     cli::SortMark(columns_[sort_].value(rows_[shown_[0]].slot),
                                   reverse_)[0] == '^';
  return absl::StrCat(
      "rows ", top_ + 1, "-", top_ + rows, " of ", shown_.size(),
      shown_.size() < found_ ? absl::StrCat(" (--limit; ", found_, " in all)")
                             : std::string(),
      ", by ",
      now_.pools_size() > 1 && columns_[sort_].name == "slot" ? "pool/" : "",
      columns_[sort_].name, ", the ", rises ? "smallest" : "largest", " first",
      first_column > frozen_ || end_column < columns_.size()
          ? absl::StrCat("; columns ", first_column + 1, "-", end_column,
                         " of ", columns_.size(), " (arrows)")
          : std::string());
}

std::vector<std::string> WatchView::Nothing() const {
  if (!filter_.empty()) {
    return {absl::StrCat("no slot and no image has a name in which ",
                         Printable(filter_), " is found"),
            absl::StrCat("/ changes the filter",
                         all_ ? "" : ", a adds slots that were never used")};
  }
  return {rows_.empty() ? "no slots" : "no slot was ever used; a shows all"};
}

void WatchView::AppendTable(size_t room, size_t width,
                            std::vector<ScreenLine>* lines) {
  // One line of it tells where we are.
  page_ = std::max<size_t>(room, 2) - 1;
  top_ = std::min(top_, shown_.size() > page_ ? shown_.size() - page_ : 0);
  if (shown_.empty()) {
    for (std::string& line : Nothing()) {
      lines->push_back(Plain(std::move(line)));
    }
    return;
  }
  const bool several = now_.pools_size() > 1;
  const size_t end = std::min(shown_.size(), top_ + page_);
  std::vector<std::string> titles;
  if (several) titles.emplace_back("pool");
  for (size_t i = 0; i < columns_.size(); ++i) {
    const std::string& title =
        columns_[i].title.empty() ? columns_[i].name : columns_[i].title;
    titles.push_back(
        i == sort_ ? absl::StrCat(
                         absl::AsciiStrToUpper(title), " ",
                         cli::SortMark(columns_[i].value(rows_[shown_[0]].slot),
                                       reverse_))
                   : title);
  }
  std::vector<std::vector<Value>> rows;
  for (size_t i = top_; i < end; ++i) {
    const Row& row = rows_[shown_[i]];
    std::vector<Value>& cells = rows.emplace_back();
    if (several) cells.push_back(Value::Text(row.pool));
    for (const Column<Slot>& column : columns_) {
      cells.push_back(column.value(row.slot));
    }
  }
  cli::ShortenTexts(kMostNameColumns, &rows);
  cli::TableShape all(titles, style_);
  for (const std::vector<Value>& row : rows) all.Measure(row);

  // As many columns as there is room for; at least one.
  const size_t shift = several ? 1 : 0;
  size_t fixed = 0;
  for (size_t i = 0; i < frozen_ + shift; ++i) fixed += all.WidthOf(i) + 2;
  const auto end_from = [&](size_t first) {
    size_t used = fixed;
    size_t column = first;
    for (; column < columns_.size(); ++column) {
      used += all.WidthOf(column + shift) + (column == first ? 0 : 2);
      if (used > width && column > first) break;
    }
    return column;
  };
  left_ = std::clamp(left_, frozen_, std::max(frozen_, columns_.size() - 1));
  if (reveal_sort_ && sort_ >= frozen_) {
    left_ = std::min(left_, sort_);
    at_last_column_ = false;
    while (end_from(left_) <= sort_) ++left_;
  }
  reveal_sort_ = false;
  // Whoever looks at the last columns goes on doing so when one gets wider.
  while (at_last_column_ && end_from(left_) < columns_.size()) ++left_;
  const size_t end_column = end_from(left_);
  more_columns_ = end_column < columns_.size();
  at_last_column_ = left_ > frozen_ && !more_columns_;

  const auto visible = [&](const auto& cells) {
    std::remove_cvref_t<decltype(cells)> some(
        cells.begin(),
        cells.begin() + static_cast<std::ptrdiff_t>(frozen_ + shift));
    some.insert(
        some.end(), cells.begin() + static_cast<std::ptrdiff_t>(left_ + shift),
        cells.begin() + static_cast<std::ptrdiff_t>(end_column + shift));
    return some;
  };
  cli::TableShape shape(visible(titles), style_);
  for (const std::vector<Value>& row : rows) shape.Measure(visible(row));
  lines->push_back(Plain(Position(rows.size(), left_, end_column), Tint::kDim));
  lines->push_back({.pieces = shape.TitlePieces(), .inverse = true});
  for (const std::vector<Value>& row : rows) {
    lines->push_back({.pieces = shape.RowPieces(visible(row))});
  }
}

std::vector<ScreenLine> WatchView::Lines(int rows, int columns) {
  const auto height = static_cast<size_t>(std::max(rows, 1));
  const auto width = static_cast<size_t>(std::max(columns, 1));
  std::vector<ScreenLine> lines = help_ ? Help() : Head();
  if (!help_) {
    // What is above the table keeps at most half of the screen.
    if (lines.size() > height / 2 && height > 2) lines.resize(height / 2);
    const size_t left = height - std::min(height, lines.size());
    AppendTable(left > 1 ? left - 1 : 0, width, &lines);
  }
  lines.resize(height);
  for (ScreenLine& line : lines) Cut(width, &line);
  return lines;
}

}  // namespace firsttouch::pooldump
