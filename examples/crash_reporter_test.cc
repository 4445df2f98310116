// Runs crash_reporter as a program: each order of installing, each crash.
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::examples {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kProgram[] = "examples/crash_reporter";
constexpr char kGuestsRan[] = "guests: 6 memories, 6 traps, no report\n";

std::string Contents(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

struct Result {
  int exit_code = -1;
  int signal = 0;
  std::string out;
  std::string err;
  std::string report;
};

Result RunWith(const std::string& order, const std::string& crash) {
  const std::string base = testing::TempDir() + "/" + order + "_" + crash;
  const std::string report = base + ".report";
  unlink(report.c_str());
  Result result;
  const pid_t child = fork();
  if (child == 0) {
    // It is to end by a signal, and needs no core for that.
    const rlimit no_core = {};
    setrlimit(RLIMIT_CORE, &no_core);
    if (freopen((base + ".out").c_str(), "w", stdout) == nullptr ||
        freopen((base + ".err").c_str(), "w", stderr) == nullptr) {
      _exit(99);
    }
    execl(kProgram, kProgram, order.c_str(), crash.c_str(), report.c_str(),
          nullptr);
    _exit(98);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  result.out = Contents(base + ".out");
  result.err = Contents(base + ".err");
  result.report = Contents(report);
  return result;
}

// The number behind `name`, which the text has once.
std::optional<uint64_t> Number(const std::string& text,
                               const std::string& name) {
  const size_t at = text.find(name);
  if (at == std::string::npos || text.find(name, at + 1) != std::string::npos) {
    return std::nullopt;
  }
  return strtoull(text.c_str() + at + name.size(), nullptr, 0);
}

class CrashReporterTest
    : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(CrashReporterTest, ItsCrashIsReportedOnceAndNothingOfAGuest) {
  const auto& [order, crash] = GetParam();
  const Result result = RunWith(order, crash);
  EXPECT_THAT(result.out, HasSubstr(kGuestsRan)) << result.err;
  const bool by_bus = crash == "file" || crash == "trap";
  if (crash == "trap") {
    EXPECT_THAT(result.err, HasSubstr("firsttouch: out of bounds "));
    // Of which kind a guard's trap is depends on what supplies the memory.
    ASSERT_TRUE(result.signal == SIGBUS || result.signal == SIGSEGV);
  } else {
    EXPECT_THAT(result.err, IsEmpty());
    ASSERT_EQ(result.signal, by_bus ? SIGBUS : SIGSEGV) << result.exit_code;
  }
  EXPECT_THAT(
      result.report,
      testing::StartsWith(
          "crash report\nsignal: " +
          std::string(result.signal == SIGBUS ? "SIGBUS" : "SIGSEGV") + "\n"));
  EXPECT_THAT(result.report, testing::EndsWith("\nend of report\n"));
  EXPECT_THAT(result.report, HasSubstr("\nregister "));
  EXPECT_THAT(result.report, HasSubstr(" [heap]\n"));
  // There once, as each text that Number() finds.
  const std::optional<uint64_t> address = Number(result.report, "\naddress: ");
  ASSERT_TRUE(address.has_value()) << result.report;
  const std::optional<uint64_t> process = Number(result.report, "\nprocess: ");
  const std::optional<uint64_t> thread = Number(result.report, "\nthread: ");
  ASSERT_TRUE(process.has_value() && thread.has_value()) << result.report;
  EXPECT_EQ(*process == *thread, crash != "thread" && crash != "threads");
  if (crash == "overflow") {
    const std::optional<uint64_t> stack =
        Number(result.report, "register rsp: ");
    if (stack.has_value()) {
      EXPECT_GT(*address, *stack - 65536);
      EXPECT_LT(*address, *stack + 65536);
    }
    return;
  }
  if (crash == "sent") {
    EXPECT_EQ(Number(result.report, "\ncode: "),
              static_cast<uint64_t>(SI_TKILL));
    return;
  }
  const size_t at = result.out.find("touches ");
  ASSERT_NE(at, std::string::npos) << result.out;
  const std::string touched = result.out.substr(at + 8);
  EXPECT_EQ(*address,
            touched == "(nil)\n" ? 0 : strtoull(touched.c_str(), nullptr, 16));
}

INSTANTIATE_TEST_SUITE_P(
    All, CrashReporterTest,
    testing::Combine(testing::Values("before", "after", "owner"),
                     testing::Values("null", "file", "thread", "threads",
                                     "leased", "trap", "overflow", "sent")),
    [](const auto& info) {
      return std::get<0>(info.param) + "_" + std::get<1>(info.param);
    });

TEST(CrashReporterProgramTest, AHostWithoutACrashHasNoReport) {
  for (const char* order : {"before", "after", "owner"}) {
    const Result result = RunWith(order, "none");
    EXPECT_EQ(result.exit_code, 0) << order << result.err;
    EXPECT_EQ(result.out, kGuestsRan) << order;
    EXPECT_EQ(result.report, "") << order;
  }
}

TEST(CrashReporterProgramTest, WordsThatAreNotRight) {
  EXPECT_EQ(RunWith("never", "none").err,
            "crash_reporter: ORDER is \"never\" and must be before, after or "
            "owner\n");
  EXPECT_EQ(RunWith("owner", "twice").err,
            "crash_reporter: CRASH is \"twice\" and must be none, null, file, "
            "thread, threads, leased, trap, overflow or sent\n");
}

}  // namespace
}  // namespace firsttouch::examples
