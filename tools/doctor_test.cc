// Runs the doctor as its users do: as whoever runs the tests, as nobody, and
// under a filter as a container has it.

#include <fcntl.h>
#include <pty.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <vector>

#include "firsttouch/tools/doctor.pb.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace firsttouch::tools {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// Becomes the doctor.
[[noreturn]] void Exec(const std::vector<std::string>& flags) {
  std::vector<char*> arguments;
  std::string program = "tools/doctor";
  arguments.push_back(program.data());
  std::vector<std::string> copies = flags;
  for (std::string& flag : copies) arguments.push_back(flag.data());
  arguments.push_back(nullptr);
  execv(program.c_str(), arguments.data());
  _exit(98);
}

ChildResult Doctor(const std::vector<std::string>& flags) {
  return RunInChild([&flags]() -> std::string { Exec(flags); });
}

DoctorReport Parse(const std::string& json) {
  DoctorReport report;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(json, &report).ok())
      << json;
  return report;
}

// What each verdict exits with.
int ExitCodeOf(const DoctorReport& report) {
  return static_cast<int>(report.verdict()) - 1;
}

TEST(Doctor, SaysWhatThisMachineAllows) {
  const ChildResult text = Doctor({});
  EXPECT_THAT(
      text.output,
      AllOf(HasSubstr("machine: Linux " + KernelRelease()),
            HasSubstr("Ways of supplying memory"), HasSubstr("in-thread.copy"),
            HasSubstr("vm.max_map_count"), Not(HasSubstr("\033"))))
      << "and no colour into a pipe";
  const ChildResult json = Doctor({"--format=json"});
  const DoctorReport report = Parse(json.output);
  EXPECT_EQ(json.exit_code, ExitCodeOf(report));
  EXPECT_EQ(text.exit_code, json.exit_code);
  EXPECT_EQ(report.machine().kernel_release(), KernelRelease());
  EXPECT_EQ(report.machine().uid(), geteuid());
  EXPECT_EQ(report.modes_size(), 4);
  EXPECT_EQ(report.ways_size(), 4);
}

TEST(Doctor, HelpsNobody) {
  const ChildResult child = RunInChild([]() -> std::string {
    if (!BecomeNobody()) return "skip";
    // Bazel's folders may be root's own: an open descriptor is enough.
    Exec({"--format", "json"});
  });
  if (child.output == "skip") GTEST_SKIP() << "cannot become nobody";
  if (child.exit_code == 98) GTEST_SKIP() << "nobody may not read the program";
  const DoctorReport report = Parse(child.output);
  EXPECT_EQ(report.machine().uid(), 65534u);
  EXPECT_EQ(child.exit_code, ExitCodeOf(report));
  ASSERT_EQ(report.modes_size(), 4);
  if (!report.ways(0).works()) GTEST_SKIP() << "USER_MODE_ONLY (Linux 5.11)";
  EXPECT_TRUE(report.modes(0).works() || report.modes(1).works());
  if (report.ways(2).works() || report.ways(3).works()) {
    GTEST_SKIP() << "nobody may open a full userfaultfd here";
  }
  EXPECT_EQ(report.verdict(), DoctorReport::DEGRADED);
  EXPECT_THAT(report.advice(0),
              AllOf(HasSubstr("get EFAULT"),
                    HasSubstr("vm.unprivileged_userfaultfd=1")));
}

TEST(Doctor, NamesASeccompFilter) {
  const ChildResult child = RunInChild([]() -> std::string {
    if (!RefuseSystemCalls({SYS_userfaultfd}, EPERM, true)) return "skip";
    Exec({});
  });
  if (child.output == "skip") GTEST_SKIP() << "seccomp filters";
  EXPECT_EQ(child.exit_code, 2);
  EXPECT_THAT(
      child.output,
      AllOf(HasSubstr("No userfaultfd works here"),
            HasSubstr("supplied by mappings-"), HasSubstr("a seccomp filter"),
            HasSubstr("docker run --security-opt"),
            HasSubstr("missing in-thread.copy"),
            // What needs no userfaultfd is tried all the same.
            Not(HasSubstr("HUNG")), Not(HasSubstr("FAILED"))));
}

