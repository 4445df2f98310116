// A tenant's whole cycle: acquire, change k pages, release; for firsttouch and
// for the strategies that there are without it, in turn in one process; and
// what it is to reach.
//
//   bazel run -c opt //bench:cycle
//   bazel run -c opt //bench:cycle -- --format=json
//   bazel run -c opt //bench:cycle -- --pages=mixed --tables=steady
//   bazel run //bench:cycle -- --quick
//
// Time is measured in rounds in which the strategies take turns. System calls
// and signals are counted in a run of their own (see examples/system_calls.h),
// page faults and TLB shootdowns by the kernel while time is measured. After
// each measurement the next tenant's memory is compared with the image: a
// strategy that is fast and wrong ends the program. It exits with 0 whether a
// goal was reached or not: a busy machine must not fail a build.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "firsttouch/bench/cycle_goals.h"
#include "firsttouch/bench/cycle_measure.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/report.h"
#include "firsttouch/bench/report.pb.h"
#include "firsttouch/uffd/units.h"

using firsttouch::bench::Words;

ABSL_FLAG(Words, tables,
          Words({"steady", "first", "idle", "threads", "sqlite"}),
          "which tables to make: steady, first, idle, threads, sqlite");
ABSL_FLAG(Words, pages, Words({"same", "churning", "mixed"}),
          "which pages a cycle changes: the same ones each time, others each "
          "time, or mixed (28 the same and 4 others)");
ABSL_FLAG(std::optional<Words>, k, std::nullopt,
          "pages changed per cycle (mixed always changes 32); "
          "0,1,4,16,64,256 by default");
ABSL_FLAG(std::optional<Words>, touched, std::nullopt,
          "of what the changed pages are taken: image (1 MiB), memory (4 MiB); "
          "both by default");
ABSL_FLAG(std::optional<Words>, threads, std::nullopt,
          "numbers of threads for the table threads; 1,2,4 by default");
ABSL_FLAG(std::string, strategies, "",
          "only strategies whose name contains this");
ABSL_FLAG(bool, quick, false,
          "to see that everything works: what is not asked for otherwise is as "
          "little as possible, and the numbers mean nothing");
ABSL_FLAG(std::optional<int32_t>, rounds, std::nullopt,
          "rounds in which the strategies take turns; 11 by default");
ABSL_FLAG(std::optional<int32_t>, cycles, std::nullopt,
          "cycles of each strategy in a round, at most; 2000 by default");
ABSL_FLAG(
    std::optional<int32_t>, round_ms, std::nullopt,
    "a round of a strategy ends after this time even with fewer cycles; 10 by "
    "default");
ABSL_FLAG(
    std::optional<int32_t>, warmup, std::nullopt,
    "cycles before the first that counts, until what a strategy learns is "
    "settled; 400 by default");
ABSL_FLAG(std::optional<int32_t>, counted, std::nullopt,
          "cycles in which system calls and signals are counted, 0: they are "
          "not; 100 by default");

