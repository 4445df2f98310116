// Runs sqlite_tenants as a program: with small numbers, in all ways, as root
// and as another user, and with wrong flags.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "examples/report.pb.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace firsttouch::examples {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kProgram[] = "examples/sqlite_tenants";

struct Result {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// Runs a shell command.
Result RunCommand(const std::string& command) {
  const std::string errors = testing::TempDir() + "/stderr";
  Result result;
  FILE* pipe = popen((command + " 2>" + errors).c_str(), "r");
  if (pipe == nullptr) return result;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    result.out.append(buffer, n);
  }
  const int status = pclose(pipe);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  std::stringstream text;
  text << std::ifstream(errors).rdbuf();
  result.err = text.str();
  return result;
}

Result RunWith(const std::string& flags) {
  return RunCommand(std::string(kProgram) + " " + flags);
}

// Parses the output of a run with --format=json.
sqlite_tenants::Report Parse(const Result& result) {
  sqlite_tenants::Report report;
  EXPECT_TRUE(
      google::protobuf::util::JsonStringToMessage(result.out, &report).ok())
      << result.out;
  return report;
}

// Checks what must hold for each column.
void ExpectAllRight(const sqlite_tenants::Report& report, uint32_t tenants,
                    uint32_t slots) {
  EXPECT_EQ(report.tenants(), tenants);
  EXPECT_EQ(report.slots(), slots);
  // One tenant in twenty leaves its bounds, after 9 answers of 13 and the trap.
  const uint32_t bad = (tenants + 9) / 20;
  for (const sqlite_tenants::Way& way : report.ways()) {
    SCOPED_TRACE(way.name());
    EXPECT_EQ(way.tenants(), tenants);
    EXPECT_EQ(way.trapped(), bad);
    EXPECT_EQ(way.answers(), (tenants - bad) * 14 + bad * 11);
    EXPECT_EQ(way.wrong_answers(), 0u);
    EXPECT_EQ(way.foreign_rows(), 0u);
    EXPECT_EQ(way.compared_bytes(), slots * report.image_bytes());
    EXPECT_EQ(way.differing_bytes(), 0u);
    EXPECT_GT(way.tenants_per_second(), 0);
    EXPECT_GT(way.handover_median_us(), 0);
    EXPECT_GE(way.handover_p99_us(), way.handover_median_us());
    EXPECT_EQ(way.traps(), static_cast<double>(bad) / tenants);
    EXPECT_GT(way.private_bytes_per_slot(), 0u);
    EXPECT_GE(way.eager_copy_bytes_per_slot(), report.image_bytes());
    if (way.name() == "kernel/eager-copy") {
      EXPECT_GE(way.private_bytes_per_slot(), report.image_bytes());
    } else {
      EXPECT_LT(way.private_bytes_per_slot(), report.image_bytes());
    }
  }
}

TEST(SqliteTenantsTest, EveryWayGivesTheRightAnswers) {
  const Result result = RunWith("--tenants=60 --slots=4 --format=json");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const sqlite_tenants::Report report = Parse(result);
  ExpectAllRight(report, 60, 4);
  EXPECT_EQ(report.ways().size() + report.skipped().size(), 6);
  std::set<std::string> names;
  for (const sqlite_tenants::Way& way : report.ways()) {
    names.insert(way.name());
    if (way.has_system_calls()) {
      EXPECT_EQ(result.err, "");
      double sum = 0;
      for (const auto& [name, count] : way.system_calls_by_name()) sum += count;
      EXPECT_NEAR(sum, way.system_calls(), 0.001);
      if (way.name() == "kernel/private-mapping") {
        // A madvise for each tenant, and no fault that this library resolves.
        EXPECT_GE(way.system_calls_by_name().at("madvise"), 1);
        EXPECT_EQ(way.minor_faults(), 0);
      }
    } else {
      EXPECT_THAT(result.err, HasSubstr("system calls are not counted: "));
    }
  }
  EXPECT_TRUE(names.count("kernel/private-mapping"));
  EXPECT_TRUE(names.count("kernel/eager-copy"));
  for (const sqlite_tenants::Skipped& skipped : report.skipped()) {
    EXPECT_NE(skipped.reason(), "") << skipped.name();
  }
}