TEST(Doctor, SurvivesAKernelThatHangs) {
  const ChildResult child = Doctor({"--hang-for-test=in-thread.copy",
                                    "--time-limit=200ms", "--format=json"});
  const DoctorReport report = Parse(child.output);
  EXPECT_NE(child.exit_code, 0);
  EXPECT_FALSE(child.timed_out);
  bool found = false;
  for (const Trial& test : report.trials()) {
    if (test.id() != "in-thread.copy") continue;
    found = true;
    EXPECT_EQ(test.outcome(), Trial::HUNG);
    EXPECT_EQ(test.detail(),
              "no answer within 200ms on Linux " + KernelRelease());
  }
  EXPECT_TRUE(found);
  ASSERT_EQ(report.modes_size(), 4);
  EXPECT_FALSE(report.modes(1).works()) << "copied, in-thread";
  EXPECT_THAT(report.modes(1).missing(), testing::Contains("in-thread.copy"));
}

TEST(Doctor, UsageErrorsAre64) {
  const struct {
    std::vector<std::string> flags;
    const char* text;
  } kCases[] = {
      {{"--format=xml"}, "doctor: --format: xml not in {text,json}"},
      {{"--frobnicate"}, "doctor: there is no option --frobnicate; doctor"},
      {{"--time_limit=1s"},
       "doctor: there is no option --time_limit; did you "
       "mean --time-limit?"},
      {{"text"}, "doctor: there is no command text; doctor"},
      {{"--time-limit=0s"}, "doctor: --time-limit: \"0s\" is not a duration"},
      {{"--time-limit", "soon"}, "doctor: --time-limit: \"soon\" is not"},
      {{"--format"}, "doctor: --format"},
  };
  for (const auto& c : kCases) {
    const ChildResult child = Doctor(c.flags);
    EXPECT_EQ(child.exit_code, 64) << c.text;
    EXPECT_THAT(child.output, HasSubstr(c.text));
  }
}

TEST(Doctor, HasHelpVersionManualAndCompletions) {
  const ChildResult help = Doctor({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.output, AllOf(HasSubstr("Exit codes:\n  0   all"),
                                 HasSubstr("--time-limit=DURATION"),
                                 Not(HasSubstr("for-test"))));
  EXPECT_EQ(Doctor({"--version"}).output, "doctor 0.1.0\n");
  EXPECT_EQ(Doctor({"help"}).output, help.output);
  const ChildResult manual = Doctor({"manual"});
  EXPECT_EQ(manual.exit_code, 0);
  EXPECT_THAT(manual.output, AllOf(HasSubstr(".TH DOCTOR 1"),
                                   HasSubstr("works with restrictions"),
                                   Not(HasSubstr("for-test"))));
  EXPECT_THAT(Doctor({"completions", "bash"}).output,
              HasSubstr("complete -o filenames -F _doctor doctor"));
}

TEST(Doctor, OutputThatIsLostIsNoSuccess) {
  for (const char* flag : {"--format=json", "--format=text", "--help"}) {
    const ChildResult child = RunInChild([flag]() -> std::string {
      const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
      if (full < 0 || dup2(full, STDOUT_FILENO) < 0) return "skip";
      Exec({flag});
    });
    if (child.output == "skip") GTEST_SKIP() << "/dev/full";
    EXPECT_EQ(child.exit_code, 74) << flag;
    EXPECT_THAT(child.output,
                HasSubstr("doctor: standard output: No space left on device"));
  }
}

// What it writes to a terminal.
std::string OnATerminal(bool no_color) {
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
  if (child < 0) return "skip";
  if (child == 0) {
    if (no_color) {
      setenv("NO_COLOR", "1", 1);
    } else {
      unsetenv("NO_COLOR");
    }
    setenv("TERM", "xterm", 1);
    Exec({});
  }
  std::string output;
  char buffer[4096];
  ssize_t n;
  while ((n = read(terminal, buffer, sizeof(buffer))) > 0 ||
         (n < 0 && errno == EINTR)) {
    if (n > 0) output.append(buffer, static_cast<size_t>(n));
  }
  close(terminal);
  waitpid(child, nullptr, 0);
  return output;
}

TEST(Doctor, ColoursOnATerminalOnlyAndNotAgainstTheUsersWill) {
  const std::string coloured = OnATerminal(false);
  if (coloured == "skip") GTEST_SKIP() << "no pseudo-terminal";
  EXPECT_THAT(coloured, HasSubstr("\033["));
  EXPECT_THAT(OnATerminal(true), AllOf(HasSubstr("Ways of supplying memory"),
                                       Not(HasSubstr("\033["))));
}

}  // namespace
}  // namespace firsttouch::tools