namespace firsttouch::bench {
namespace {

constexpr uint32_t kSqliteRows = 20'000;

// The flag's value, or what is meant without one.
template <typename T, typename Default>
T ValueOr(const absl::Flag<std::optional<T>>& flag, const Default& usual,
          const Default& quick) {
  const std::optional<T> value = absl::GetFlag(flag);
  if (value.has_value()) return *value;
  return absl::GetFlag(FLAGS_quick) ? quick : usual;
}

std::vector<uint32_t> Numbers(const Words& words, const char* flag,
                              uint32_t most) {
  std::vector<uint32_t> numbers;
  for (const std::string& word : words) {
    uint32_t number = 0;
    if (!absl::SimpleAtoi(word, &number) || number > most) {
      Die(absl::StrCat("--", flag, ": ", word, " is not in 0 to ", most));
    }
    numbers.push_back(number);
  }
  return numbers;
}

// `words`, each of which must be one of those that there are.
Words Checked(Words words, const char* flag, const Words& known) {
  for (const std::string& word : words) {
    if (std::find(known.begin(), known.end(), word) == known.end()) {
      Die(absl::StrCat("--", flag, ": ", word, " is none of ",
                       absl::StrJoin(known, ", ")));
    }
  }
  return words;
}

std::vector<uint64_t> TouchedBytes() {
  std::vector<uint64_t> bytes;
  for (const std::string& touched :
       Checked(ValueOr(FLAGS_touched, Words{"image", "memory"}, Words{"image"}),
               "touched", {"image", "memory"})) {
    bytes.push_back(touched == "image" ? kCycleImageBytes : kCycleMemoryBytes);
  }
  return bytes;
}

// What a table measures one after the other.
std::vector<CycleChoice> Choices(const Words& pages_flag,
                                 const std::vector<uint32_t>& k,
                                 const std::vector<uint64_t>& touched) {
  std::vector<CycleChoice> choices;
  for (const std::string& pages : pages_flag) {
    for (uint64_t bytes : touched) {
      if (pages == "mixed") {
        choices.push_back({pages, bytes, kMixedSame + kMixedChurning});
        continue;
      }
      for (uint32_t pages_changed : k) {
        // No page cannot churn.
        if (pages_changed == 0 && pages == "churning") continue;
        choices.push_back({pages, bytes, pages_changed});
      }
    }
  }
  return choices;
}

CycleSettings SettingsFromFlags() {
  CycleSettings settings;
  settings.rounds = ValueOr(FLAGS_rounds, 11, 1);
  settings.cycles = ValueOr(FLAGS_cycles, 2000, 5);
  settings.warmup = ValueOr(FLAGS_warmup, 400, 3);
  settings.counted = ValueOr(FLAGS_counted, 100, 4);
  settings.round_ns = ValueOr(FLAGS_round_ms, 10, 1) * 1e6;
  if (settings.rounds < 1 || settings.cycles < 1 || settings.warmup < 1 ||
      settings.counted < 0) {
    Die("--rounds, --cycles and --warmup must be at least 1, --counted 0");
  }
  for (const CycleStrategyFactory& factory : AllCycleStrategies()) {
    if (factory.name.find(absl::GetFlag(FLAGS_strategies)) !=
        std::string::npos) {
      settings.strategies.push_back(factory);
    }
  }
  if (settings.strategies.empty())
    Die("--strategies: there is no such strategy");
  return settings;
}

// The text. Rows of one situation stand together, under this.
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

struct Column {
  const char* title;
  const char* field;
  bool thousands = false;
};

// What a table shows. The last column, "x", is added where there is a time.
std::vector<Column> ColumnsOf(CycleRow::Table table) {
  const Column kib = {"KiB", "private_kib_per_idle_slot"};
  if (table == CycleRow::IDLE) return {kib};
  std::vector<Column> columns = {
      {"median", "median_ns"}, {"mean", "mean_ns"}, {"p99", "p99_ns"}};
  const auto add = [&](const std::vector<Column>& more) {
    columns.insert(columns.end(), more.begin(), more.end());
  };
  const Column calls = {"calls", "system_calls"};
  const Column signals = {"sigs", "signals"};
  const Column shootdowns = {"TLB", "tlb_shootdowns"};
  if (table == CycleRow::STEADY) {
    add({calls, signals, {"faults", "page_faults"}, shootdowns, kib});
  } else if (table == CycleRow::THREADS) {
    add({{"1000/s", "cycles_per_second", true},
         {"scale", "scaling"},
         {"/lim", "scaling_of_limit"},
         {"flt", "page_faults"},
         shootdowns});
  } else if (table == CycleRow::SQLITE) {
    add({{"hand", "handover_median_ns"},
         calls,
         signals,
         {"faults", "page_faults"},
         kib});
  }
  return columns;
}

// Rows with one title: their table.
std::string TableOf(const std::vector<const CycleRow*>& rows) {
  const CycleRow::Table table = rows[0]->table();
  const bool first = table == CycleRow::FIRST_KNOWN_IMAGE ||
                     table == CycleRow::FIRST_NEW_IMAGE;
  const char* const unit_name = first                       ? kCopyOnWriteName
                                : table == CycleRow::SQLITE ? kScanName
                                                            : kLimitName;
  const CycleRow* unit = nullptr;
  for (const CycleRow* row : rows) {
    if (row->way() == unit_name && row->median_ns() > 0) unit = row;
  }
  const std::vector<Column> columns = ColumnsOf(table);
  std::vector<Words> lines(1, {""});
  for (const Column& column : columns) lines[0].emplace_back(column.title);
  if (table != CycleRow::IDLE) lines[0].emplace_back("x");
  for (const CycleRow* row : rows) {
    Words& line = lines.emplace_back(Words{row->way()});
    for (const Column& column : columns) {
      line.push_back(column.thousands ? Thousandths(*row, column.field)
                                      : Short(NumberOf(*row, column.field)));
    }
    if (table == CycleRow::IDLE) continue;
    line.push_back(
        unit == nullptr ? "-" : Short(row->median_ns() / unit->median_ns()));
  }
  return absl::StrCat("\n", Title(*rows[0]), "\n", TableText(lines));
}

std::string ToText(const CycleReport& report) {
  std::string text = absl::StrCat(
      MachineText(report.machine()),
      Wrapped(absl::StrCat(kDefaultName, " here: ", report.default_options())),
      report.rounds(), " rounds; image ", report.image_bytes() >> 20,
      " MiB, memory ", report.memory_bytes() >> 20, " MiB; all per cycle\n",
      Wrapped(absl::StrCat(
          "calls, sigs: system calls and signals, counted by ",
          report.counted_by().empty() ? "nothing" : report.counted_by())),
      "median, mean, p99: ns; faults, flt: page faults (getrusage)\n"
      "TLB: shootdowns of the whole machine; KiB: private to an idle slot\n"
      "scale: cycles/s as a multiple of one thread's; /lim: that / the "
      "limit's\n"
      "hand: of the median, release and acquire\n"
      "x: median as a multiple of the limit's (first cycle: of ",
      kCopyOnWriteName, "'s;\n  SQLite: of ", kScanName, "'s)\n");
  for (const SkippedStrategy& skipped : report.skipped()) {
    absl::StrAppend(
        &text, Wrapped(absl::StrCat("not possible here: ", skipped.way(), ": ",
                                    skipped.reason())));
  }
  std::vector<const CycleRow*> rows;
  for (const CycleRow& row : report.rows()) {
    if (!rows.empty() && Title(*rows[0]) != Title(row)) {
      absl::StrAppend(&text, TableOf(rows));
      rows.clear();
    }
    rows.push_back(&row);
  }
  if (!rows.empty()) absl::StrAppend(&text, TableOf(rows));
  if (!report.goals().empty()) {
    absl::StrAppend(
        &text,
        "\ngoals, all for default options; the median over the rounds, for "
        "times that of\nthe cycles' medians and that of their means: both must "
        "be within the bound\n",
        GoalsText(report.goals()));
  }
  return text;
}

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Acquire, change pages, release.");
  absl::ParseCommandLine(argc, argv);
  CheckFormat();
  const CycleSettings settings = SettingsFromFlags();
  const Words pages = Checked(absl::GetFlag(FLAGS_pages), "pages",
                              {"same", "churning", "mixed"});
  const Words tables =
      Checked(absl::GetFlag(FLAGS_tables), "tables",
              {"steady", "first", "idle", "threads", "sqlite"});
  const std::vector<uint32_t> k =
      Numbers(ValueOr(FLAGS_k, Words{"0", "1", "4", "16", "64", "256"},
                      Words{"0", "4"}),
              "k", kCycleImageBytes / kPageBytes);
  const std::vector<uint32_t> threads =
      Numbers(ValueOr(FLAGS_threads, Words{"1", "2", "4"}, Words{"1", "2"}),
              "threads", 64);
  for (uint32_t count : threads) {
    if (count == 0) Die("--threads: 0 threads do nothing");
  }
  const std::vector<uint64_t> touched = TouchedBytes();

