// A tenant's whole cycle: acquire, change k pages, release; for firsttouch and
// for the strategies that there are without it, in turn in one process; and
// what it is to reach.
//
//   bazel run -c opt //bench:cycle
//   bazel run -c opt //bench:cycle -- --format=json
//   bazel run -c opt //bench:cycle -- --pages=mixed --tables=steady
//   bazel run //bench:cycle -- --quick
//
// README.md says how it is measured and what the tables are. It exits with 0
// whether a goal was reached or not: a busy machine must not fail a build.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
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
ABSL_FLAG(Words, k, Words({"0", "1", "4", "16", "64", "256"}),
          "pages changed per cycle (mixed always changes 32)");
ABSL_FLAG(Words, touched, Words({"image", "memory"}),
          "of what the changed pages are taken: image (1 MiB), memory (4 MiB)");
ABSL_FLAG(Words, threads, Words({"1", "2", "4"}),
          "numbers of threads for the table threads");
ABSL_FLAG(std::string, strategies, "",
          "only strategies whose name contains this");
ABSL_FLAG(bool, quick, false,
          "to see that everything works: what is not asked for otherwise is as "
          "little as possible, and the numbers mean nothing");
ABSL_FLAG(int32_t, rounds, 11, "rounds in which the strategies take turns");
ABSL_FLAG(int32_t, cycles, 2000, "cycles of each strategy in a round, at most");
ABSL_FLAG(int32_t, round_ms, 10,
          "a round of a strategy ends after this time even with fewer cycles");
ABSL_FLAG(int32_t, warmup, 400,
          "cycles before the first that counts, until what a strategy learns "
          "is settled");
ABSL_FLAG(int32_t, counted, 100,
          "cycles in which system calls and signals are counted, 0: they are "
          "not");

