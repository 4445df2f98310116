// Runs every program here with next to no repetitions and looks at what it
// prints. No time is asserted.

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <array>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/report.pb.h"
#include "firsttouch/bench/serve_guests.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "gmock/gmock.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

using ::google::protobuf::util::JsonStringToMessage;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

using Names = std::set<std::string>;

struct Ran {
  int exit_code = -1;
  std::string output;
};

// Runs bench/`command` and returns what it writes to stdout, and to stderr too
// if asked for.
Ran RunProgram(const std::string& command, const char* errors = "/dev/null") {
  Ran ran;
  FILE* const pipe =
      popen(absl::StrCat("bench/", command, " 2>", errors).c_str(), "r");
  if (pipe == nullptr) return ran;
  std::array<char, 4096> buffer;
  for (size_t got; (got = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    ran.output.append(buffer.data(), got);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ran.exit_code = WEXITSTATUS(status);
  return ran;
}

// What it says with --help or a wrong value.
std::string ErrorOf(const std::string& command) {
  return RunProgram(command, "&1").output;
}

// The report that it prints.
template <typename Report>
Report ReportOf(const std::string& command) {
  const Ran ran = RunProgram(command);
  EXPECT_EQ(ran.exit_code, 0);
  Report report;
  EXPECT_TRUE(JsonStringToMessage(ran.output, &report).ok()) << ran.output;
  return report;
}

// Programs say why and exit with 1 where the machine lets nobody in.
class Smoke : public testing::Test {
 protected:
  void SetUp() override {
    static const bool refused = absl::StrContains(
        ErrorOf("ratios --rounds=1 --repeats=1"), "userfaultfd");
    if (refused) GTEST_SKIP() << "userfaultfd is refused here";
  }
};

TEST_F(Smoke, FloorsPrintJson) {
  if (!Pagemap::Open(RealKernel()).ok()) GTEST_SKIP() << "no PAGEMAP_SCAN here";
  const auto root = ReportOf<google::protobuf::Struct>(
      "floors --benchmark_repetitions=1 --benchmark_min_time=0 "
      "--benchmark_report_aggregates_only=false --benchmark_format=json");
  const auto& context = root.fields().at("context").struct_value().fields();
  EXPECT_THAT(context.at("kernel").string_value(), Not(IsEmpty()));
  Names names;
  for (const auto& value :
       root.fields().at("benchmarks").list_value().values()) {
    const auto& fields = value.struct_value().fields();
    EXPECT_FALSE(fields.contains("error_message")) << value.DebugString();
    names.insert(fields.at("name").string_value());
  }
  EXPECT_EQ(names,
            (Names{"copy/memcpy of image", "copy/read memory and image",
                   "kernel/first writes to 256 pages",
                   "kernel/scan of 256 pages", "kernel/scan of 1024 pages",
                   "kernel/protect 256 pages", "kernel/protect 1024 pages"}));
}

TEST_F(Smoke, RatiosSayWhatIsReached) {
  const auto report =
      ReportOf<RatioReport>("ratios --rounds=1 --repeats=1 --format=json");
  EXPECT_THAT(report.machine().kernel(), HasSubstr("Linux"));
  EXPECT_EQ(report.rounds(), 1);
  EXPECT_THAT(report.ratios(), SizeIs(16));
  Names with_goal;
  for (const Ratio& ratio : report.ratios()) {
    EXPECT_GT(ratio.ours_ns(), 0) << ratio.DebugString();
    EXPECT_GT(ratio.ratio(), 0) << ratio.DebugString();
    EXPECT_EQ(ratio.has_goal(), ratio.has_reached()) << ratio.DebugString();
    if (!ratio.has_goal()) continue;
    EXPECT_EQ(ratio.reached(), ratio.ratio() <= ratio.goal());
    with_goal.insert(absl::StrCat(ratio.name(), " <= ", ratio.goal()));
  }
  EXPECT_EQ(with_goal, (Names{"read image pages, shared <= 1.3",
                              "fill 64 KiB by read, copied <= 0.8",
                              "fill 64 KiB by read, copied <= 0.45",
                              "fill 64 KiB by write, copied <= 0.8",
                              "fill 64 KiB by write, copied <= 0.45",
                              "trap by read <= 1.2", "trap by write <= 1.2",
                              "locate an address <= 5"}));
}

TEST_F(Smoke, CycleHasARowForEachStrategy) {
  const auto report = ReportOf<CycleReport>("cycle --quick --format=json");
  EXPECT_EQ(report.image_bytes(), 1 << 20);
  EXPECT_EQ(report.memory_bytes(), 4 << 20);
  std::map<int, Names> strategies;
  std::map<int, Names> pages;
  std::set<int> threads;
  for (const CycleRow& row : report.rows()) {
    strategies[row.table()].insert(row.way());
    pages[row.table()].insert(row.pages());
    threads.insert(row.threads());
    if (row.table() == CycleRow::IDLE) continue;
    EXPECT_EQ(row.round_median_ns_size(), 1) << row.DebugString();
    EXPECT_EQ(row.round_mean_ns_size(), 1) << row.DebugString();
    EXPECT_EQ(row.round_handover_median_ns_size(),
              row.table() == CycleRow::SQLITE ? 1 : 0);
    EXPECT_EQ(row.has_scaling_of_limit(), row.table() == CycleRow::THREADS);
  }
  Names possible;
  Names but_the_limit;
  Names of_sqlite;
  for (const CycleStrategyFactory& strategy : AllCycleStrategies()) {
    EXPECT_LE(strategy.name.size(), 22u) << strategy.name;
    bool skipped = false;
    for (const SkippedStrategy& other : report.skipped()) {
      EXPECT_THAT(other.reason(), Not(IsEmpty()));
      skipped |= other.way() == strategy.name;
    }
    if (skipped) continue;
    possible.insert(strategy.name);
    if (!strategy.traits.is_limit) but_the_limit.insert(strategy.name);
    if (strategy.traits.for_sqlite) of_sqlite.insert(strategy.name);
  }
  EXPECT_EQ(strategies[CycleRow::STEADY], possible);
  EXPECT_EQ(strategies[CycleRow::THREADS], possible);
  EXPECT_EQ(strategies[CycleRow::FIRST_KNOWN_IMAGE], but_the_limit);
  EXPECT_EQ(strategies[CycleRow::FIRST_NEW_IMAGE], but_the_limit);
  EXPECT_EQ(strategies[CycleRow::IDLE], but_the_limit);
  EXPECT_EQ(strategies[CycleRow::SQLITE], of_sqlite);
  const Names all_pages = {"same", "churning", "mixed"};
  EXPECT_EQ(pages[CycleRow::STEADY], all_pages);
  EXPECT_EQ(pages[CycleRow::THREADS], all_pages);
  EXPECT_EQ(pages[CycleRow::SQLITE], (Names{"same", "churning"}));
  EXPECT_EQ(threads, (std::set<int>{1, 2}));

  // Which goals there are, whether reached or not.
  Names goals;
  for (const Goal& goal : report.goals()) {
    goals.insert(goal.name().substr(0, goal.name().find(':')));
    EXPECT_EQ(goal.has_measured(), goal.has_reached()) << goal.DebugString();
  }
  EXPECT_EQ(goals, (Names{"same pages", "churning pages", "mixed pages",
                          "first cycle, known image", "first cycle, new image",
                          "private KiB of an idle slot",
                          "same pages, 2 threads", "churning pages, 2 threads",
                          "mixed pages, 2 threads", "SQLite"}));
}

TEST_F(Smoke, CycleCountsWhatCanBeKnown) {
  const auto report = ReportOf<CycleReport>(
      "cycle --quick --tables=steady,idle --pages=same --cycles=40 "
      "--format=json");
  if (report.counted_by() != "ptrace") {
    GTEST_SKIP() << "ptrace is refused here: " << report.counted_by();
  }
  for (const CycleRow& row : report.rows()) {
    SCOPED_TRACE(row.DebugString());
    const double changed_kib = 4 * row.changed_pages();
    const double kib = row.private_kib_per_idle_slot();
    if (row.table() == CycleRow::IDLE) {
      if (row.way() != kDefaultName) continue;
      // Its changed pages, and at most one of book-keeping.
      EXPECT_GE(kib, changed_kib);
      EXPECT_LE(kib, changed_kib + 8);
    } else if (row.way() == kCopyOnWriteName) {
      // One call, and a fault for each page.
      EXPECT_EQ(row.system_calls(), 1);
      EXPECT_NEAR(row.page_faults(), row.changed_pages(), 0.5);
      EXPECT_EQ(kib, 0);
    } else if (row.way() == kLimitName) {
      EXPECT_EQ(row.system_calls(), 0);
      EXPECT_LT(row.page_faults(), 0.5);
    } else if (row.way() == kDefaultName) {
      // The steady cycle that firsttouch is there for.
      EXPECT_EQ(row.system_calls(), 0);
      EXPECT_EQ(row.signals(), 0);
      EXPECT_LT(row.page_faults(), 0.5);
      EXPECT_EQ(kib, changed_kib);
    }
  }
}

TEST_F(Smoke, ContendersReadTheSameAndPassOnACleanMemory) {
  const std::string requests = absl::StrCat(testing::TempDir(), "/requests");
  for (const char* request :
       {"work=cycle pages=same k=4", "work=cycle pages=others k=9",
        "work=cycle pages=mixed k=32 threads=2",
        "work=cycle k=4 image_kib=64 images=9 slots=4", "work=cycle grown=1",
        "work=touch first=264 count=16 write=1", "work=first k=2 slots=3",
        "work=many k=2 slots=5"}) {
    std::ofstream(requests) << "round " << request << " cycles=7\ncheck\n";
    Names sums;
    for (const char* way : {"firsttouch", "dontneed", "scan", "memcpy"}) {
      if (std::string(way) == "scan" && !Pagemap::Open(RealKernel()).ok()) {
        continue;
      }
      const Ran ran =
          RunProgram(absl::StrCat("peers/native ", way, " < ", requests), "&1");
      EXPECT_EQ(ran.exit_code, 0) << request << ": " << way << ran.output;
      const std::vector<std::string> lines = absl::StrSplit(ran.output, '\n');
      google::protobuf::Struct answer;
      ASSERT_TRUE(JsonStringToMessage(lines[0], &answer).ok()) << ran.output;
      if (answer.fields().contains("sum")) {
        sums.insert(answer.fields().at("sum").string_value());
      }
      EXPECT_THAT(lines[1], HasSubstr("\"clean\":\"yes\"")) << request;
    }
    EXPECT_LE(sums.size(), 1u)
        << request << ": " << testing::PrintToString(sums);
  }
  EXPECT_THAT(RunProgram("peers/native some < /dev/null").exit_code, 0);
  std::ofstream(requests) << "round work=cycle\n";
  EXPECT_THAT(
      RunProgram(absl::StrCat("peers/native some < ", requests), "&1").output,
      HasSubstr("some: there is no such way"));
}

TEST_F(Smoke, ImagesHaveTheRowsAndGoalsOfEachTable) {
  const auto report = ReportOf<ImagesReport>(absl::StrCat(
      "images --quick --format=json --directory=", testing::TempDir()));
  Names starts;
  for (const StartRow& row : report.starts()) {
    starts.insert(
        absl::StrCat(row.page_cache(), "/", row.query(), "/", row.way()));
    EXPECT_GT(row.open_ns(), 0);
    EXPECT_GT(row.bind_ns(), 0);
    EXPECT_GT(row.query_ns(), 0);
    EXPECT_THAT(row.round_query_ns(), SizeIs(report.rounds()));
    // This is what a working set is for.
    if (row.way() == "working set" && row.query() == "same") {
      EXPECT_EQ(row.faults(), 0) << row.DebugString();
    }
  }
  Names expected;
  for (const char* table : {"warm/same/", "warm/other/", "cold/same/"}) {
    for (const char* strategy : {"working set", "no working set",
                                 "read into memory", "plain private mapping"}) {
      expected.insert(absl::StrCat(table, strategy));
    }
  }
  EXPECT_EQ(starts, expected);
  EXPECT_THAT(report.sizes(), SizeIs(2));
  EXPECT_GT(report.stored().one_file_bytes(), 0u);
  EXPECT_GT(report.stored().store_bytes(), report.stored().one_file_bytes());
  EXPECT_LT(report.stored().store_bytes(), report.stored().all_files_bytes());
  EXPECT_THAT(report.builds(), SizeIs(4));
  Names goals;
  for (const Goal& goal : report.goals()) {
    goals.insert(goal.name());
    EXPECT_TRUE(goal.has_reached()) << goal.DebugString();
  }
  EXPECT_THAT(goals, SizeIs(3));
}

TEST_F(Smoke, ServeCountsWhatServersAndThePageCacheDid) {
  const auto report = ReportOf<ServeReport>(absl::StrCat(
      "serve --quick --format=json --directory=", testing::TempDir()));
  const double pages = static_cast<double>(report.touched_bytes()) / 4096;
  const double mib = static_cast<double>(report.image_bytes()) / (1 << 20);
  double early = 0;
  std::map<std::string, Names> situations;
  for (const ServeRow& row : report.rows()) {
    SCOPED_TRACE(row.DebugString());
    situations[row.way()].insert(absl::StrCat(row.pattern(), "/",
                                              row.page_cache(), "/",
                                              row.touch(), "/", row.guests()));
    EXPECT_GE(row.all_ms(), row.mean_ms());
    EXPECT_GT(row.mean_ms(), row.ready_ms());
    if (row.page_cache() == "warm") {
      EXPECT_EQ(row.cached_mib_before(), mib);
    } else {
      EXPECT_LE(row.cached_mib_before(), mib / 100);
      EXPECT_GE(row.cached_mib_after(), pages / 256);
    }
    EXPECT_EQ(row.has_faults(), row.way() != kMappingName);
    if (row.way() == kMappingName) continue;
    EXPECT_GE(row.copied(), pages);
    EXPECT_GT(row.server_kib(), 0);
    const bool has_set = row.way() == kSetName || row.way() == kUncheckedName;
    if (has_set) {
      // A guest may be faster, so that this is nothing in some rows.
      early += row.early();
    } else {
      EXPECT_EQ(row.early(), 0);
    }
    if (row.way() == kNoSetName) {
      // Read-ahead, where pages are touched in a row.
      EXPECT_LE(row.faults(), row.pattern() == "random" ? pages : pages / 2);
    } else if (!has_set) {
      EXPECT_EQ(row.faults(), pages);
      EXPECT_EQ(row.copied(), pages);
    }
  }
  EXPECT_GT(early, 0);
  Names expected;
  for (const char* pattern : {"sequential/", "random/"}) {
    for (const char* cache : {"warm/", "cold/"}) {
      if (report.skipped_size() > 0 && cache[0] == 'c') continue;
      for (const char* touch : {"written/", "read/"}) {
        for (const char* guests : {"1", "3"}) {
          expected.insert(absl::StrCat(pattern, cache, touch, guests));
        }
      }
    }
  }
  const Names fault = {"random/warm/read/1"};
  EXPECT_EQ(situations,
            (std::map<std::string, Names>{{kMappingName, expected},
                                          {kExampleName, expected},
                                          {kSetName, expected},
                                          {kUncheckedName, expected},
                                          {kNoSetName, expected},
                                          {kBareLoopName, fault},
                                          {kPageName, fault}}));
  Names goals;
  for (const Goal& goal : report.goals()) {
    goals.insert(goal.name());
    EXPECT_TRUE(goal.has_reached()) << goal.DebugString();
  }
  Names to_reach = {"working set: time / the other's", "a fault / the other's",
                    "memory of the server / for one guest"};
  if (report.skipped_size() == 0) {
    to_reach.insert("set, unchecked: time / the other's");
  }
  EXPECT_EQ(goals, to_reach);
}

TEST_F(Smoke, TextFitsATerminalAndNothingIsLeftBehind) {
  const std::string directory = absl::StrCat(testing::TempDir(), "/images");
  ASSERT_EQ(system(absl::StrCat("mkdir -p ", directory).c_str()), 0);
  const std::map<std::string, std::vector<const char*>> expected = {
      {"ratios --rounds=1 --repeats=1", {"goal 1.30: "}},
      {"cycle --quick --pages=mixed",
       {"steady, k=32 mixed of 1 MiB", "image known, k=4 same of 1 MiB",
        "2 threads, k=32 mixed of 1 MiB", "SQLite, the same rows each time",
        "goals that were measured are reached"}},
      {absl::StrCat("images --quick --directory=", directory),
       {"first query / the other's"}},
      {absl::StrCat("serve --quick --directory=", directory),
       {"random, warm, each page written, 3 guests",
        "working set: time / the other's"}}};
  for (const auto& [command, texts] : expected) {
    const Ran ran = RunProgram(command);
    EXPECT_EQ(ran.exit_code, 0) << command;
    for (const char* text : texts) EXPECT_THAT(ran.output, HasSubstr(text));
    for (const auto line : absl::StrSplit(ran.output, '\n')) {
      EXPECT_LE(line.size(), 80u) << line;
    }
  }
  EXPECT_EQ(system(absl::StrCat("rmdir ", directory).c_str()), 0);
}

TEST(Flags, BadValuesAreNamed) {
  EXPECT_THAT(ErrorOf("cycle --k=257"),
              HasSubstr("--k: 257 is not in 0 to 256"));
  EXPECT_THAT(ErrorOf("cycle --threads=0"),
              HasSubstr("--threads: 0 is not in 1 to 64"));
  EXPECT_THAT(ErrorOf("cycle --pages=some"),
              HasSubstr("--pages: some is none of same, churning, mixed"));
  EXPECT_THAT(ErrorOf("cycle --strategies=none"),
              HasSubstr("--strategies: there is no such strategy"));
  EXPECT_THAT(ErrorOf("cycle --tables=all"),
              HasSubstr("--tables: all is none of steady, first, idle"));
  EXPECT_THAT(ErrorOf("serve --quick --tables=fault,faults"),
              HasSubstr("--tables: faults is none of guests, fault"));
  EXPECT_THAT(ErrorOf("ratios --format=xml"),
              HasSubstr("--format=xml is neither text nor json"));
  EXPECT_EQ(RunProgram("ratios --format=xml").exit_code, 1);
}

}  // namespace
}  // namespace firsttouch::bench
