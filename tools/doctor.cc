// Says what this machine, kernel and user allow, and what to change to get
// more. See README.md beside this file.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/tools/doctor.pb.h"
#include "firsttouch/tools/doctor_report.h"
#include "firsttouch/tools/doctor_text.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/probe.h"
#include "firsttouch/uffd/self_test.h"

ABSL_FLAG(std::string, format, "text", "What to print: text or json.");
ABSL_FLAG(absl::Duration, time_limit, absl::Seconds(5),
          "How long each feature that is tried may take.");
ABSL_FLAG(std::string, hang_for_test, "",
          "For tests of this program: the feature (\"in-thread.copy\") whose "
          "try is to hang.");

namespace firsttouch::tools {
namespace {

constexpr int kExitUsage = 64;

constexpr char kUsage[] =
    "Says what this machine, kernel and user allow a userfaultfd-backed memory "
    "pool,\nafter trying each feature, and what to change to get more.\n\n"
    "  doctor [--format=text|json] [--time_limit=5s]\n\n"
    "Exit codes: 0 all that is recommended works, 1 works with restrictions,\n"
    "2 no userfaultfd (pools do without it), 64 the command line is wrong.\n";

[[noreturn]] void UsageError(const std::string& text) {
  std::fprintf(stderr, "doctor: %s\nTry --help.\n", text.c_str());
  std::exit(kExitUsage);
}

// absl::ParseCommandLine ends a wrong command line with exit code 1, which here
// is an answer. So the flags are looked up and set one by one.
void ParseFlags(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help" || argument == "-h") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    }
    if (argument.substr(0, 2) != "--") {
      UsageError(absl::StrCat("\"", argument, "\" is not a flag"));
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(2, equals - 2);
    absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
    if (flag == nullptr) {
      UsageError(absl::StrCat("there is no flag --", name));
    }
    std::string value;
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (++i < argc) {
      value = argv[i];
    } else {
      UsageError(absl::StrCat("--", name, " needs a value"));
    }
    std::string error;
    if (!flag->ParseFrom(value, &error)) {
      UsageError(absl::StrCat("--", name, "=", value, ": ", error));
    }
  }
  const std::string format = absl::GetFlag(FLAGS_format);
  if (format != "text" && format != "json") {
    UsageError(absl::StrCat("--format=", format, ": text or json"));
  }
  if (absl::GetFlag(FLAGS_time_limit) <= absl::ZeroDuration()) {
    UsageError("--time_limit: a duration above zero, such as 5s");
  }
}

int Main(int argc, char** argv) {
  ParseFlags(argc, argv);
  const UffdFacts facts = Probe(RealKernel());
  SelfTestOptions options;
  options.time_limit = absl::GetFlag(FLAGS_time_limit);
  options.hang = absl::GetFlag(FLAGS_hang_for_test);
  const std::vector<SelfTestResult> tests = RunSelfTests(RealKernel(), options);
  const DoctorReport report = MakeReport(facts, tests);
  std::string out;
  if (absl::GetFlag(FLAGS_format) == "json") {
    absl::StatusOr<std::string> json = ReportAsJson(report);
    if (!json.ok()) {
      std::fprintf(stderr, "doctor: %s\n", json.status().ToString().c_str());
      return 70;
    }
    out = *std::move(json);
  } else {
    const char* no_color = std::getenv("NO_COLOR");
    const bool color = isatty(STDOUT_FILENO) == 1 &&
                       (no_color == nullptr || *no_color == '\0');
    out = ReportAsText(report, color);
  }
  std::fputs(out.c_str(), stdout);
  if (std::fflush(stdout) != 0) return 74;
  return ExitCode(report);
}

}  // namespace
}  // namespace firsttouch::tools

int main(int argc, char** argv) { return firsttouch::tools::Main(argc, argv); }
