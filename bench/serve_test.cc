// Runs bench:serve with next to no repetitions and looks at what it prints. No
// time is asserted.

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <array>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/bench/serve.pb.h"
#include "firsttouch/bench/serve_guests.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/uffd.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace firsttouch::bench {
namespace {

using ::google::protobuf::util::JsonStringToMessage;
using ::testing::HasSubstr;
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

class Smoke : public testing::Test {
 protected:
  void SetUp() override {
    const absl::Status opened = Uffd::Open(RealKernel(), {}).status();
    if (!opened.ok()) GTEST_SKIP() << opened;
  }
};

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
      EXPECT_GE(row.cached_mib_before(), mib);
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
      EXPECT_EQ(row.early(), row.way() == kLimitName ? pages : 0);
    }
    if (row.way() == kNoSetName) {
      // Read-ahead, where pages are touched in a row.
      EXPECT_LE(row.faults(), row.pattern() == "random" ? pages : pages / 2);
    } else if (!has_set) {
      EXPECT_EQ(row.faults(), row.way() == kLimitName ? 0 : pages);
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
                                          {kLimitName, expected},
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
  const Ran ran =
      RunProgram(absl::StrCat("serve --quick --directory=", directory));
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_THAT(ran.output,
              HasSubstr("random, warm, each page written, 3 guests"));
  EXPECT_THAT(ran.output, HasSubstr("working set: time / the other's"));
  for (const auto line : absl::StrSplit(ran.output, '\n')) {
    EXPECT_LE(line.size(), 80u) << line;
  }
  EXPECT_EQ(system(absl::StrCat("rmdir ", directory).c_str()), 0);
}

TEST(Flags, BadValuesAreNamed) {
  EXPECT_THAT(ErrorOf("serve --quick --tables=fault,faults"),
              HasSubstr("--tables: faults is none of guests, fault"));
  EXPECT_THAT(ErrorOf("serve --format=xml"),
              HasSubstr("--format=xml is neither text nor json"));
  EXPECT_EQ(RunProgram("serve --format=xml").exit_code, 1);
}

}  // namespace
}  // namespace firsttouch::bench
