#include "firsttouch/tools/pooldump/watch_view.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "firsttouch/tools/pooldump/columns.h"
#include "firsttouch/tools/pooldump/layout_report.h"
#include "re2/re2.h"

namespace firsttouch::pooldump {

using cli::BytesText;
using cli::Column;
using cli::Columns;
using cli::PlainTable;
using cli::Printable;
using cli::TableText;
using cli::Tint;
using cli::Value;
using cli::Width;

namespace {

constexpr uint32_t kLeastIntervalMs = 100;
constexpr uint32_t kMostIntervalMs = 3'600'000;
constexpr size_t kMostFilterBytes = 200;

// `text` cut to `columns` columns of a terminal.
std::string Cut(const std::string& text, size_t columns) {
  if (Width(text) <= columns) return text;
  size_t seen = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) == 0x80) continue;
    if (seen++ == columns) return text.substr(0, i);
  }
  return text;
}

Column<WatchRow> OfSlot(const char* name) {
  for (const Column<Slot>& column : SlotColumns()) {
    if (column.name != name) continue;
    return {column.name, "", [value = column.value](const WatchRow& row) {
              return value(row.slot);
            }};
  }
  return {name, "", [](const WatchRow&) { return Value::Unknown(); }};
}

bool NothingToTell(const WatchRow& row) {
  return row.slot.state() == Slot::FREE && row.slot.image_name().empty() &&
         row.slot.counters().handovers() == 0;
}

// Without a look before, there is none.
Value Rate(const WatchRow& row, double rate) {
  return row.has_rates ? Value::Share(rate) : Value::Unknown();
}

double PerSecond(uint64_t now, uint64_t before, double seconds) {
  return now <= before || seconds <= 0
             ? 0
             : static_cast<double>(now - before) / seconds;
}

}  // namespace

const Columns<WatchRow>& WatchColumns() {
  static const auto& columns = *new Columns<WatchRow>{
      OfSlot("slot"),
      OfSlot("state"),
      OfSlot("image"),
      OfSlot("size"),
      OfSlot("resident"),
      OfSlot("private"),
      OfSlot("shared"),
      OfSlot("dirty"),
      OfSlot("hot"),
      {"faults/s", "",
       [](const WatchRow& row) {
         return row.slot.counters().faults_unknown() ? Value::Unknown()
                                                     : Rate(row, row.faults);
       }},
      {"traps/s", "", [](const WatchRow& row) { return Rate(row, row.traps); }},
      {"handovers/s", "",
       [](const WatchRow& row) { return Rate(row, row.handovers); }},
      OfSlot("traps"),
      OfSlot("handovers"),
  };
  return columns;
}

WatchView::WatchView(const Options& options)
    : style_{.bytes = options.bytes()},
      all_(options.all()),
      interval_ms_(
          std::clamp(options.interval_ms() == 0 ? 1000 : options.interval_ms(),
                     kLeastIntervalMs, kMostIntervalMs)) {
  SetFilter(options.filter());
  std::string sort = options.sort();
  if (!sort.empty() && sort.front() == '-') {
    reverse_ = true;
    sort.erase(0, 1);
  }
  for (size_t i = 0; i < WatchColumns().size(); ++i) {
    if (WatchColumns()[i].name == sort) sort_ = i;
  }
}

void WatchView::Take(ProcessSnapshot snapshot) {
  const double seconds =
      before_ns_ == 0
          ? 0
          : static_cast<double>(snapshot.monotonic_ns() - before_ns_) / 1e9;
  lost_.clear();
  has_rates_ = before_ns_ != 0;
  std::map<std::string, int> times;  // Of names.
  for (const PoolSnapshot& pool : snapshot.pools()) ++times[pool.name()];
  std::map<uint32_t, std::vector<Counters>> counters;
  rows_.clear();
  faults_ = traps_ = handovers_ = 0;
  for (PoolSnapshot& pool : *snapshot.mutable_pools()) {
    std::vector<Counters>& of_pool = counters[pool.pool_id()];
    const auto known = before_.find(pool.pool_id());
    of_pool.resize(static_cast<size_t>(pool.slots_size()));
    for (int i = 0; i < pool.slots_size(); ++i) {
      WatchRow& row = rows_.emplace_back();
      row.pool = times[pool.name()] > 1
                     ? absl::StrCat(pool.name(), "#", pool.pool_id())
                     : pool.name();
      row.slot.Swap(pool.mutable_slots(i));
      const auto number = static_cast<size_t>(i);
      of_pool[number] = row.slot.counters();
      if (known == before_.end() || number >= known->second.size()) continue;
      const Counters& before = known->second[number];
      const Counters& now = row.slot.counters();
      row.has_rates = true;
      row.faults = PerSecond(Faults(now), Faults(before), seconds);
      row.traps = PerSecond(now.traps(), before.traps(), seconds);
      row.handovers = PerSecond(now.handovers(), before.handovers(), seconds);
      faults_ += row.faults;
      traps_ += row.traps;
      handovers_ += row.handovers;
    }
    pool.clear_slots();
  }
  before_ = std::move(counters);
  before_ns_ = snapshot.monotonic_ns();
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
  for (WatchRow& row : rows_) row.has_rates = false;
  has_rates_ = false;
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
    const WatchRow& row = rows_[i];
    if (!all_ && NothingToTell(row)) continue;
    if (!filter_.empty() &&
        !RE2::PartialMatch(SlotName(row.pool, row.slot.slot()), regex) &&
        (row.slot.image_name().empty() ||
         !RE2::PartialMatch(row.slot.image_name(), regex))) {
      continue;
    }
    keys.emplace_back(WatchColumns()[sort_].value(row), i);
  }
  std::stable_sort(keys.begin(), keys.end(),
                   [this](const auto& a, const auto& b) {
                     return reverse_ ? Value::Before(b.first, a.first)
                                     : Value::Before(a.first, b.first);
                   });
  shown_.clear();
  for (const auto& [key, index] : keys) shown_.push_back(index);
}