  CycleReport report;
  *report.mutable_machine() = ThisMachine();
  report.set_rounds(settings.rounds);
  report.set_image_bytes(kCycleImageBytes);
  report.set_memory_bytes(kCycleMemoryBytes);
  report.set_default_options(DescribeDefaultOptions());
  for (const std::string& table : tables) {
    if (table == "steady") {
      for (const CycleChoice& choice : Choices(pages, k, touched)) {
        MeasureSteady(settings, choice, report);
      }
    } else if (table == "first") {
      for (bool known : {true, false}) {
        for (const CycleChoice& choice :
             Choices({"same"}, k, {kCycleImageBytes})) {
          MeasureFirst(settings, choice, known, report);
        }
      }
    } else if (table == "idle") {
      for (const CycleChoice& choice :
           Choices({"same"}, k, {kCycleImageBytes})) {
        MeasureIdle(settings, choice, report);
      }
    } else if (table == "threads") {
      for (const CycleChoice& choice : Choices(pages, k, touched)) {
        if (choice.k == 0) continue;
        MeasureThreads(settings, choice, threads, report);
      }
    } else {
      for (const char* rows : {"same", "churning"}) {
        MeasureSqlite(settings, rows, kSqliteRows, report);
      }
    }
  }
  AddGoals(report);
  return Print(report, ToText(report));
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