TEST(SqliteTenantsTest, TheTableHasAColumnForEachWay) {
  const Result result = RunWith(
      "--tenants=30 --slots=3 --rows=2000 --threads=1 --nocount_system_calls");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(
      result.out,
      AllOf(HasSubstr("SQLite in 3 slots: 30 tenants, 1 thread, seed 1."),
            HasSubstr("  kernel   kernel\n"), HasSubstr(" private-   eager-\n"),
            HasSubstr("\ntenants per second "), HasSubstr("\nrecycle, median "),
            HasSubstr("\nprivate memory per slot ")));
  // No terminal, no progress.
  EXPECT_EQ(result.err, "");
  EXPECT_THAT(result.out, Not(HasSubstr("\r")));
}

TEST(SqliteTenantsTest, ResolveChoosesTheColumns) {
  const std::string small =
      "--tenants=8 --slots=2 --rows=500 --nocount_system_calls --format=json ";
  for (const std::string resolve : {"in-thread", "handler-thread"}) {
    const sqlite_tenants::Report report =
        Parse(RunWith(small + "--resolve=" + resolve));
    for (const sqlite_tenants::Way& way : report.ways()) {
      EXPECT_THAT(way.name(),
                  testing::AnyOf(HasSubstr(resolve), HasSubstr("kernel/")));
    }
    EXPECT_EQ(report.ways().size() + report.skipped().size(), 4);
  }
}

TEST(SqliteTenantsTest, TheSameSeedAsksTheSame) {
  const std::string flags =
      "--tenants=20 --slots=1 --rows=500 --nocount_system_calls "
      "--way=kernel/eager-copy --format=json --seed=";
  const sqlite_tenants::Report first = Parse(RunWith(flags + "7"));
  const sqlite_tenants::Report second = Parse(RunWith(flags + "7"));
  ASSERT_EQ(first.ways().size(), 1);
  ASSERT_EQ(second.ways().size(), 1);
  EXPECT_EQ(first.ways(0).answers(), second.ways(0).answers());
  EXPECT_EQ(first.seed(), 7u);
  ExpectAllRight(second, 20, 1);
}

TEST(SqliteTenantsTest, StartsFromAnImageFile) {
  const std::string path = testing::TempDir() + "/database.ftimg";
  const std::string small =
      "--tenants=12 --slots=2 --threads=1 --format=json "
      "--nocount_system_calls ";
  const Result saved = RunWith(small + "--rows=700 --save_image=" + path);
  EXPECT_EQ(saved.exit_code, 0) << saved.err;
  const Result opened = RunWith(small + "--image=" + path);
  EXPECT_EQ(opened.exit_code, 0) << opened.err;
  const sqlite_tenants::Report before = Parse(saved);
  const sqlite_tenants::Report after = Parse(opened);
  ExpectAllRight(after, 12, 2);
  EXPECT_EQ(after.image_bytes(), before.image_bytes());
  EXPECT_EQ(after.image_stored_bytes(), before.image_stored_bytes());
  // The same ways as without a file.
  EXPECT_EQ(after.ways().size(), before.ways().size());

  const Result none = RunWith("--image=" + path + ".none");
  EXPECT_EQ(none.exit_code, 4);
  EXPECT_THAT(none.err, HasSubstr(path + ".none"));
  std::ofstream(path + ".bad") << "not an image";
  const Result bad = RunWith("--image=" + path + ".bad");
  EXPECT_EQ(bad.exit_code, 4);
  EXPECT_THAT(bad.err, HasSubstr("image file '" + path + ".bad'"));
}