void WatchView::MoveSort(int by) {
  const auto count = static_cast<int>(WatchColumns().size());
  sort_ = static_cast<size_t>((static_cast<int>(sort_) + by + count) % count);
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
    case static_cast<int>(Key::kRight):
      MoveSort(1);
      break;
    case '<':
    case static_cast<int>(Key::kLeft):
      MoveSort(-1);
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
       {"q, Ctrl-C      quit", "< >, arrows    sort by the next column",
        "r              the other way round",
        "/              filter: a regular expression for slots and images",
        "a              also slots that were never used",
        "b              sizes in bytes",
        "up, down, page up, page down, home, end    scroll",
        "p              pause; space: look now",
        "+ -            look more often, less often", "h, ?           this", "",
        "any key goes back"}) {
    lines.push_back({text});
  }
  return lines;
}

std::vector<ScreenLine> WatchView::Head() const {
  std::vector<ScreenLine> lines;
  lines.push_back(
      {absl::StrCat(
           "pooldump: process ", now_.pid(), " (", Printable(now_.command()),
           "), ",
           ended() ? std::string("as it was last")
                   : absl::StrCat(
                         "every ",
                         absl::StrFormat("%.3g", interval_ms_ / 1000.0), " s"),
           paused_ ? ", paused" : "", "; h: help, q: quit"),
       Tint::kHead});
  if (!now_.stopped().empty() && !ended()) {
    lines.push_back(
        {absl::StrCat("the process is ", now_.stopped()), Tint::kWeak});
  }
  if (!lost_.empty()) {
    lines.push_back({lost_ + "; below is what was known last", Tint::kWeak});
  }
  if (ended()) lines.push_back({ended_ + "; q quits", Tint::kBad});
  for (const PoolSnapshot& pool : now_.pools()) {
    const Totals& totals = pool.totals();
    std::string text =
        absl::StrCat("pool ", Printable(pool.name()), ": ", totals.slots(),
                     " slots, ", totals.held(), " held");
    if (totals.quarantined() > 0) {
      absl::StrAppend(&text, ", ", totals.quarantined(), " quarantined");
    }
    if (totals.has_resident_bytes()) {
      absl::StrAppend(&text, "; ", BytesText(totals.resident_bytes(), style_),
                      " resident, ", BytesText(totals.private_bytes(), style_),
                      " private");
    }
    lines.push_back(
        {text, totals.quarantined() > 0 ? Tint::kBad : Tint::kNone});
  }
  lines.push_back(
      {has_rates_ ? absl::StrFormat("all slots: %.1f faults/s, %.1f traps/s, "
                                    "%.1f hand-overs/s",
                                    faults_, traps_, handovers_)
                  : "all slots: no rates yet"});
  for (const std::string& warning : now_.warnings()) {
    lines.push_back({Printable(warning), Tint::kWeak});
  }
  if (editing_) {
    lines.push_back({absl::StrCat("filter: ", Printable(edited_), "_",
                                  wrong_filter_.empty() ? "" : "   ",
                                  Printable(wrong_filter_)),
                     wrong_filter_.empty() ? Tint::kGood : Tint::kBad});
  } else if (!filter_.empty()) {
    lines.push_back({"filter: " + Printable(filter_), Tint::kGood});
  }
  return lines;
}

std::vector<ScreenLine> WatchView::Lines(int rows, int columns) {
  const auto height = static_cast<size_t>(std::max(rows, 1));
  const auto width = static_cast<size_t>(std::max(columns, 1));
  std::vector<ScreenLine> lines = help_ ? Help() : Head();
  if (!help_) {
    lines.push_back({});
    // Title, rows; what is above them keeps at most half of the screen.
    if (lines.size() > height / 2 && height > 2) lines.resize(height / 2);
    const size_t room =
        height > lines.size() + 1 ? height - lines.size() - 1 : 0;
    page_ = std::max<size_t>(room, 1);
    top_ = std::min(top_, shown_.size() > page_ ? shown_.size() - page_ : 0);
    PlainTable table;
    bool several = now_.pools_size() > 1;
    for (size_t i = 0; i < WatchColumns().size(); ++i) {
      const std::string& name = WatchColumns()[i].name;
      table.titles.push_back(i == sort_ ? absl::AsciiStrToUpper(name) : name);
    }
    if (several) table.titles.insert(table.titles.begin(), "pool");
    std::vector<Tint> tints;
    for (size_t i = top_; i < shown_.size() && i < top_ + room; ++i) {
      const WatchRow& row = rows_[shown_[i]];
      std::vector<Value>& cells = table.rows.emplace_back();
      if (several) cells.push_back(Value::Text(row.pool));
      for (const Column<WatchRow>& column : WatchColumns()) {
        cells.push_back(column.value(row));
      }
      tints.push_back(WatchColumns()[1].value(row).tint);
    }
    const std::vector<std::string> text =
        absl::StrSplit(TableText(table, style_), '\n', absl::SkipEmpty());
    for (size_t i = 0; i < text.size(); ++i) {
      lines.push_back({text[i], i == 0 ? Tint::kNone : tints[i - 1], i == 0});
    }
  }
  lines.resize(height);
  for (ScreenLine& line : lines) {
    line.text = Cut(line.text, width);
    // The title's bar goes over all of the screen.
    if (line.inverse)
      line.text.resize(width - Width(line.text) + line.text.size(), ' ');
  }
  return lines;
}

}  // namespace firsttouch::pooldump
