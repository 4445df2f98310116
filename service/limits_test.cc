// What a machine or a process has no room for is refused with the limit's name,
// before anything is allocated for it.

#include <errno.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_wall.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FIRSTTOUCH_TEST_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FIRSTTOUCH_TEST_SANITIZER 1
#endif
#endif

#ifdef FIRSTTOUCH_TEST_SANITIZER
constexpr bool kSanitizer = true;
#else
constexpr bool kSanitizer = false;
#endif

constexpr char kSkipped[] = "skipped";

ServiceOptions Options(uint32_t instances) {
  return {.name = "limits",
          .layout = {.instances = instances, .max_memory_bytes = kPageBytes}};
}

std::string TextOf(const absl::StatusOr<std::unique_ptr<Service>>& service) {
  return service.status().ToString();
}

int64_t PeakKib() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

class ManyInstancesTest : public testing::TestWithParam<uint32_t> {};

INSTANTIATE_TEST_SUITE_P(Counts, ManyInstancesTest,
                         testing::Values(1'000'000'000, 4'000'000'000));

TEST_P(ManyInstancesTest, AreRefusedBeforeAnythingIsAllocatedForThem) {
  const ChildResult child = RunInChild([]() -> std::string {
    const int64_t before_kib = PeakKib();
    const std::string text =
        TextOf(CreateService(Options(GetParam()), RealKernel()));
    const int64_t grown_kib = PeakKib() - before_kib;
    return absl::StrCat(grown_kib < 65536 ? "small " : "large ", text);
  });
  EXPECT_THAT(child.output,
              AllOf(StartsWith("small RESOURCE_EXHAUSTED: "),
                    HasSubstr(absl::StrCat("instances ", GetParam()))));
  if (!kSanitizer) {
    EXPECT_THAT(child.output, AllOf(HasSubstr("the book-keeping of instances"),
                                    HasSubstr("lower instances to at most ")));
  }
}

TEST(CreateTest, AtTheMappingLimitNamesIt) {
  if (kSanitizer) GTEST_SKIP() << "a sanitizer needs mappings of its own";
  const ChildResult child = RunInChild([]() -> std::string {
    const MappingWall wall;
    if (!wall.at_limit()) return kSkipped;
    return TextOf(CreateService(Options(4), RealKernel()));
  });
  if (child.output == kSkipped) GTEST_SKIP() << "vm.max_map_count is higher";
  EXPECT_EQ(child.signal, 0);
  EXPECT_THAT(child.output, AllOf(StartsWith("RESOURCE_EXHAUSTED: "),
                                  HasSubstr("vm.max_map_count")));
}

TEST(AlternateStackTest, AtTheMappingLimitNamesIt) {
  if (kSanitizer) GTEST_SKIP() << "a sanitizer needs mappings of its own";
  const ChildResult child = RunInChild([]() -> std::string {
    const MappingWall wall;
    if (!wall.at_limit()) return kSkipped;
    return EnsureAlternateStack().ToString();
  });
  if (child.output == kSkipped) GTEST_SKIP() << "vm.max_map_count is higher";
  EXPECT_THAT(child.output,
              AllOf(StartsWith("RESOURCE_EXHAUSTED: "),
                    HasSubstr("alternate signal stack; this process has "),
                    HasSubstr("mappings and vm.max_map_count is ")));
}

TEST(SnapshotTest, AtTheMappingLimitNamesIt) {
  if (kSanitizer) GTEST_SKIP() << "a sanitizer needs mappings of its own";
  const ChildResult child = RunInChild([]() -> std::string {
    ServiceOptions options = Options(4);
    // Puts the slot into the middle of a mapping.
    options.layout.guard_before_bytes = 65536;
    options.layout.guard_after_bytes = 65536;
    const absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(options, RealKernel());
    if (!service.ok()) return TextOf(service);
    absl::StatusOr<Memory> memory =
        (*service)->Acquire({.size_bytes = kPageBytes});
    if (!memory.ok()) return memory.status().ToString();
    MappingWall wall;
    if (!wall.at_limit()) return kSkipped;
    // Whichever call is the first to find no mapping left.
    std::string texts;
    for (uint64_t left = 0; left < 16; left += 2) {
      wall.GiveBack(left);
      const absl::Status status = memory->Snapshot("at the limit").status();
      if (status.ok()) return texts;
      if (!absl::IsResourceExhausted(status) ||
          !absl::StrContains(status.message(), "vm.max_map_count")) {
        return status.ToString();
      }
      absl::StrAppend(&texts, status.ToString(), "\n");
    }
    return "no snapshot with 14 mappings";
  });
  if (child.output == kSkipped) GTEST_SKIP() << "vm.max_map_count is higher";
  EXPECT_THAT(child.output,
              AllOf(StartsWith("RESOURCE_EXHAUSTED: "),
                    HasSubstr("for a snapshot; this process has "),
                    HasSubstr("mappings and vm.max_map_count is ")));
}

