#include "firsttouch/init/image_digest.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(DigestTest, IsSha256) {
  EXPECT_EQ(Sha256Of(std::string_view("abc")).ToHex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 sha;
  sha.Update("a");
  sha.Update("bc");
  EXPECT_EQ(sha.Finish(), Sha256Of(std::string_view("abc")));
  sha.UpdateWord(0x6867666564636261);
  EXPECT_EQ(sha.Finish(), Sha256Of(std::string_view("abcdefgh")));
}

TEST(DigestTest, HexadecimalDigitsThereAndBack) {
  const Digest digest = Sha256Of(std::string_view("x"));
  EXPECT_EQ(Digest::FromHex(digest.ToHex()), digest);
  std::string bad = digest.ToHex();
  EXPECT_EQ(Digest::FromHex(bad.substr(1)), std::nullopt);
  bad[5] = 'g';
  EXPECT_EQ(Digest::FromHex(bad), std::nullopt);
  EXPECT_EQ(Digest::FromBytes("short"), std::nullopt);
}

ImageRef PagesOf(uint64_t size_bytes, std::vector<uint64_t> pages,
                 const std::string& name) {
  return ImageFromWriter({.name = name, .size_bytes = size_bytes},
                         [&](ImagePut put) -> absl::Status {
                           const std::vector<std::byte> one(1, std::byte{1});
                           for (const uint64_t page : pages) {
                             absl::Status status = put(page * kPageBytes, one);
                             if (!status.ok()) return status;
                           }
                           return absl::OkStatus();
                         })
      .value();
}

TEST(ImageDigestTest, ExtentsAreRunsCutAtBlocks) {
  PageMap stored = PageMap::Create(PageCount(1000)).value();
  stored.InsertRun({PageIndex(250), PageCount(300)});
  stored.Insert(PageIndex(999));
  const std::vector<PageRun> runs = ExtentRuns(stored);
  const std::vector<PageRun> expected = {{PageIndex(250), PageCount(6)},
                                         {PageIndex(256), PageCount(256)},
                                         {PageIndex(512), PageCount(38)},
                                         {PageIndex(999), PageCount(1)}};
  EXPECT_EQ(runs, expected);
}

TEST(ImageDigestTest, BlocksGrowSoThatThereAreNeverManyOfThem) {
  for (const uint64_t pages : {0, 1, 256, 257, 256 * 64}) {
    EXPECT_EQ(ExtentBlockPages(PageCount(pages)), 256) << pages;
  }
  EXPECT_EQ(ExtentBlockPages(PageCount(256 * 64 + 1)), 512);
  EXPECT_EQ(ExtentBlockPages(PageCount(512 * 64)), 512);
  EXPECT_EQ(ExtentBlockPages(PageCount(1 << 18)), 4096) << "1 GiB";
  for (const uint64_t pages : {16385, 262144, 262145, 1 << 28}) {
    PageMap all = PageMap::Create(PageCount(pages)).value();
    all.InsertRun({PageIndex(0), PageCount(pages)});
    const std::vector<PageRun> runs = ExtentRuns(all);
    EXPECT_LE(runs.size(), 64) << pages;
    EXPECT_GT(runs.size(), 32) << pages;
    EXPECT_EQ(runs[0].length, PageCount(ExtentBlockPages(all.pages())));
    EXPECT_EQ(runs.back().end(), PageIndex(pages));
  }
}

TEST(ImageDigestTest, DependsOnSizeAndContentsOnly) {
  const Digest digest = ContentDigest(*PagesOf(10 * kPageBytes, {1, 2}, "a"));
  const ImageRef same = PagesOf(10 * kPageBytes, {2, 1}, "b");
  same->working_set().LearnWritten(std::vector<uint64_t>{1});
  EXPECT_EQ(ContentDigest(*same), digest);
  EXPECT_EQ(same->known_digest(), digest);
  EXPECT_NE(ContentDigest(*PagesOf(10 * kPageBytes, {1, 3}, "a")), digest);
  EXPECT_NE(ContentDigest(*PagesOf(10 * kPageBytes, {1}, "a")), digest);
  EXPECT_NE(ContentDigest(*PagesOf(10 * kPageBytes - 1, {1, 2}, "a")), digest);
  // As docs/image-format.md has it.
  std::vector<std::byte> bytes(2 * kPageBytes);
  bytes[0] = bytes[kPageBytes] = std::byte{1};
  const Digest extent = Sha256Of(bytes);
  Sha256 sha;
  sha.Update("firsttouch-image-1\n");
  sha.UpdateWord(10 * kPageBytes);
  sha.UpdateWord(1);
  sha.UpdateWord(2);
  sha.Update(std::as_bytes(std::span(extent.bytes)));
  EXPECT_EQ(sha.Finish(), digest);
}

}  // namespace
}  // namespace firsttouch
