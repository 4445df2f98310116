#include "firsttouch/service/stats.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "firsttouch/control/counters.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;

TEST(ServiceStats, TheTextHasEachCounter) {
  ServiceStats stats;
  uint64_t number = 1000;
#define FIRSTTOUCH_SET(name) stats.name = ++number;
  FIRSTTOUCH_SLOT_COUNTERS(FIRSTTOUCH_SET)
#undef FIRSTTOUCH_SET
  const std::string text = stats.ToString();
#define FIRSTTOUCH_EXPECT(name) \
  EXPECT_THAT(text, HasSubstr(absl::StrCat(" ", stats.name))) << #name;
  FIRSTTOUCH_SLOT_COUNTERS(FIRSTTOUCH_EXPECT)
#undef FIRSTTOUCH_EXPECT
}

}  // namespace
}  // namespace firsttouch