namespace firsttouch::bench {
namespace {

// What the words of a flag say.
std::vector<uint32_t> Numbers(const Words& words, const char* flag,
                              uint32_t least, uint32_t most) {
  std::vector<uint32_t> numbers;
  for (const std::string& word : words) {
    uint32_t& number = numbers.emplace_back();
    if (!absl::SimpleAtoi(word, &number) || number < least || number > most) {
      Die(absl::StrCat("--", flag, ": ", word, " is not in ", least, " to ",
                       most));
    }
  }
  return numbers;
}

void ParseCycleFlags(int argc, char** argv) {
  ParseFlags(argc, argv, "Acquire, change pages, release.");
  if (!absl::GetFlag(FLAGS_quick)) return;
  absl::SetFlag(&FLAGS_k, {"0", "4"});
  absl::SetFlag(&FLAGS_touched, {"image"});
  absl::SetFlag(&FLAGS_threads, {"1", "2"});
  absl::SetFlag(&FLAGS_rounds, 1);
  absl::SetFlag(&FLAGS_cycles, 5);
  absl::SetFlag(&FLAGS_round_ms, 1);
  absl::SetFlag(&FLAGS_warmup, 3);
  absl::SetFlag(&FLAGS_counted, 4);
  // What is asked for stays.
  absl::ParseCommandLine(argc, argv);
}

CycleSettings SettingsFromFlags() {
  CycleSettings settings;
  settings.rounds = absl::GetFlag(FLAGS_rounds);
  settings.cycles = absl::GetFlag(FLAGS_cycles);
  settings.warmup = absl::GetFlag(FLAGS_warmup);
  settings.counted = absl::GetFlag(FLAGS_counted);
  settings.round_ns = absl::GetFlag(FLAGS_round_ms) * 1e6;
  settings.threads = Numbers(absl::GetFlag(FLAGS_threads), "threads", 1, 64);
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
  if (settings.strategies.empty()) {
    Die("--strategies: there is no such strategy");
  }
  return settings;
}

// What the tables measure one after the other, in rows without a strategy.
std::vector<CycleRow> RowsFromFlags() {
  const Words pages = Checked(absl::GetFlag(FLAGS_pages), "pages",
                              {"same", "churning", "mixed"});
  const Words touched =
      Checked(absl::GetFlag(FLAGS_touched), "touched", {"image", "memory"});
  const std::vector<uint32_t> k =
      Numbers(absl::GetFlag(FLAGS_k), "k", 0, kCycleImageBytes / kPageBytes);
  std::vector<CycleRow> rows;
  const auto add = [&](CycleRow::Table table) {
    const bool sqlite = table == CycleRow::SQLITE;
    const bool chosen = table == CycleRow::STEADY || table == CycleRow::THREADS;
    for (const std::string& which : chosen   ? pages
                                    : sqlite ? Words{"same", "churning"}
                                             : Words{"same"}) {
      for (const std::string& bytes : chosen ? touched : Words{"image"}) {
        for (uint32_t changed : sqlite ? std::vector<uint32_t>{0}
                                : which == "mixed"
                                    ? std::vector{kMixedSame + kMixedChurning}
                                    : k) {
          // No page cannot churn, and is nothing to do at once.
          if (changed == 0 && chosen &&
              (which != "same" || table == CycleRow::THREADS)) {
            continue;
          }
          CycleRow& row = rows.emplace_back();
          row.set_table(table);
          row.set_pages(which);
          row.set_touched_bytes(bytes == "image" ? kCycleImageBytes
                                                 : kCycleMemoryBytes);
          row.set_changed_pages(changed);
          row.set_threads(1);
        }
      }
    }
  };
  for (const std::string& table :
       Checked(absl::GetFlag(FLAGS_tables), "tables",
               {"steady", "first", "idle", "threads", "sqlite"})) {
    if (table == "steady") add(CycleRow::STEADY);
    if (table == "first") add(CycleRow::FIRST_KNOWN_IMAGE);
    if (table == "first") add(CycleRow::FIRST_NEW_IMAGE);
    if (table == "idle") add(CycleRow::IDLE);
    if (table == "threads") add(CycleRow::THREADS);
    if (table == "sqlite") add(CycleRow::SQLITE);
  }
  return rows;
}

// What a table shows. The last column, "x", is there where there is a time.
std::vector<Column> ColumnsOf(CycleRow::Table table) {
  const Column median = {"median", "median_ns"};
  const Column mean = {"mean", "mean_ns"};
  const Column p99 = {"p99", "p99_ns"};
  const Column calls = {"calls", "system_calls"};
  const Column signals = {"sigs", "signals"};
  const Column faults = {"faults", "page_faults"};
  const Column shootdowns = {"TLB", "tlb_shootdowns"};
  const Column kib = {"KiB", "private_kib_per_idle_slot"};
  switch (table) {
    case CycleRow::IDLE:
      return {kib};
    case CycleRow::STEADY:
      return {median, mean, p99, calls, signals, faults, shootdowns, kib};
    case CycleRow::THREADS:
      return {median,
              mean,
              p99,
              {"1000/s", "cycles_per_second", 1000},
              {"scale", "scaling"},
              {"/lim", "scaling_of_limit"},
              {"flt", "page_faults"},
              shootdowns};
    case CycleRow::SQLITE:
      return {median, mean,    p99,    {"hand", "handover_median_ns"},
              calls,  signals, faults, kib};
    default:
      return {median, mean, p99};
  }
}

std::string ToText(const CycleReport& report) {
  std::string text = absl::StrCat(
      MachineText(report.machine()),
      Wrapped(absl::StrCat(kDefaultName, " here: ", report.default_options())),
      report.rounds(), " rounds; image ", Size(report.image_bytes()),
      ", memory ", Size(report.memory_bytes()), "; all per cycle\n",
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
  const auto line = [&](const CycleRow& row) -> Line {
    const bool first = row.table() == CycleRow::FIRST_KNOWN_IMAGE ||
                       row.table() == CycleRow::FIRST_NEW_IMAGE;
    return {Situation(row), row.way(), ColumnsOf(row.table()),
            row.table() == CycleRow::IDLE ? "" : "median_ns",
            RowBeside(report.rows(), row,
                      first                             ? kCopyOnWriteName
                      : row.table() == CycleRow::SQLITE ? kScanName
                                                        : kLimitName)};
  };
  return absl::StrCat(
      text, TablesText<CycleRow>(report.rows(), line),
      GoalsText("goals, all for default options; the median over the rounds, "
                "for times that of\nthe cycles' medians and that of their "
                "means: both must be within the bound",
                report.goals()));
}

int Main(int argc, char** argv) {
  ParseCycleFlags(argc, argv);
  const CycleSettings settings = SettingsFromFlags();
  const std::vector<CycleRow> rows = RowsFromFlags();
  CycleReport report = NewReport<CycleReport>(settings.rounds);
  report.set_image_bytes(kCycleImageBytes);
  report.set_memory_bytes(kCycleMemoryBytes);
  report.set_default_options(DescribeDefaultOptions());
  for (const CycleRow& row : rows) MeasureRows(settings, row, report);
  AddGoals(report);
  return Print(report, ToText(report));
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
