#include "firsttouch/service/restore_page.h"

#include <cstddef>
#include <cstring>

#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

struct alignas(kPageBytes) Page {
  std::byte bytes[kPageBytes];
};

Page Pattern() {
  Page page;
  for (size_t i = 0; i < kPageBytes; ++i) {
    page.bytes[i] = std::byte(1 + i * 7 % 255);
  }
  return page;
}

TEST(RestorePageTest, EveryByteOfAPageIsRestoredAndReported) {
  const Page initial = Pattern();
  for (size_t at = 0; at < kPageBytes; ++at) {
    Page page = initial;
    page.bytes[at] ^= std::byte{0x80};
    EXPECT_TRUE(RestorePage(page.bytes, initial.bytes)) << at;
    ASSERT_EQ(memcmp(page.bytes, initial.bytes, kPageBytes), 0) << at;
  }
}

TEST(RestorePageTest, EveryByteOfAZeroPageIsRestoredAndReported) {
  const Page zero = {};
  for (size_t at = 0; at < kPageBytes; ++at) {
    Page page = {};
    page.bytes[at] = std::byte{1};
    EXPECT_TRUE(RestoreZeroPage(page.bytes)) << at;
    ASSERT_EQ(memcmp(page.bytes, zero.bytes, kPageBytes), 0) << at;
  }
}

TEST(RestorePageTest, AnUnchangedPageIsReportedAsSuch) {
  const Page initial = Pattern();
  Page page = initial;
  EXPECT_FALSE(RestorePage(page.bytes, initial.bytes));
  Page zero = {};
  EXPECT_FALSE(RestoreZeroPage(zero.bytes));
}

TEST(RestorePageTest, APageThatChangedAllOverIsRestored) {
  const Page initial = Pattern();
  Page page;
  memset(page.bytes, 0xff, kPageBytes);
  EXPECT_TRUE(RestorePage(page.bytes, initial.bytes));
  EXPECT_EQ(memcmp(page.bytes, initial.bytes, kPageBytes), 0);
}

}  // namespace
}  // namespace firsttouch
