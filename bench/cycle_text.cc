#include "firsttouch/bench/cycle_text.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/machine.h"

namespace firsttouch::bench {
namespace {

bool IsFirst(const CycleRow& row) {
  return row.table() == CycleRow::FIRST_KNOWN_IMAGE ||
         row.table() == CycleRow::FIRST_NEW_IMAGE;
}

std::string Title(const CycleRow& row) {
  std::string title;
  switch (row.table()) {
    case CycleRow::FIRST_KNOWN_IMAGE:
      title = "first cycle of a slot, image known";
      break;
    case CycleRow::FIRST_NEW_IMAGE:
      title = "first cycle of a slot, image new";
      break;
    case CycleRow::THREADS:
      title = absl::StrCat(row.threads(),
                           row.threads() == 1 ? " thread" : " threads");
      break;
    case CycleRow::IDLE:
      title = "idle slots, book-keeping included";
      break;
    case CycleRow::SQLITE:
      return absl::StrCat("SQLite, ", row.pages() == "same"
                                          ? "the same rows each time"
                                          : "other rows each time");
    default:
      title = "steady";
  }
  return absl::StrCat(title, ", k=", row.changed_pages(), " ", row.pages(),
                      " of ", row.touched_bytes() >> 20, " MiB");
}

// Rows of one table, and what its last column divides by.
struct Block {
  std::vector<const CycleRow*> rows;
  const CycleRow* unit = nullptr;
};

std::vector<Block> Blocks(const CycleReport& report) {
  std::vector<Block> blocks;
  for (const CycleRow& row : report.rows()) {
    if (blocks.empty() || Title(*blocks.back().rows[0]) != Title(row)) {
      blocks.emplace_back();
    }
    Block& block = blocks.back();
    block.rows.push_back(&row);
    const char* const unit = IsFirst(row) ? kCopyOnWriteName
                             : row.table() == CycleRow::SQLITE ? kScanName
                                                               : kLimitName;
    if (row.way() == unit) block.unit = &row;
  }
  return blocks;
}

std::string Cell(bool has, double value) { return has ? Short(value) : "-"; }

std::string Times(const CycleRow& row, const CycleRow* unit) {
  return Cell(unit != nullptr && unit->median_ns() > 0,
              unit == nullptr ? 0 : row.median_ns() / unit->median_ns());
}

// One line, or the line above a table's rows for null.
std::string Line(const CycleRow* row, CycleRow::Table table,
                 const CycleRow* unit) {
  std::string line;
  const auto cell = [&](int width, const char* title,
                        const std::string& value) {
    absl::StrAppendFormat(&line, "%*s", width,
                          row == nullptr ? title : value.c_str());
  };
  static const CycleRow& none = *new CycleRow;
  const CycleRow& r = row == nullptr ? none : *row;
  absl::StrAppendFormat(&line, "%-22s", r.way());
  if (table == CycleRow::IDLE) {
    cell(
        8, "KiB",
        Cell(r.has_private_kib_per_idle_slot(), r.private_kib_per_idle_slot()));
    return absl::StrCat(line, "\n");
  }
  cell(7, "median", Short(r.median_ns()));
  cell(7, "mean", Short(r.mean_ns()));
  cell(7, "p99", Short(r.p99_ns()));
  switch (table) {
    case CycleRow::STEADY:
      cell(6, "calls", Cell(r.has_system_calls(), r.system_calls()));
      cell(6, "sigs", Cell(r.has_signals(), r.signals()));
      cell(7, "faults", Cell(r.has_page_faults(), r.page_faults()));
      cell(6, "TLB", Cell(r.has_tlb_shootdowns(), r.tlb_shootdowns()));
      cell(6, "KiB",
           Cell(r.has_private_kib_per_idle_slot(),
                r.private_kib_per_idle_slot()));
      break;
    case CycleRow::THREADS:
      cell(8, "1000/s",
           Cell(r.has_cycles_per_second(), r.cycles_per_second() / 1000));
      cell(6, "scale", Cell(r.has_scaling(), r.scaling()));
      cell(6, "/lim", Cell(r.has_scaling_of_limit(), r.scaling_of_limit()));
      cell(5, "flt", Cell(r.has_page_faults(), r.page_faults()));
      cell(6, "TLB", Cell(r.has_tlb_shootdowns(), r.tlb_shootdowns()));
      break;
    case CycleRow::SQLITE:
      cell(7, "hand", Cell(r.has_handover_median_ns(), r.handover_median_ns()));
      cell(6, "calls", Cell(r.has_system_calls(), r.system_calls()));
      cell(5, "sigs", Cell(r.has_signals(), r.signals()));
      cell(7, "faults", Cell(r.has_page_faults(), r.page_faults()));
      cell(6, "KiB",
           Cell(r.has_private_kib_per_idle_slot(),
                r.private_kib_per_idle_slot()));
      break;
    default:
      break;
  }
  cell(6, "x", Times(r, unit));
  return absl::StrCat(line, "\n");
}

// "name, other" with the columns of a goal behind it.
std::string GoalLine(const CycleGoal& goal) {
  const std::string bound =
      absl::StrCat(goal.at_least() ? ">=" : "<=", Short(goal.bound()));
  const std::string measured =
      !goal.has_measured() ? "-"
      : goal.has_measured_by_mean()
          ? absl::StrCat(Short(goal.measured()), " ",
                         Short(goal.measured_by_mean()))
          : Short(goal.measured());
  const char* const verdict = !goal.has_reached() ? "not measured"
                              : goal.reached()    ? "ok"
                                                  : "NOT REACHED";
  return absl::StrFormat("  %-21s%-22s%7s%13s  %s\n", goal.where(),
                         goal.other(), bound, measured, verdict);
}

std::string GoalsText(const CycleReport& report) {
  if (report.goals().empty()) return "";
  std::string text =
      "\ngoals, all for default options; the median over the rounds, for times "
      "that of\nthe cycles' medians and that of their means: both must be "
      "within the bound\n";
  int reached = 0;
  int measured = 0;
  std::string last;
  for (const CycleGoal& goal : report.goals()) {
    measured += goal.has_reached() ? 1 : 0;
    reached += goal.reached() ? 1 : 0;
    if (goal.name() != last) absl::StrAppend(&text, "\n", goal.name(), "\n");
    last = goal.name();
    absl::StrAppend(&text, GoalLine(goal));
  }
  absl::StrAppend(&text, "\n", reached, " of ", measured,
                  " goals that were measured are reached\n");
  return text;
}

// Words, in lines of at most `columns`.
std::string Wrapped(const std::string& words, size_t columns) {
  std::string text;
  size_t column = 0;
  for (const auto word : absl::StrSplit(words, absl::ByAnyChar(" \n"))) {
    if (column > 0 && column + 1 + word.size() > columns) {
      absl::StrAppend(&text, "\n  ");
      column = 2;
    } else if (column > 0) {
      absl::StrAppend(&text, " ");
      ++column;
    }
    absl::StrAppend(&text, word.substr(0, columns - 2));
    column += word.size();
  }
  return absl::StrCat(text, "\n");
}

}  // namespace

std::string ToText(const CycleReport& report) {
  constexpr size_t kColumns = 80;
  std::string text = MachineText(report.machine());
  absl::StrAppend(
      &text,
      Wrapped(absl::StrCat(kDefaultName, " here: ", report.default_options()),
              kColumns),
      report.rounds(), " rounds; image ", report.image_bytes() >> 20,
      " MiB, memory ", report.memory_bytes() >> 20, " MiB; all per cycle\n",
      Wrapped(absl::StrCat("calls, sigs: system calls and signals, counted by ",
                           report.counted_by().empty() ? "nothing"
                                                       : report.counted_by()),
              kColumns),
      "median, mean, p99: ns; faults, flt: page faults (getrusage)\n"
      "TLB: shootdowns of the whole machine; KiB: private to an idle slot\n"
      "scale: cycles/s as a multiple of one thread's; /lim: that / the "
      "limit's\n"
      "hand: of the median, release and acquire\n"
      "x: median as a multiple of the limit's (first cycle: of ",
      kCopyOnWriteName, "'s;\n  SQLite: of ", kScanName, "'s)\n");
  for (const SkippedWay& skipped : report.skipped()) {
    absl::StrAppend(
        &text, Wrapped(absl::StrCat("not possible here: ", skipped.way(), ": ",
                                    skipped.reason()),
                       kColumns));
  }
  for (const Block& block : Blocks(report)) {
    const CycleRow::Table table = block.rows[0]->table();
    absl::StrAppend(&text, "\n", Title(*block.rows[0]), "\n",
                    Line(nullptr, table, nullptr));
    for (const CycleRow* row : block.rows) {
      absl::StrAppend(&text, Line(row, table, block.unit));
    }
  }
  absl::StrAppend(&text, GoalsText(report));
  return text;
}

}  // namespace firsttouch::bench
