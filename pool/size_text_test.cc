#include "firsttouch/pool/size_text.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(SizeText, LongNumbersHaveTheirSizeWhereItIsExact) {
  EXPECT_EQ(SizeText(0), "0");
  EXPECT_EQ(SizeText(4096), "4096");
  EXPECT_EQ(SizeText(1048575), "1048575");
  EXPECT_EQ(SizeText(1048576), "1048576 (1 MiB)");
  EXPECT_EQ(SizeText(4194304), "4194304 (4 MiB)");
  EXPECT_EQ(SizeText(6442450944), "6442450944 (6 GiB)");
  EXPECT_EQ(SizeText(1610612736), "1610612736 (1.5 GiB)");
  EXPECT_EQ(SizeText(107105746944), "107105746944 (99.75 GiB)");
  EXPECT_EQ(SizeText(uint64_t{1} << 63), "9223372036854775808 (8 EiB)");
}

TEST(SizeText, ASizeThatWouldBeRoundedIsLeftOut) {
  EXPECT_EQ(SizeText(4194305), "4194305");
  EXPECT_EQ(SizeText(8588890112), "8588890112");
  EXPECT_EQ(SizeText(~uint64_t{0}), "18446744073709551615");
  // 100.25 GiB has five digits.
  EXPECT_EQ(SizeText(107642617856), "107642617856");
}

TEST(BytesText, HasBytesAndFourDigits) {
  EXPECT_EQ(BytesText(0), "0 bytes");
  EXPECT_EQ(BytesText(1023), "1023 bytes");
  EXPECT_EQ(BytesText(4096), "4096 bytes (4 KiB)");
  EXPECT_EQ(BytesText(8192008192), "8192008192 bytes (7.629 GiB)");
  EXPECT_EQ(BytesText(~uint64_t{0}), "18446744073709551615 bytes (16 EiB)");
}

}  // namespace
}  // namespace firsttouch
