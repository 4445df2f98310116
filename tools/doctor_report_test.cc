#include "firsttouch/tools/doctor_report.h"

#include <cerrno>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "firsttouch/uffd/abi.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Every test there is, all working but these.
std::vector<SelfTestResult> AllBut(const std::vector<std::string>& broken,
                                   SelfTestOutcome outcome) {
  std::vector<SelfTestResult> results;
  for (const SelfTestInfo& info : SelfTests()) {
    SelfTestResult result{.test = info, .outcome = SelfTestOutcome::kWorks};
    for (const std::string& id : broken) {
      if (id == info.id || id == "*") result.outcome = outcome;
    }
    results.push_back(result);
  }
  return results;
}

TEST(Report, AllThatIsRecommended) {
  const DoctorReport report =
      MakeReport({.can_open = true}, AllBut({}, SelfTestOutcome::kWorks));
  EXPECT_EQ(report.verdict(), DoctorReport::ALL_RECOMMENDED_WORKS);
  EXPECT_EQ(ExitCode(report), 0);
  ASSERT_EQ(report.modes_size(), 4);
  for (const Mode& mode : report.modes()) {
    EXPECT_TRUE(mode.works());
    EXPECT_EQ(mode.serves_system_calls(), mode.resolve() == "handler-thread");
  }
}

TEST(Report, WhatIsOptionalDoesNotDegrade) {
  const DoctorReport report = MakeReport(
      {.can_open = true},
      AllBut({"guard", "process-madvise"}, SelfTestOutcome::kMissing));
  EXPECT_EQ(ExitCode(report), 0);
}

TEST(Report, EachModeHasItsNeeds) {
  const DoctorReport report = MakeReport(
      {.can_open = true}, AllBut({"in-thread.minor", "handler-thread.copy",
                                  "handler-thread.system-call"},
                                 SelfTestOutcome::kMissing));
  EXPECT_EQ(report.verdict(), DoctorReport::DEGRADED);
  EXPECT_EQ(ExitCode(report), 1);
  std::vector<std::string> modes;
  for (const Mode& mode : report.modes()) {
    modes.push_back(mode.backing() + " " + mode.resolve() + " " +
                    (mode.works() ? "works" : "needs ") +
                    absl::StrJoin(mode.missing(), ","));
    EXPECT_FALSE(mode.serves_system_calls());
  }
  EXPECT_THAT(modes, ElementsAre("shared in-thread needs in-thread.minor",
                                 "copied in-thread works",
                                 "shared handler-thread works",
                                 "copied handler-thread needs "
                                 "handler-thread.copy"));
}

TEST(Report, WithoutUserfaultfdTheFirstAdviceIsWhatPoolsDo) {
  UffdFacts facts{.pagemap_scan_error = ENOTTY};
  facts.advice = {"to have userfaultfd, do this."};
  DoctorReport report =
      MakeReport(facts, AllBut({"*"}, SelfTestOutcome::kMissing));
  EXPECT_THAT(report.advice(0), HasSubstr("supplied by mappings-drop: "));
  EXPECT_EQ(report.advice(1), facts.advice[0]);
  facts.pagemap_scan_error = 0;
  report = MakeReport(facts, AllBut({"*"}, SelfTestOutcome::kMissing));
  EXPECT_THAT(report.advice(0), HasSubstr("supplied by mappings-scan: "));
  EXPECT_EQ(report.verdict(), DoctorReport::NOTHING_WORKS);
  EXPECT_EQ(ExitCode(report), 2);
}

TEST(Report, AHangIsAdvisedOn) {
  UffdFacts facts{.kernel_release = "5.8.0"};
  facts.advice = {"first."};
  const DoctorReport report =
      MakeReport(facts, AllBut({"in-thread.protect"}, SelfTestOutcome::kHung));
  EXPECT_EQ(ExitCode(report), 1);
  EXPECT_THAT(report.advice(),
              ElementsAre("first.",
                          "in-thread.protect does not work on Linux 5.8.0, "
                          "which says it has it: keep away from what needs it, "
                          "or change the kernel."));
}

TEST(Report, KeepsWhatTheProbeSaw) {
  UffdFacts facts{.kernel_release = "6.1.0", .uid = 7, .seccomp_mode = 2};
  facts.features = kUffdFeatureSigbus | (uint64_t{1} << 40);
  facts.ways = {{.how = Uffd::How::kDevice, .error = EACCES, .remedy = "r"}};
  facts.mappings = {{.kind = "k",
                     .modes = kUffdRegisterMissing | kUffdRegisterMinor,
                     .ioctls = kUffdIoctlCopy},
                    {.kind = "none"}};
  facts.overcommit_memory = 2;
  facts.address_space_limit_bytes = 4096;
  const DoctorReport report = MakeReport(facts, {});
  EXPECT_EQ(report.machine().uid(), 7u);
  EXPECT_EQ(report.ways(0).name(), "/dev/userfaultfd");
  EXPECT_EQ(report.ways(0).error(), EACCES);
  EXPECT_EQ(report.ways(0).error_text(),
            "EACCES: Permission denied (errno 13)");
  EXPECT_THAT(report.unknown_feature_bits(), ElementsAre(40u));
  int offered = 0;
  for (const Feature& feature : report.features()) offered += feature.offered();
  EXPECT_EQ(offered, 1);
  EXPECT_THAT(report.mapping_kinds(0).modes(), ElementsAre("MISSING", "MINOR"));
  EXPECT_THAT(report.mapping_kinds(0).ioctls(), ElementsAre("COPY"));
  EXPECT_TRUE(report.mapping_kinds(1).modes().empty());
  EXPECT_EQ(report.limits().vm_overcommit_memory(), 2);
  EXPECT_FALSE(report.limits().has_vm_max_map_count());
  EXPECT_EQ(report.limits().rlimit_as_bytes(), 4096u);
}

}  // namespace
}  // namespace firsttouch::tools