// Limits the private writable memory of this process (a child) to 64 MiB more
// than it has.
bool LimitData() {
  uint64_t pages[6] = {};
  std::ifstream statm("/proc/self/statm");
  for (uint64_t& field : pages) statm >> field;
  const rlim_t bytes = pages[5] * kPageBytes + (uint64_t{64} << 20);
  const rlimit limit = {bytes, bytes};
  return setrlimit(RLIMIT_DATA, &limit) == 0;
}

TEST(DataLimitTest, CreateNamesIt) {
  const Way way{Backing::kCopied, Resolve::kInThread};
  if (const std::string missing = MissingFor(way); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  const ChildResult child = RunInChild([]() -> std::string {
    if (!LimitData()) return kSkipped;
    ServiceOptions options = Options(1 << 15);
    options.supply = UserfaultfdOptions{};
    return TextOf(CreateService(options, RealKernel()));
  });
  if (child.output == kSkipped) GTEST_SKIP() << "setrlimit is refused";
  EXPECT_THAT(
      child.output,
      AllOf(StartsWith("RESOURCE_EXHAUSTED: mprotect of 134217728 bytes "
                       "for 32768 slots: "),
            HasSubstr("RLIMIT_DATA (ulimit -d), which counts private "
                      "writable memory in full, touched or not, is "),
            HasSubstr("lower instances")));
}

TEST(DataLimitTest, AcquireOfMappingsNamesIt) {
  const ChildResult child = RunInChild([]() -> std::string {
    if (!LimitData()) return kSkipped;
    ServiceOptions options = Options(1);
    options.layout.max_memory_bytes = uint64_t{128} << 20;
    options.supply = MappingOptions{.scan = false};
    const absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(options, RealKernel());
    if (!service.ok()) return TextOf(service);
    return (*service)
        ->Acquire({.size_bytes = uint64_t{128} << 20})
        .status()
        .ToString();
  });
  if (child.output == kSkipped) GTEST_SKIP() << "setrlimit is refused";
  EXPECT_THAT(child.output,
              AllOf(StartsWith("RESOURCE_EXHAUSTED: mprotect of 134217728"),
                    HasSubstr("RLIMIT_DATA (ulimit -d)"),
                    Not(HasSubstr("vm.max_map_count"))));
}

TEST(PagemapTest, WhereItCannotBeOpenedDescribeSaysSo) {
  if (const std::string missing =
          MissingFor({Backing::kCopied, Resolve::kInThread});
      !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  FakeKernel kernel;
  kernel.Fail(FakeKernel::Op::kOpenPagemap, FakeKernel::kEvery,
              CallResult{0, EACCES});
  ServiceOptions options = Options(1);
  options.supply = UserfaultfdOptions{};
  const absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService(options, kernel);
  ASSERT_TRUE(service.ok()) << service.status();
  EXPECT_THAT((*service)->Describe(),
              AllOf(HasSubstr("untracked pages: dropped at release "
                              "(/proc/self/pagemap cannot be opened: EACCES"),
                    HasSubstr("PR_SET_DUMPABLE"), Not(HasSubstr("6.7"))));
  options.supply = UserfaultfdOptions{.tracking = Tracking::kAsync};
  EXPECT_THAT(TextOf(CreateService(options, kernel)),
              HasSubstr("(/proc/self/pagemap cannot be opened: EACCES"));
}

TEST(PagemapTest, AProcessThatIsNotDumpableIsToldSo) {
  if (const std::string missing =
          MissingFor({Backing::kCopied, Resolve::kInThread});
      !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  const ChildResult child = RunInChild([]() -> std::string {
    if (!BecomeNobody() || prctl(PR_SET_DUMPABLE, 0) != 0) return kSkipped;
    const absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(Options(1), RealKernel());
    return service.ok() ? (*service)->Describe() : TextOf(service);
  });
  if (child.output == kSkipped) GTEST_SKIP() << "there is no nobody";
  EXPECT_THAT(child.output,
              HasSubstr("; /proc/self is not this process's own after "
                        "prctl(PR_SET_DUMPABLE, 0)"));
}

}  // namespace
}  // namespace firsttouch
