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
// and signals are counted in a run of their own (see count_calls.h), page
// faults and TLB shootdowns by the kernel while time is measured. After each
// measurement the next tenant's memory is compared with the image: a strategy
// that is fast and wrong ends the program. It exits with 0 whether a goal was
// reached or not: a busy machine must not fail a build.

#include <cstdint>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/cycle_goals.h"
#include "firsttouch/bench/cycle_measure.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/cycle_text.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/machine.h"
#include "firsttouch/bench/report.pb.h"
#include "firsttouch/bench/sqlite_measure.h"
#include "firsttouch/uffd/units.h"

using Words = std::vector<std::string>;

ABSL_FLAG(std::string, format, "text", "text or json");
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

std::vector<uint64_t> TouchedBytes() {
  std::vector<uint64_t> bytes;
  for (const std::string& touched :
       ValueOr(FLAGS_touched, Words{"image", "memory"}, Words{"image"})) {
    if (touched != "image" && touched != "memory") {
      Die(absl::StrCat("--touched: ", touched, " is neither image nor memory"));
    }
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

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Acquire, change pages, release.");
  absl::ParseCommandLine(argc, argv);
  const std::string format = absl::GetFlag(FLAGS_format);
  if (format != "text" && format != "json") {
    Die(absl::StrCat("--format=", format, " is neither text nor json"));
  }
  const CycleSettings settings = SettingsFromFlags();
  const Words pages = absl::GetFlag(FLAGS_pages);
  for (const std::string& choice : pages) {
    if (choice != "same" && choice != "churning" && choice != "mixed") {
      Die(absl::StrCat("--pages: ", choice,
                       " is none of same, churning, mixed"));
    }
  }
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
  for (const std::string& table : absl::GetFlag(FLAGS_tables)) {
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
    } else if (table == "sqlite") {
      for (const char* rows : {"same", "churning"}) {
        MeasureSqlite(settings, rows, absl::GetFlag(FLAGS_strategies),
                      kSqliteRows, report);
      }
    } else {
      Die(absl::StrCat("--tables: ", table,
                       " is none of steady, first, idle, threads, sqlite"));
    }
  }
  AddGoals(report);
  std::cout << (format == "json" ? ToJson(report) : ToText(report));
  if (!std::cout.flush()) {
    std::cerr << "standard output cannot be written\n";
    return 74;  // EX_IOERR
  }
  return 0;
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
