// Runs every program here with next to no repetitions and looks at what it
// prints. No time is asserted.

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <array>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/bench/cycle_strategies.h"
#include "firsttouch/bench/image_starts.h"
#include "firsttouch/bench/report.pb.h"
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
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

struct Ran {
  int exit_code = -1;
  std::string output;
};

// Runs bench/`program` and returns what it writes to stdout, and to stderr too
// if asked for.
Ran RunProgram(const std::string& program, const std::string& arguments,
               bool with_stderr = false) {
  const std::string command =
      absl::StrCat("bench/", program, " ", arguments,
                   with_stderr ? " 2>&1" : " 2>/dev/null");
  Ran ran;
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return ran;
  std::array<char, 4096> buffer;
  for (size_t got; (got = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    ran.output.append(buffer.data(), got);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ran.exit_code = WEXITSTATUS(status);
  return ran;
}

bool UserfaultfdRefused() {
  // The programs say why and exit with 1 where the machine lets nobody in.
  return absl::StrContains(
      RunProgram("ratios", "--rounds=1 --repeats=1", /*with_stderr=*/true)
          .output,
      "userfaultfd");
}

#define SKIP_WITHOUT_USERFAULTFD() \
  if (UserfaultfdRefused()) GTEST_SKIP() << "userfaultfd is refused here"

std::vector<std::string> TooWide(const std::string& text) {
  std::vector<std::string> wide;
  for (const auto line : absl::StrSplit(text, '\n')) {
    if (line.size() > 80) wide.emplace_back(line);
  }
  return wide;
}

// Names of the benchmarks in google-benchmark's JSON.
std::set<std::string> BenchmarkNames(const std::string& json) {
  google::protobuf::Struct root;
  EXPECT_TRUE(JsonStringToMessage(json, &root).ok()) << json;
  EXPECT_THAT(root.fields()
                  .at("context")
                  .struct_value()
                  .fields()
                  .at("kernel")
                  .string_value(),
              testing::Not(IsEmpty()));
  std::set<std::string> names;
  for (const auto& value :
       root.fields().at("benchmarks").list_value().values()) {
    const auto& fields = value.struct_value().fields();
    EXPECT_FALSE(fields.contains("error_message")) << value.DebugString();
    names.insert(fields.at("name").string_value());
  }
  return names;
}

constexpr char kOnce[] =
    " --benchmark_repetitions=1 --benchmark_report_aggregates_only=false "
    "--benchmark_min_time=0 --benchmark_format=json";

TEST(Floors, PrintsJson) {
  SKIP_WITHOUT_USERFAULTFD();
  if (!Pagemap::Open(RealKernel()).ok()) GTEST_SKIP() << "no PAGEMAP_SCAN here";
  const Ran ran = RunProgram("floors", kOnce);
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(BenchmarkNames(ran.output),
            (std::set<std::string>{
                "copy/memcpy of image", "copy/read memory and image",
                "kernel/first writes to 256 pages", "kernel/scan of 256 pages",
                "kernel/scan of 1024 pages", "kernel/protect 256 pages",
                "kernel/protect 1024 pages"}));
}

TEST(Ratios, JsonSaysWhatIsReached) {
  SKIP_WITHOUT_USERFAULTFD();
  const Ran ran = RunProgram("ratios", "--rounds=1 --repeats=1 --format=json");
  ASSERT_EQ(ran.exit_code, 0);
  RatioReport report;
  ASSERT_TRUE(JsonStringToMessage(ran.output, &report).ok()) << ran.output;
  EXPECT_THAT(report.machine().kernel(), HasSubstr("Linux"));
  EXPECT_EQ(report.rounds(), 1);
  std::set<std::string> with_goal;
  for (const Ratio& ratio : report.ratios()) {
    EXPECT_GT(ratio.ours_ns(), 0) << ratio.DebugString();
    EXPECT_GT(ratio.ratio(), 0) << ratio.DebugString();
    EXPECT_EQ(ratio.has_goal(), ratio.has_reached()) << ratio.DebugString();
    if (!ratio.has_goal()) continue;
    EXPECT_EQ(ratio.reached(), ratio.ratio() <= ratio.goal());
    with_goal.insert(absl::StrCat(ratio.name(), " <= ", ratio.goal()));
  }
  EXPECT_EQ(with_goal,
            (std::set<std::string>{
                "read image pages, shared <= 1.3",
                "fill 64 KiB by read, copied <= 0.8",
                "fill 64 KiB by read, copied <= 0.45",
                "fill 64 KiB by write, copied <= 0.8",
                "fill 64 KiB by write, copied <= 0.45", "trap by read <= 1.2",
                "trap by write <= 1.2", "locate an address <= 5"}));
}

TEST(Ratios, TextFitsATerminal) {
  SKIP_WITHOUT_USERFAULTFD();
  const Ran ran = RunProgram("ratios", "--rounds=1 --repeats=1");
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_THAT(ran.output, HasSubstr("goal 1.30: "));
  EXPECT_THAT(TooWide(ran.output), IsEmpty());
}

TEST(Cycle, JsonHasARowForEachStrategy) {
  SKIP_WITHOUT_USERFAULTFD();
  const Ran ran = RunProgram("cycle", "--quick --format=json");
  ASSERT_EQ(ran.exit_code, 0);
  CycleReport report;
  ASSERT_TRUE(JsonStringToMessage(ran.output, &report).ok()) << ran.output;
  EXPECT_EQ(report.image_bytes(), 1 << 20);
  EXPECT_EQ(report.memory_bytes(), 4 << 20);
  std::map<int, std::set<std::string>> strategies;
  std::map<int, std::set<std::string>> pages;
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
  std::set<std::string> skipped;
  for (const SkippedStrategy& strategy : report.skipped()) {
    EXPECT_THAT(strategy.reason(), testing::Not(IsEmpty()));
    skipped.insert(strategy.way());
  }
  std::set<std::string> possible;
  std::set<std::string> but_the_limit;
  for (const CycleStrategyFactory& strategy : AllCycleStrategies()) {
    if (skipped.contains(strategy.name)) continue;
    possible.insert(strategy.name);
    if (!strategy.traits.is_limit) but_the_limit.insert(strategy.name);
  }
  EXPECT_EQ(strategies[CycleRow::STEADY], possible);
  EXPECT_EQ(strategies[CycleRow::THREADS], possible);
  EXPECT_EQ(strategies[CycleRow::FIRST_KNOWN_IMAGE], but_the_limit);
  EXPECT_EQ(strategies[CycleRow::FIRST_NEW_IMAGE], but_the_limit);
  EXPECT_EQ(strategies[CycleRow::IDLE], but_the_limit);
  EXPECT_THAT(strategies[CycleRow::SQLITE], Contains(kDefaultName));
  EXPECT_THAT(strategies[CycleRow::SQLITE], Contains(kCopyOnWriteName));
  EXPECT_THAT(strategies[CycleRow::SQLITE], Contains(kCopyImageName));
  const std::set<std::string> all_pages = {"same", "churning", "mixed"};
  EXPECT_EQ(pages[CycleRow::STEADY], all_pages);
  EXPECT_EQ(pages[CycleRow::THREADS], all_pages);
  EXPECT_EQ(pages[CycleRow::SQLITE],
            (std::set<std::string>{"same", "churning"}));
  EXPECT_EQ(threads, (std::set<int>{1, 2}));

  // Which goals there are, whether reached or not.
  std::set<std::string> goals;
  for (const Goal& goal : report.goals()) {
    goals.insert(goal.name().substr(0, goal.name().find(':')));
    EXPECT_EQ(goal.has_measured(), goal.has_reached()) << goal.DebugString();
  }
  EXPECT_EQ(goals, (std::set<std::string>{
                       "same pages", "churning pages", "mixed pages",
                       "first cycle, known image", "first cycle, new image",
                       "private KiB of an idle slot", "same pages, 2 threads",
                       "churning pages, 2 threads", "mixed pages, 2 threads",
                       "SQLite"}));
}

TEST(Cycle, CountsWhatCanBeKnown) {
  SKIP_WITHOUT_USERFAULTFD();
  const Ran ran = RunProgram(
      "cycle",
      "--quick --tables=steady,idle --pages=same --cycles=40 --format=json");
  ASSERT_EQ(ran.exit_code, 0);
  CycleReport report;
  ASSERT_TRUE(JsonStringToMessage(ran.output, &report).ok()) << ran.output;
  if (report.counted_by() != "ptrace") {
    GTEST_SKIP() << "ptrace is refused here: " << report.counted_by();
  }
  for (const CycleRow& row : report.rows()) {
    if (row.table() == CycleRow::IDLE) {
      if (row.way() != kDefaultName) continue;
      // Its changed pages, and at most one of book-keeping.
      EXPECT_GE(row.private_kib_per_idle_slot(), 4 * row.changed_pages());
      EXPECT_LE(row.private_kib_per_idle_slot(), 4 * row.changed_pages() + 8);
    } else if (row.way() == kCopyOnWriteName) {
      // One call, and a fault for each page.
      EXPECT_EQ(row.system_calls(), 1) << row.DebugString();
      EXPECT_NEAR(row.page_faults(), row.changed_pages(), 0.5)
          << row.DebugString();
      EXPECT_EQ(row.private_kib_per_idle_slot(), 0) << row.DebugString();
    } else if (row.way() == kLimitName) {
      EXPECT_EQ(row.system_calls(), 0) << row.DebugString();
      EXPECT_LT(row.page_faults(), 0.5) << row.DebugString();
    } else if (row.way() == kDefaultName) {
      // The steady cycle that firsttouch is there for.
      EXPECT_EQ(row.system_calls(), 0) << row.DebugString();
      EXPECT_EQ(row.signals(), 0) << row.DebugString();
      EXPECT_LT(row.page_faults(), 0.5) << row.DebugString();
      EXPECT_EQ(row.private_kib_per_idle_slot(), 4 * row.changed_pages())
          << row.DebugString();
    }
  }
}

TEST(Cycle, TextFitsATerminal) {
  SKIP_WITHOUT_USERFAULTFD();
  const Ran ran = RunProgram("cycle", "--quick --pages=mixed");
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_THAT(ran.output, HasSubstr("steady, k=32 mixed of 1 MiB"));
  EXPECT_THAT(ran.output, HasSubstr("image known, k=4 same of 1 MiB"));
  EXPECT_THAT(ran.output, HasSubstr("2 threads, k=32 mixed of 1 MiB"));
  EXPECT_THAT(ran.output, HasSubstr("SQLite, the same rows each time"));
  EXPECT_THAT(ran.output, HasSubstr("goals that were measured are reached"));
  EXPECT_THAT(TooWide(ran.output), IsEmpty());
  for (const CycleStrategyFactory& strategy : AllCycleStrategies()) {
    EXPECT_LE(strategy.name.size(), 22u) << strategy.name;
  }
}

TEST(Flags, BadValuesAreNamed) {
  EXPECT_THAT(RunProgram("cycle", "--k=257", true).output,
              HasSubstr("--k: 257 is not in 0 to 256"));
  EXPECT_THAT(RunProgram("cycle", "--pages=some", true).output,
              HasSubstr("--pages: some is none of same, churning, mixed"));
  EXPECT_THAT(RunProgram("cycle", "--strategies=none", true).output,
              HasSubstr("--strategies: there is no such strategy"));
  EXPECT_THAT(RunProgram("cycle", "--tables=all", true).output,
              HasSubstr("--tables: all is none of steady, first, idle"));
  const Ran ratios = RunProgram("ratios", "--format=xml", true);
  EXPECT_EQ(ratios.exit_code, 1);
  EXPECT_THAT(ratios.output,
              HasSubstr("--format=xml is neither text nor json"));
}

TEST(Images, EachTableHasItsRowsAndGoals) {
  SKIP_WITHOUT_USERFAULTFD();
  const std::string directory = testing::TempDir();
  const Ran ran = RunProgram(
      "images", absl::StrCat("--quick --format=json --directory=", directory));
  ASSERT_EQ(ran.exit_code, 0);
  ImagesReport report;
  ASSERT_TRUE(JsonStringToMessage(ran.output, &report).ok()) << ran.output;
  std::set<std::string> starts;
  for (const StartRow& row : report.starts()) {
    starts.insert(
        absl::StrCat(row.page_cache(), "/", row.query(), "/", row.way()));
    EXPECT_GT(row.open_ns(), 0);
    EXPECT_GT(row.bind_ns(), 0);
    EXPECT_GT(row.query_ns(), 0);
    EXPECT_THAT(row.round_query_ns(), SizeIs(report.rounds()));
    // This is what a working set is for.
    if (row.way() == kWithSetName && row.query() == "same") {
      EXPECT_EQ(row.faults(), 0) << row.DebugString();
    }
  }
  for (const std::string& strategy : AllStartStrategies()) {
    for (const char* table : {"warm/same/", "warm/other/", "cold/same/"}) {
      EXPECT_THAT(starts, Contains(absl::StrCat(table, strategy)));
    }
  }
  EXPECT_THAT(report.sizes(), SizeIs(2));
  EXPECT_GT(report.stored().one_file_bytes(), 0u);
  EXPECT_GT(report.stored().store_bytes(), report.stored().one_file_bytes());
  EXPECT_LT(report.stored().store_bytes(), report.stored().all_files_bytes());
  EXPECT_THAT(report.builds(), SizeIs(4));
  std::set<std::string> goals;
  for (const Goal& goal : report.goals()) {
    goals.insert(goal.name());
    EXPECT_TRUE(goal.has_reached()) << goal.DebugString();
  }
  EXPECT_THAT(goals, SizeIs(3));
}

TEST(Images, TheTextFitsATerminalAndLeavesNothingBehind) {
  SKIP_WITHOUT_USERFAULTFD();
  const std::string directory =
      absl::StrCat(testing::TempDir(), "/images_smoke");
  ASSERT_EQ(system(absl::StrCat("mkdir -p ", directory).c_str()), 0);
  const Ran ran =
      RunProgram("images", absl::StrCat("--quick --directory=", directory));
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_THAT(TooWide(ran.output), IsEmpty());
  EXPECT_THAT(ran.output, HasSubstr("first query / the other's"));
  EXPECT_EQ(system(absl::StrCat("rmdir ", directory).c_str()), 0);
}

}  // namespace
}  // namespace firsttouch::bench
