#include "firsttouch/tools/doctor_text.h"

#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"

namespace firsttouch::tools {
namespace {

using testing::HasSubstr;
using testing::Not;

DoctorReport Sample() {
  DoctorReport report;
  report.set_verdict(DoctorReport::DEGRADED);
  report.mutable_machine()->set_kernel_release("6.1.0-18-amd64");
  report.mutable_machine()->set_architecture("x86_64");
  report.mutable_machine()->set_uid(1000);
  report.mutable_machine()->set_address_bits(47);
  report.mutable_machine()->add_container_hints("Docker (/.dockerenv)");
  report.mutable_machine()->add_container_hints("a seccomp filter");
  Mode* mode = report.add_modes();
  mode->set_backing("shared");
  mode->set_resolve("in-thread");
  mode->set_works(true);
  mode = report.add_modes();
  mode->set_backing("shared");
  mode->set_resolve("handler-thread");
  for (const char* id : {"handler-thread.minor", "handler-thread.zero",
                         "handler-thread.protect-memfd"}) {
    mode->add_missing(id);
  }
  mode = report.add_modes();
  mode->set_backing("copied");
  mode->set_resolve("handler-thread");
  mode->set_works(true);
  mode->set_serves_system_calls(true);
  Way* way = report.add_ways();
  way->set_name("/dev/userfaultfd with USER_MODE_ONLY");
  way->set_error(13);
  way->set_error_text("EACCES: Permission denied (errno 13)");
  way = report.add_ways();
  way->set_name("userfaultfd(2)");
  way->set_works(true);
  for (int i = 0; i < 4; ++i) {
    Feature* feature = report.add_features();
    feature->set_name(i % 2 == 0 ? "SIGBUS" : "WP_HUGETLBFS_SHMEM");
    feature->set_since("4.14");
    feature->set_offered(i != 3);
  }
  report.add_unknown_feature_bits(40);
  MappingKind* kind = report.add_mapping_kinds();
  kind->set_kind("private mapping of a memfd");
  for (const char* name : {"MISSING", "WP"}) kind->add_modes(name);
  for (const char* name :
       {"WAKE", "COPY", "ZEROPAGE", "MOVE", "WRITEPROTECT"}) {
    kind->add_ioctls(name);
  }
  report.add_mapping_kinds()->set_kind("private mapping of another file");
  const auto add_test = [&report](const char* id, Trial::Outcome outcome,
                                  const std::string& detail) {
    Trial* test = report.add_trials();
    test->set_id(id);
    test->set_what("first write to memfd page seen");
    test->set_since("5.19");
    test->set_outcome(outcome);
    test->set_detail(detail);
    test->set_recommended(true);
  };
  add_test("in-thread.copy", Trial::WORKS, "");
  add_test("handler-thread.protect-memfd", Trial::HUNG,
           "no answer within 5s on Linux 6.1.0-18-amd64");
  add_test("scan", Trial::MISSING, "no way works on Linux 6.1:\n  device: no");
  report.mutable_limits()->set_vm_max_map_count(65530);
  report.mutable_limits()->set_mapping_count(30);
  report.mutable_limits()->set_rlimit_as_bytes(4096);
  report.mutable_limits()->set_transparent_huge_pages("madvise");
  report.add_advice(
      "system calls on memory that is not there yet get EFAULT: sysctl -w "
      "vm.unprivileged_userfaultfd=1.");
  return report;
}

TEST(DoctorText, IsThis) {
  EXPECT_EQ(ReportAsText(Sample(), false),
            R"(machine: Linux 6.1.0-18-amd64 x86_64, uid 1000, 47 address bits
inside:  Docker (/.dockerenv), a seccomp filter
Works with restrictions; see the end for what to change.

Ways of supplying memory
  shared   in-thread       works  system calls: make the range ready first
  shared   handler-thread  no     needs handler-thread.minor,
                                  handler-thread.zero,
                                  handler-thread.protect-memfd
  copied   handler-thread  works  system calls on missing pages are served

Opening a userfaultfd
  /dev/userfaultfd with USER_MODE_ONLY EACCES: Permission denied (errno 13)
  userfaultfd(2)                       works

Features of this kernel (with the Linux that brought each)
  + SIGBUS             4.14 + SIGBUS             4.14
  + WP_HUGETLBFS_SHMEM 4.14 - WP_HUGETLBFS_SHMEM 4.14
  and bits that this library does not know: 40

What can be registered
  private mapping of a memfd       MISSING WP: WAKE COPY ZEROPAGE MOVE
                                   WRITEPROTECT
  private mapping of another file  nothing

Tried on scratch memory
  works   in-thread.copy               first write to memfd page seen      5.19
  HUNG    handler-thread.protect-memfd first write to memfd page seen      5.19
          no answer within 5s on Linux 6.1.0-18-amd64
  missing scan                         first write to memfd page seen      5.19
          no way works on Linux 6.1 (see Opening)

Limits and settings
  vm.unprivileged_userfaultfd     not there
  vm.overcommit_memory            not there
  vm.max_map_count                65530 (this process has 30)
  RLIMIT_AS                       4096 bytes
  RLIMIT_NOFILE                   unlimited
  transparent huge pages          madvise
  ... of shared memory            not there

What to change to get more
  * system calls on memory that is not there yet get EFAULT: sysctl -w
    vm.unprivileged_userfaultfd=1.
)");
}

// Takes the colours out.
std::string Plain(const std::string& text) {
  std::string plain;
  bool escape = false;
  for (const char c : text) {
    if (c == '\033') escape = true;
    if (!escape) plain += c;
    if (c == 'm') escape = false;
  }
  return plain;
}

TEST(DoctorText, ColoursChangeNothingElse) {
  const std::string coloured = ReportAsText(Sample(), true);
  EXPECT_THAT(coloured, HasSubstr("\033[31mHUNG\033[0m"));
  EXPECT_THAT(coloured, HasSubstr("\033[32mworks\033[0m"));
  EXPECT_EQ(Plain(coloured), ReportAsText(Sample(), false));
  EXPECT_THAT(ReportAsText(Sample(), false), Not(HasSubstr("\033")));
}

TEST(DoctorText, FitsIntoTheColumns) {
  DoctorReport report = Sample();
  report.mutable_machine()->set_kernel_release(
      "6.18.44-rc7-some-very-long-local-version-of-a-distribution");
  for (Trial& test : *report.mutable_trials()) {
    test.set_detail(
        "a fault could not be resolved: EAGAIN: Resource temporarily "
        "unavailable (errno 11), and then some more of what there is to say");
  }
  for (const std::string& line : std::vector<std::string>(
           absl::StrSplit(ReportAsText(report, false), '\n'))) {
    EXPECT_LE(line.size(), static_cast<size_t>(kTextColumns)) << line;
    EXPECT_FALSE(!line.empty() && line.back() == ' ') << line;
  }
}

TEST(DoctorText, EachVerdictHasItsSentence) {
  DoctorReport report;
  report.set_verdict(DoctorReport::ALL_RECOMMENDED_WORKS);
  EXPECT_THAT(ReportAsText(report, false),
              HasSubstr("All that is recommended works here."));
  report.set_verdict(DoctorReport::NOTHING_WORKS);
  EXPECT_THAT(ReportAsText(report, false),
              HasSubstr("No userfaultfd works here; see the end"));
}

TEST(Wrapped, BreaksAtBlanksOnly) {
  EXPECT_EQ(Wrapped("* ", "one two"), "* one two\n");
  EXPECT_EQ(Wrapped("* ", ""), "* \n");
  const std::string word(90, 'w');
  EXPECT_EQ(Wrapped("* ", "a " + word + " b"), "* a\n  " + word + "\n  b\n");
  const std::string exact(38, 'x');
  EXPECT_EQ(Wrapped("  ", exact + " " + exact),
            "  " + exact + " " + exact + "\n");
  // 79 columns; one more word does not fit.
  EXPECT_EQ(Wrapped("  ", exact + " " + exact + " y"),
            "  " + exact + " " + exact + "\n  y\n");
}

TEST(DoctorJson, ReadsBackAsTheSameReport) {
  const absl::StatusOr<std::string> json = ReportAsJson(Sample());
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_THAT(*json, HasSubstr("\"verdict\": \"DEGRADED\""));
  EXPECT_THAT(*json, HasSubstr("\"serves_system_calls\": false"))
      << "fields without a value are there too";
  DoctorReport parsed;
  ASSERT_TRUE(google::protobuf::util::JsonStringToMessage(*json, &parsed).ok());
  EXPECT_TRUE(
      google::protobuf::util::MessageDifferencer::Equals(parsed, Sample()));
}

}  // namespace
}  // namespace firsttouch::tools
