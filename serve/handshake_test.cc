#include "firsttouch/serve/handshake.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/serve/address_map.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;

std::string Refusal(const std::string& text) {
  absl::StatusOr<std::vector<GuestRegion>> regions = ParseRegions(text);
  EXPECT_FALSE(regions.ok()) << text;
  return regions.ok() ? "" : std::string(regions.status().message());
}

std::string WithSizes(const std::string& sizes) {
  return absl::StrCat(
      R"([{"base_host_virt_addr":140000000000000,"size":8192,"offset":4096)",
      sizes.empty() ? "" : ",", sizes, "}]");
}

TEST(HandshakeTest, FirecrackersMessageOfAllItsVersionsIsUnderstood) {
  for (const char* sizes : {R"("page_size":4096)", R"("page_size_kib":4096)",
                            R"("page_size":4096,"page_size_kib":4096)",
                            R"("page_size":4096,"something_new":{"a":[1]})"}) {
    absl::StatusOr<std::vector<GuestRegion>> regions =
        ParseRegions(WithSizes(sizes));
    ASSERT_TRUE(regions.ok()) << regions.status();
    ASSERT_EQ(regions->size(), 1u);
    EXPECT_EQ((*regions)[0].start, 140000000000000u);
    EXPECT_EQ((*regions)[0].bytes, 8192u);
    EXPECT_EQ((*regions)[0].image_offset_bytes, 4096u);
    EXPECT_EQ((*regions)[0].page_bytes, 4096u);
    EXPECT_FALSE((*regions)[0].track_writes);
  }
}

TEST(HandshakeTest, WhatIsNoMessageIsRefusedByName) {
  EXPECT_THAT(Refusal("[nonsense]"), HasSubstr("no JSON array"));
  EXPECT_THAT(Refusal(R"({"a":1})"), HasSubstr("no JSON array"));
  EXPECT_THAT(Refusal("[1]"), HasSubstr("region 0 is no JSON object"));
  EXPECT_THAT(Refusal("[{}]"), HasSubstr("there is no base_host_virt_addr"));
  EXPECT_THAT(Refusal(WithSizes("")), HasSubstr("neither page_size nor"));
  EXPECT_THAT(Refusal(WithSizes(R"("page_size":4)")),
              HasSubstr("is in bytes: 4096?"));
  EXPECT_THAT(Refusal(WithSizes(R"("page_size_kib":2048)")),
              HasSubstr("is in bytes: 2097152?"));
  EXPECT_THAT(Refusal(WithSizes(R"("page_size":4096,"page_size_kib":8192)")),
              HasSubstr("both are in bytes, and must agree"));
  EXPECT_THAT(Refusal(WithSizes(R"("page_size":4096,"track_writes":1)")),
              HasSubstr("neither true nor false"));
  for (const char* number :
       {"-1", "1.5", "18446744073709551615", "18446744073709547520", "1e300"}) {
    EXPECT_THAT(
        Refusal(absl::StrCat(R"([{"base_host_virt_addr":4096,"size":)", number,
                             R"(,"offset":0,"page_size":4096}])")),
        HasSubstr("size is "))
        << number;
  }
  EXPECT_THAT(Refusal(R"([{"base_host_virt_addr":"4096"}])"),
              HasSubstr("is no number"));
  std::string many = "[{}";
  for (int i = 0; i < 256; ++i) many += ",{}";
  EXPECT_THAT(Refusal(many + "]"), HasSubstr("257 regions"));
  // Neither by a stack that is at its end, nor after minutes.
  EXPECT_THAT(Refusal(std::string(30000, '[') + std::string(30000, ']')),
              HasSubstr("30000 brackets"));
  EXPECT_THAT(Refusal(std::string(512, '[') + std::string(512, ']')),
              HasSubstr("no JSON array"));
}

TEST(HandshakeTest, AClientsTextIsReadAsItWasMeant) {
  const std::vector<GuestRegion> regions = {
      {.start = 0x7f0000000000, .bytes = uint64_t{1} << 40},
      {.start = 0x200000,
       .bytes = kHugePageBytes,
       .image_offset_bytes = uint64_t{1} << 40,
       .page_bytes = kHugePageBytes,
       .track_writes = true},
  };
  absl::StatusOr<std::vector<GuestRegion>> read =
      ParseRegions(RegionsText(regions));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ((*read)[i].start, regions[i].start);
    EXPECT_EQ((*read)[i].bytes, regions[i].bytes);
    EXPECT_EQ((*read)[i].image_offset_bytes, regions[i].image_offset_bytes);
    EXPECT_EQ((*read)[i].page_bytes, regions[i].page_bytes);
    EXPECT_EQ((*read)[i].track_writes, regions[i].track_writes);
  }
}

TEST(HandshakeTest, RequestsAndAnswersAreReadAsTheyWereMeant) {
  EXPECT_EQ(*ParseRequest(RequestLine("fill")), "fill");
  EXPECT_EQ(*ParseRequest(RequestLine("leave")), "leave");
  EXPECT_FALSE(ParseRequest(RequestLine("dance")).ok());
  EXPECT_FALSE(ParseRequest("{").ok());
  EXPECT_TRUE(ParseAnswer(AnswerLine(absl::OkStatus())).ok());
  EXPECT_THAT(
      std::string(
          ParseAnswer(AnswerLine(absl::DataLossError("a \"quoted\"\nline")))
              .message()),
      HasSubstr("the server says: a \"quoted\"\nline"));
  EXPECT_EQ(ParseAnswer("{}").code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace firsttouch
