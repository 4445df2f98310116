// Every way of supplying memory against the model (model.h).
//
// Longer runs:  bazel test //service:model_test
//                   --test_env=FIRSTTOUCH_MODEL_SEQUENCES=20000
// Another seed: --test_env=FIRSTTOUCH_MODEL_SEED=7

#include "firsttouch/service/model.h"

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "firsttouch/service/test_fixture.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// Takes about half a minute; a sanitizer's build is ten times as slow.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSequences = 20;
#else
constexpr uint64_t kSequences = 300;
#endif

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* value = getenv(name);
  return value == nullptr ? otherwise : strtoull(value, nullptr, 10);
}

class ModelTest : public testing::TestWithParam<Way> {};

INSTANTIATE_TEST_SUITE_P(AllWays, ModelTest, AllWays(), WayName);
INSTANTIATE_TEST_SUITE_P(TestsOwn, ModelTest, testing::Values(kPlainWay),
                         WayName);

TEST_P(ModelTest, MemoriesAreWhatAByteArrayWouldBe) {
  const absl::Status allowed = ModelAllows(GetParam());
  if (!allowed.ok()) GTEST_SKIP() << allowed;
  const std::optional<std::string> difference = FindDifference(
      GetParam(), FromEnvironment("FIRSTTOUCH_MODEL_SEQUENCES", kSequences),
      FromEnvironment("FIRSTTOUCH_MODEL_SEED", 1));
  EXPECT_FALSE(difference.has_value()) << *difference;
}

}  // namespace
}  // namespace firsttouch
