// What a machine, or a process, does not have room for is refused with the
// limit's name, before anything is allocated for it.

#include <sys/mman.h>
#include <sys/resource.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/service.h"
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
        TextOf(Service::Create(Options(GetParam()), RealKernel()));
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
    return TextOf(Service::Create(Options(4), RealKernel()));
  });
  if (child.output == kSkipped) GTEST_SKIP() << "vm.max_map_count is higher";
  EXPECT_EQ(child.signal, 0);
  EXPECT_THAT(child.output, AllOf(StartsWith("RESOURCE_EXHAUSTED: "),
                                  HasSubstr("vm.max_map_count")));
}

}  // namespace
}  // namespace firsttouch