TEST(SqliteTenantsTest, WithoutPrivileges) {
  if (geteuid() != 0) GTEST_SKIP() << "this is a run without privileges";
  if (access("/usr/bin/setpriv", X_OK) != 0) GTEST_SKIP() << "no setpriv";
  // A directory that every user may read.
  const std::string directory =
      "/tmp/sqlite_tenants_test." + std::to_string(getpid());
  ASSERT_EQ(mkdir(directory.c_str(), 0755), 0);
  ASSERT_EQ(chmod(directory.c_str(), 0755), 0);
  const Result copied = RunCommand("cp -L " + std::string(kProgram) + " " +
                                   directory + "/program");
  ASSERT_EQ(copied.exit_code, 0) << copied.err;
  const Result result = RunCommand(
      "setpriv --reuid=65534 --regid=65534 --clear-groups " + directory +
      "/program --tenants=20 --slots=2 --rows=1000 --format=json");
  RunCommand("rm -r " + directory);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const sqlite_tenants::Report report = Parse(result);
  ExpectAllRight(report, 20, 2);
  EXPECT_EQ(report.ways().size() + report.skipped().size(), 6);
}

TEST(SqliteTenantsTest, FlagsThatAreNotRight) {
  struct Case {
    std::string flags;
    std::string error;
  };
  for (const Case& c : {
           Case{"--tenants=0", "--tenants=0: at least 1 tenant is needed"},
           Case{"--slots=0", "--slots=0: 1 to 8192 slots are possible"},
           Case{"--slots=8193", "--slots=8193: 1 to 8192 slots are possible"},
           Case{"--threads=0", "--threads=0: at least 1 thread is needed"},
           Case{"--threads=-2", "--threads=-2: at least 1 thread is needed"},
           Case{"--slots=4 --threads=5",
                "--threads=5 is more than --slots=4: each thread needs a slot"},
           Case{"--resolve=magic",
                "--resolve=magic: in-thread, handler-thread or all are "
                "possible"},
           Case{"--format=xml", "--format=xml: text or json are possible"},
           Case{"--rows=0", "--rows=0: 1 to 1000000 rows are possible"},
           Case{"--way=other",
                "--way=other with --resolve=all: there is no such way"},
           Case{"--way=shared/in-thread --resolve=handler-thread",
                "--way=shared/in-thread with --resolve=handler-thread: there "
                "is no such way"},
           Case{"more", "'more': only flags are expected; see --help"},
       }) {
    const Result result = RunWith(c.flags);
    EXPECT_EQ(result.exit_code, 1) << c.flags;
    EXPECT_EQ(result.out, "") << c.flags;
    EXPECT_EQ(result.err, "sqlite_tenants: " + c.error + "\n");
  }
  // absl's own error text.
  const Result unknown = RunWith("--tenant=5");
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("Unknown command line flag 'tenant'"));
  const Result number = RunWith("--slots=many");
  EXPECT_EQ(number.exit_code, 1);
  EXPECT_THAT(number.err,
              HasSubstr("Illegal value 'many' specified for flag 'slots'"));
}

TEST(SqliteTenantsTest, OutputThatIsLostIsNoSuccess) {
  for (const char* flags : {"--help",
                            "--tenants=30 --slots=3 --rows=2000 --threads=1 "
                            "--nocount_system_calls --format=json"}) {
    const Result result = RunWith(std::string(flags) + " >/dev/full");
    EXPECT_EQ(result.exit_code, 4) << flags;
    EXPECT_THAT(result.err,
                HasSubstr("sqlite_tenants: standard output cannot be "
                          "written"));
  }
}

TEST(SqliteTenantsTest, HelpNamesFlagsAndExitCodes) {
  const Result result = RunWith("--help");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  EXPECT_THAT(
      result.out,
      AllOf(HasSubstr("Exit codes:\n  0  every answer was right"),
            HasSubstr("\n  --tenants  how many tenants are served in each way "
                      "(default: 2000)\n"),
            HasSubstr("\n  --slots  "), HasSubstr("\n  --threads  "),
            HasSubstr("\n  --resolve  "), HasSubstr("\n  --format  "),
            HasSubstr("\n  --seed  ")));
}

}  // namespace
}  // namespace firsttouch::examples
