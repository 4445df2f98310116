#include "firsttouch/tools/cli/bytes.h"

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::cli {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(ParseBytes, TakesNumbersAndUnits) {
  const struct {
    const char* text;
    uint64_t bytes;
  } cases[] = {
      {"0", 0},
      {"4096", 4096},
      {"4096B", 4096},
      {"64KiB", 65536},
      {"64k", 65536},
      {" 4 GiB ", uint64_t{4} << 30},
      {"4gib", uint64_t{4} << 30},
      {"1.5MiB", 1572864},
      {"0.5k", 512},
      {"15EiB", uint64_t{15} << 60},
      {"18446744073709551615", ~uint64_t{0}},
  };
  for (const auto& [text, bytes] : cases) {
    const absl::StatusOr<uint64_t> got = ParseBytes("size", text);
    ASSERT_TRUE(got.ok()) << text << ": " << got.status();
    EXPECT_EQ(*got, bytes) << text;
  }
}

TEST(ParseBytes, RefusesTheRestAndSaysWhy) {
  const struct {
    const char* text;
    const char* why;
  } cases[] = {
      {"", "is not a size"},
      {"GiB", "is not a size"},
      {"4XiB", "is not a size"},
      {"4iB", "is not a size"},
      {"-1", "is not a size"},
      {"1.", "is not a size"},
      {".5", "is not a size"},
      {"1.2.3", "is not a size"},
      {"4 GiB per slot", "is not a size"},
      {"16EiB", "does not fit 64 bits"},
      {"16.5EiB", "does not fit 64 bits"},
      {"18446744073709551616", "does not fit 64 bits"},
      {"0.3KiB", "is no whole number of bytes"},
  };
  for (const auto& [text, why] : cases) {
    const absl::StatusOr<uint64_t> got = ParseBytes("size", text);
    ASSERT_FALSE(got.ok()) << text << ": " << *got;
    EXPECT_THAT(std::string(got.status().message()), HasSubstr(why)) << text;
    EXPECT_THAT(std::string(got.status().message()),
                StartsWith("size \"" + std::string(text) + "\" "));
  }
}

}  // namespace
}  // namespace firsttouch::cli
