// Says what this machine, kernel and user allow, and what to change to get
// more. See README.md beside this file.

#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/tools/cli/command_line.h"
#include "firsttouch/tools/cli/terminal.h"
#include "firsttouch/tools/doctor.pb.h"
#include "firsttouch/tools/doctor_report.h"
#include "firsttouch/tools/doctor_text.h"
#include "firsttouch/tools/self_test.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/probe.h"

namespace firsttouch::tools {
namespace {

constexpr char kName[] = "doctor";

constexpr char kFormats[] =
    "text: For people, in 80 columns.\n\n"
    "json: The message DoctorReport of tools/doctor.proto, which explains each "
    "field, in protobuf's JSON: numbers of 64 bits are strings.";

// What cannot happen (EX_SOFTWARE).
constexpr int kExitInternal = 70;

int Main(const std::vector<std::string>& arguments) {
  const std::unique_ptr<CLI::App> app = cli::MakeApp(
      {.name = kName,
       .version = "0.1.0",
       .description =
           "Says what this machine, kernel and user allow a "
           "userfaultfd-backed memory pool, after trying each feature, and "
           "what to change to get more.",
       .examples = "  doctor\n"
                   "  doctor --format=json\n",
       .exit_codes = {{0, "all that is recommended works"},
                      {1, "works with restrictions"},
                      {2, "no userfaultfd works; pools do without it"},
                      {kExitInternal,
                       "the report cannot be printed as JSON; please report "
                       "that"}},
       .manual = {{"FORMATS", kFormats}},
       .single = true});
  std::string format = "text";
  std::string color = "auto";
  std::string time_limit = "5s";
  std::string hang;
  app->add_option("--format", format, "What to print")
      ->check(CLI::IsMember({"text", "json"}));
  app->add_option("--color", color,
                  "Colours: auto is on a terminal, unless NO_COLOR is set")
      ->check(CLI::IsMember({"auto", "always", "never"}));
  app->add_option("--time-limit", time_limit,
                  "How long each feature that is tried may take, as 5s or "
                  "200ms")
      ->type_name("DURATION");
  // For tests of this program: the feature whose try is to hang.
  app->add_option("--hang-for-test", hang)->group("");
  if (const std::optional<cli::Ending> ending = cli::Parse(*app, arguments)) {
    return cli::End(kName, *ending);
  }
  SelfTestOptions options;
  if (!absl::ParseDuration(time_limit, &options.time_limit) ||
      options.time_limit <= absl::ZeroDuration()) {
    return cli::End(
        kName, {.exit_code = cli::kExitUsage,
                .error = absl::StrCat("--time-limit: \"", time_limit,
                                      "\" is not a duration above zero, such "
                                      "as 5s; doctor --help tells more")});
  }
  options.hang = hang;
  const UffdFacts facts = Probe(RealKernel());
  const std::vector<SelfTestResult> tests = RunSelfTests(RealKernel(), options);
  const DoctorReport report = MakeReport(facts, tests);
  if (format == "text") {
    return cli::End(
        kName,
        {.exit_code = ExitCode(report),
         .out = ReportAsText(report, cli::WantsColor(color, STDOUT_FILENO))});
  }
  const absl::StatusOr<std::string> json = ReportAsJson(report);
  if (!json.ok()) {
    return cli::End(kName, {.exit_code = kExitInternal,
                            .error = absl::StrCat(json.status().message())});
  }
  return cli::End(kName, {.exit_code = ExitCode(report), .out = *json});
}

}  // namespace
}  // namespace firsttouch::tools

int main(int argc, char** argv) {
  return firsttouch::tools::Main(
      std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
}
