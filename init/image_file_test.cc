#include "firsttouch/init/image_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/checksum.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/fake_memfd.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file_with_kernel.h"
#include "firsttouch/init/image_format.h"
#include "firsttouch/init/image_manifest.pb.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Bytes that differ from page to page and are never zero.
std::vector<std::byte> PageOf(int seed) {
  std::vector<std::byte> bytes(kPageBytes);
  std::mt19937 random(seed);
  for (std::byte& byte : bytes) byte = std::byte(1 + random() % 255);
  return bytes;
}

// A memory of `pages` pages in which the given ones hold PageOf(seed).
struct Stored {
  uint64_t page;
  int seed;
};
ImageRef MakeImage(uint64_t pages, std::initializer_list<Stored> stored,
                   const std::string& name = "memory") {
  absl::StatusOr<ImageRef> image = ImageFromWriter(
      {.name = name, .size_bytes = pages * kPageBytes},
      [&](ImagePut put) -> absl::Status {
        for (const Stored& page : stored) {
          absl::Status status = put(page.page * kPageBytes, PageOf(page.seed));
          if (!status.ok()) return status;
        }
        return absl::OkStatus();
      });
  if (!image.ok()) {
    ADD_FAILURE() << image.status();
    std::abort();
  }
  return *image;
}

void ExpectSame(const Image& a, const Image& b) {
  ASSERT_EQ(a.size_bytes(), b.size_bytes());
  ASSERT_EQ(a.stored_pages(), b.stored_pages());
  for (uint64_t page = 0; page < a.pages().value(); ++page) {
    ASSERT_EQ(a.IsStored(PageIndex(page)), b.IsStored(PageIndex(page))) << page;
    ASSERT_EQ(std::memcmp(a.PageBytes(PageIndex(page)),
                          b.PageBytes(PageIndex(page)), kPageBytes),
              0)
        << page;
  }
}

class ImageFileTest : public ::testing::Test {
 protected:
  ImageFileTest() {
    std::string pattern =
        (std::filesystem::path(::testing::TempDir()) / "ftimgXXXXXX").string();
    directory_ = mkdtemp(pattern.data());
  }
  ~ImageFileTest() override { std::filesystem::remove_all(directory_); }

  std::string Path(const std::string& name) const {
    return (directory_ / name).string();
  }
  std::vector<std::string> Listing() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  static std::string Slurp(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void Spit(const std::string& path, const std::string& bytes) {
    std::filesystem::remove(path);
    std::ofstream(path, std::ios::binary) << bytes;
  }

  std::filesystem::path directory_;
};

// A file of this manifest, whatever it says, with a header to match.
std::string Forge(const ImageManifest& manifest) {
  const std::string bytes = manifest.SerializeAsString();
  const ImageHeader header =
      HeaderFor(bytes, std::min(manifest.size_bytes(), uint64_t{1} << 22));
  std::string file = EncodeHeader(header) + bytes;
  file.resize(header.file_bytes);
  return file;
}

std::string Raw(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.bytes.data()), Digest::kBytes};
}

// A delta of 300 pages to the parent "pppp...", with these extents.
ImageManifest Delta(std::vector<std::pair<uint64_t, uint64_t>> extents) {
  ImageManifest manifest;
  manifest.set_format_version(1);
  manifest.set_page_bytes(4096);
  manifest.set_size_bytes(300 * kPageBytes);
  manifest.set_content_sha256(std::string(32, 'c'));
  manifest.set_parent_content_sha256(std::string(32, 'p'));
  for (const auto& [first, pages] : extents) {
    manifest.add_extent_first_page(first);
    manifest.add_extent_pages(pages);
    manifest.mutable_extent_sha256()->append(std::string(32, 'e'));
  }
  return manifest;
}

TEST_F(ImageFileTest, WhatIsWrittenIsOpenedAgain) {
  const ImageRef image =
      MakeImage(1000, {{0, 1}, {1, 2}, {255, 3}, {256, 4}, {999, 5}});
  image->working_set().Replace(std::vector<uint64_t>{1, 0, 4},
                               std::vector<uint64_t>{3});
  const ImageProvenance provenance = {.tool = "a test",
                                      .source = "nothing",
                                      .comment = "made up",
                                      .source_sha256 = Sha256Of("x"),
                                      .created_unix_seconds = 12};
  const absl::StatusOr<ImageFileInfo> written =
      WriteImageFile(*image, Path("a.ftimg"), {.provenance = provenance});
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->stored_pages, 5);
  EXPECT_EQ(written->extents.size(), 4);
  EXPECT_EQ(written->content, ContentDigest(*image));
  EXPECT_EQ(written->provenance, provenance);

  const absl::StatusOr<ImageRef> opened = OpenImageFile(Path("a.ftimg"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  ExpectSame(*image, **opened);
  EXPECT_TRUE((*opened)->is_file_backed());
  EXPECT_EQ((*opened)->name(), "memory");
  EXPECT_EQ((*opened)->known_digest(), written->content);
  EXPECT_EQ((*opened)->working_set().written(), image->working_set().written());
  EXPECT_EQ((*opened)->working_set().read(), image->working_set().read());
  const Image::Mapping mapping = (*opened)->PrivateMapping().value();
  std::byte bytes[16];
  ASSERT_EQ(pread(mapping.fd, bytes, sizeof bytes,
                  static_cast<off_t>(mapping.offset_bytes + 999 * kPageBytes)),
            16);
  EXPECT_EQ(std::memcmp(bytes, PageOf(5).data(), sizeof bytes), 0);

  const absl::StatusOr<ImageFileInfo> info =
      VerifyImageFile(Path("a.ftimg"), {});
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->file_bytes, info->data_offset + 1000 * kPageBytes);
  // Zeroes are holes.
  EXPECT_LT(info->disk_bytes, 100 * kPageBytes);
  EXPECT_THAT(Listing(), ElementsAre("a.ftimg"));
  struct stat status = {};
  ASSERT_EQ(stat(Path("a.ftimg").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0222, 0);
}

TEST_F(ImageFileTest, ACopyOwesTheFileNothing) {
  const ImageRef image = MakeImage(300, {{0, 1}, {255, 2}, {256, 3}});
  ASSERT_TRUE(WriteImageFile(*image, Path("a")).ok());
  const absl::StatusOr<ImageRef> copy =
      OpenImageFile(Path("a"), {.name = "copy",
                                .backing = OpenImageOptions::Backing::kCopied,
                                .verify = OpenImageOptions::Verify::kAll});
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_FALSE((*copy)->is_file_backed());
  EXPECT_EQ((*copy)->name(), "copy");
  ASSERT_EQ(chmod(Path("a").c_str(), 0644), 0);
  ASSERT_EQ(truncate(Path("a").c_str(), 0), 0);
  ExpectSame(*image, **copy);
}

TEST_F(ImageFileTest, ImagesOfNoPagesAndOfPartsOfAPage) {
  ASSERT_TRUE(WriteImageFile(*MakeImage(0, {}), Path("none")).ok());
  EXPECT_EQ(OpenImageFile(Path("none")).value()->size_bytes(), 0);
  ASSERT_TRUE(VerifyImageFile(Path("none")).ok());
  const std::vector<std::byte> bytes(5000, std::byte{7});
  const ImageRef odd =
      ImageFromBytes({.name = "odd", .size_bytes = 5000}, bytes).value();
  ASSERT_TRUE(WriteImageFile(*odd, Path("odd")).ok());
  ExpectSame(*odd, **OpenImageFile(Path("odd")));
  ExpectSame(*odd,
             **OpenImageFile(Path("odd"),
                             {.backing = OpenImageOptions::Backing::kCopied}));

  // Bytes behind the memory's end would be a guest's first memory.grow.
  std::string file = Slurp(Path("odd"));
  file[file.size() - 1] = 1;
  Spit(Path("odd"), file);
  EXPECT_THAT(OpenImageFile(Path("odd")).status().message(),
              HasSubstr("behind the memory's 5000 bytes, are not zero"));
}

TEST_F(ImageFileTest, ExtentsLongerThanABufferAreReadAndWrittenInPieces) {
  // Blocks of 512 pages, and 500 of them stored: a whole piece and a part.
  constexpr uint64_t kPages = 20000;
  std::vector<std::byte> bytes(500 * kPageBytes);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte(1 + i % 251);
  const DataSegment segment = {.offset_bytes = 1024 * kPageBytes,
                               .bytes = bytes};
  const ImageRef image =
      ImageFromSegments({.name = "long", .size_bytes = kPages * kPageBytes},
                        std::span(&segment, 1))
          .value();
  std::vector<uint64_t> progress;
  const absl::StatusOr<ImageFileInfo> written = WriteImageFile(
      *image, Path("a"), {.progress = [&](uint64_t done, uint64_t total) {
        EXPECT_EQ(total, bytes.size());
        progress.push_back(done);
      }});
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(progress, ElementsAre(1 << 20, bytes.size()));
  ASSERT_EQ(written->extents.size(), 1);
  EXPECT_EQ(written->extents[0].digest, Sha256Of(bytes));
  EXPECT_EQ(written->content, ContentDigest(*image));
  ASSERT_TRUE(VerifyImageFile(Path("a")).ok());
  ASSERT_TRUE(PackImageFile(Path("a"), Path("packed")).ok());
  ASSERT_TRUE(UnpackImageFile(Path("packed"), Path("b")).ok());
  const absl::StatusOr<ImageRef> unpacked = OpenImageFile(Path("b"));
  ASSERT_TRUE(unpacked.ok()) << unpacked.status();
  ExpectSame(**unpacked, *image);

  // A byte of each piece is looked at.
  ASSERT_EQ(chmod(Path("a").c_str(), 0644), 0);
  std::fstream file(Path("a"), std::ios::binary | std::ios::in | std::ios::out);
  for (const uint64_t page : {1024, 1024 + 256, 1024 + 499}) {
    const uint64_t at = written->data_offset + page * kPageBytes;
    file.seekp(at).put('\0').flush();
    const absl::Status verified = VerifyImageFile(Path("a")).status();
    EXPECT_THAT(verified.message(),
                HasSubstr("extent 0 (pages [1024, 1524) at offset"));
    EXPECT_EQ(PackImageFile(Path("a"), Path("packed")), verified);
    file.seekp(at)
        .put(std::to_integer<char>(bytes[(page - 1024) * kPageBytes]))
        .flush();
    EXPECT_TRUE(VerifyImageFile(Path("a")).ok());
  }
}

TEST_F(ImageFileTest, TheSameImageGivesTheSameFile) {
  const ImageRef image = MakeImage(300, {{0, 1}, {299, 2}});
  ASSERT_TRUE(WriteImageFile(*image, Path("a")).ok());
  ASSERT_TRUE(WriteImageFile(**OpenImageFile(Path("a")), Path("b")).ok());
  EXPECT_EQ(Slurp(Path("a")), Slurp(Path("b")));
}

TEST_F(ImageFileTest, AFileThatIsReplacedStaysForWhoHasIt) {
  ASSERT_TRUE(WriteImageFile(*MakeImage(2, {{0, 1}}), Path("a")).ok());
  const ImageRef old_one = OpenImageFile(Path("a")).value();
  ASSERT_TRUE(WriteImageFile(*MakeImage(2, {{0, 2}}), Path("a")).ok());
  ExpectSame(*old_one, *MakeImage(2, {{0, 1}}));
  ExpectSame(**OpenImageFile(Path("a")), *MakeImage(2, {{0, 2}}));
  const absl::Status refused =
      WriteImageFile(*old_one, Path("a"), {.replace = false}).status();
  EXPECT_TRUE(absl::IsAlreadyExists(refused)) << refused;
  EXPECT_THAT(Listing(), ElementsAre("a"));
  ASSERT_TRUE(WriteImageFile(*old_one, Path("b"), {.replace = false}).ok());
  EXPECT_THAT(Listing(), ElementsAre("a", "b"));
}

TEST_F(ImageFileTest, AFailureLeavesNothingAndTheOldFile) {
  ASSERT_TRUE(WriteImageFile(*MakeImage(2, {{0, 1}}), Path("a")).ok());
  const std::string before = Slurp(Path("a"));
  const ImageRef image = MakeImage(600, {{0, 2}, {300, 3}, {599, 4}});
  for (const MemfdOp op :
       {MemfdOp::kTruncate, MemfdOp::kWrite, MemfdOp::kRead}) {
    int failures = 0;
    for (int nth = 0;; ++nth) {
      FakeMemfdCalls calls;
      calls.Fail(op, nth, ENOSPC);
      const absl::Status status =
          WriteImageFile(*image, Path("a"), {}, calls).status();
      if (status.ok()) break;
      ++failures;
      EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
      EXPECT_THAT(status.message(), HasSubstr(Path("a")));
      EXPECT_THAT(Listing(), ElementsAre("a"));
      EXPECT_EQ(Slurp(Path("a")), before);
    }
    EXPECT_GT(failures, 0);
    ASSERT_TRUE(WriteImageFile(*MakeImage(2, {{0, 1}}), Path("a")).ok());
  }
  const absl::Status nowhere =
      WriteImageFile(*image, Path("no/such/a")).status();
  EXPECT_TRUE(absl::IsNotFound(nowhere)) << nowhere;
  FakeMemfdCalls slow;
  slow.LimitWrites(1000);
  ASSERT_TRUE(WriteImageFile(*image, Path("a"), {}, slow).ok());
  ExpectSame(**OpenImageFile(Path("a")), *image);
}

TEST_F(ImageFileTest, AFileCutShortAnywhereIsRefused) {
  ASSERT_TRUE(WriteImageFile(*MakeImage(2, {{0, 1}}), Path("a")).ok());
  const std::string whole = Slurp(Path("a"));
  for (size_t bytes = 0; bytes < whole.size(); bytes += bytes < 400 ? 3 : 997) {
    Spit(Path("cut"), whole.substr(0, bytes));
    const absl::Status status = OpenImageFile(Path("cut")).status();
    ASSERT_TRUE(absl::IsDataLoss(status)) << bytes << ": " << status;
    ASSERT_THAT(status.message(), HasSubstr(Path("cut")));
  }
  Spit(Path("more"), whole + "x");
  EXPECT_THAT(OpenImageFile(Path("more")).status().message(),
              HasSubstr("something was added"));
}

TEST_F(ImageFileTest, ABitFlippedAnywhereIsFound) {
  ASSERT_TRUE(WriteImageFile(*MakeImage(3, {{1, 1}}), Path("a")).ok());
  const std::string whole = Slurp(Path("a"));
  const uint64_t data_offset = ReadImageFileInfo(Path("a"))->data_offset;
  for (size_t byte = 0; byte < whole.size(); byte += byte < 400 ? 1 : 211) {
    std::string flipped = whole;
    flipped[byte] = static_cast<char>(flipped[byte] ^ (1 << (byte % 8)));
    Spit(Path("b"), flipped);
    const absl::Status verified = VerifyImageFile(Path("b")).status();
    ASSERT_FALSE(verified.ok()) << byte;
    if (byte < data_offset) {
      ASSERT_FALSE(OpenImageFile(Path("b")).ok()) << byte;
      continue;
    }
    const uint64_t page = (byte - data_offset) / kPageBytes;
    ASSERT_THAT(verified.message(),
                HasSubstr(page == 1 ? "extent 0 (pages [1, 2) at offset"
                                    : absl::StrCat("page ", page)))
        << byte;
    ASSERT_TRUE(OpenImageFile(Path("b")).ok()) << "is not looked at";
    ASSERT_EQ(
        OpenImageFile(Path("b"), {.verify = OpenImageOptions::Verify::kAll})
            .status(),
        verified);
    const absl::StatusOr<ImageRef> copy =
        OpenImageFile(Path("b"), {.backing = OpenImageOptions::Backing::kCopied,
                                  .verify = OpenImageOptions::Verify::kAll});
    // What lies where there are zeroes is not copied.
    ASSERT_EQ(copy.ok(), page != 1);
  }
}

// They cost whoever opens the file, whether or not pages are checked.
TEST_F(ImageFileTest, NoPageHasAChecksumUnasked) {
  const absl::StatusOr<ImageFileInfo> written =
      WriteImageFile(*MakeImage(700, {{1, 1}, {600, 3}}), Path("a"));
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(written->page_checksums, IsEmpty());
  EXPECT_THAT(ReadImageFileInfo(Path("a"))->page_checksums, IsEmpty());
}

TEST_F(ImageFileTest, EachStoredPageHasItsChecksum) {
  const absl::StatusOr<ImageFileInfo> written =
      WriteImageFile(*MakeImage(700, {{1, 1}, {2, 2}, {600, 3}}), Path("a"),
                     {.page_checksums = true});
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(written->page_checksums,
              ElementsAre(ChecksumOf(PageOf(1)), ChecksumOf(PageOf(2)),
                          ChecksumOf(PageOf(3))));
  EXPECT_EQ(ReadImageFileInfo(Path("a"))->page_checksums,
            written->page_checksums);
  // So does what other programs compute.
  EXPECT_EQ(ChecksumOf({}), 0x2D06800538D394C2u);
}

// Whoever checks pages alone would refuse what the extents allow.
TEST_F(ImageFileTest, AChecksumThatContradictsTheDigestsIsFound) {
  std::vector<std::byte> bytes = PageOf(1);
  const std::vector<std::byte> second = PageOf(2);
  bytes.insert(bytes.end(), second.begin(), second.end());
  ASSERT_TRUE(WriteImageFile(*MakeImage(9, {{4, 1}, {5, 2}}), Path("a")).ok());
  ImageManifest manifest = Delta({});
  manifest.set_size_bytes(9 * kPageBytes);
  manifest.add_extent_first_page(4);
  manifest.add_extent_pages(2);
  manifest.set_extent_sha256(Raw(Sha256Of(bytes)));
  manifest.add_page_xxh3(ChecksumOf(PageOf(1)));
  manifest.add_page_xxh3(ChecksumOf(PageOf(1)));
  std::string forged = Forge(manifest);
  const std::string right = Slurp(Path("a"));
  forged.replace(forged.size() - 9 * kPageBytes, 9 * kPageBytes,
                 right.substr(right.size() - 9 * kPageBytes));
  Spit(Path("a"), forged);
  EXPECT_THAT(VerifyImageFile(Path("a")).status().message(),
              HasSubstr("page 5 does not have the checksum"));
}

TEST_F(ImageFileTest, OtherFilesAndVersionsAreNamed) {
  const auto message = [&](const std::string& bytes) {
    Spit(Path("a"), bytes);
    return std::string(OpenImageFile(Path("a")).status().message());
  };
  EXPECT_THAT(message("#!/bin/sh"),
              HasSubstr("begins with 23212f62696e2f73, not with the "
                        "894654494d470d0a of an image file"));
  EXPECT_THAT(message("\x28\xb5\x2f\xfd 1234"), HasSubstr("unpack it first"));
  EXPECT_THAT(message(""), HasSubstr("ends after 0 bytes"));
  std::string header = EncodeHeader({.version = 2});
  EXPECT_THAT(message(header),
              HasSubstr("format version 2; this build reads version 1"));
  EXPECT_TRUE(absl::IsUnimplemented(OpenImageFile(Path("a")).status()));
  EXPECT_TRUE(absl::IsNotFound(OpenImageFile(Path("none")).status()));
  EXPECT_THAT(OpenImageFile(directory_.string()).status().message(),
              HasSubstr("is not a regular file"));
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  EXPECT_THAT(OpenImageFile(Path("pipe")).status().message(),
              HasSubstr("is not a regular file"));
}

TEST_F(ImageFileTest, HeadersThatLieAreRefused) {
  ImageHeader good = HeaderFor("", 0);
  const auto message = [&](auto change) {
    ImageHeader header = good;
    change(header);
    Spit(Path("a"), EncodeHeader(header));
    return std::string(OpenImageFile(Path("a")).status().message());
  };
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max() - 100;
  EXPECT_THAT(message([&](ImageHeader& h) { h.manifest_offset = kHuge; }),
              HasSubstr("header: manifest_offset 18446744073709551515 is not"));
  EXPECT_THAT(message([&](ImageHeader& h) { h.manifest_bytes = kHuge; }),
              HasSubstr("manifest_bytes 18446744073709551515 exceeds"));
  EXPECT_THAT(message([&](ImageHeader& h) {
                h.manifest_bytes = kMaxManifestBytes;
                h.data_offset = PagesRoundedUp(128 + kMaxManifestBytes).bytes();
                h.file_bytes = h.data_offset;
              }),
              HasSubstr("has 128 bytes, and its header says"));
  EXPECT_THAT(message([&](ImageHeader& h) { h.data_offset = 8192; }),
              HasSubstr("data_offset 8192 is not 4096"));
  EXPECT_THAT(message([&](ImageHeader& h) { h.data_bytes = kHuge; }),
              HasSubstr("data_bytes 18446744073709551515 is not a multiple"));
  EXPECT_THAT(
      message([&](ImageHeader& h) { h.data_bytes = 4096; }),
      HasSubstr("file_bytes 4096 is not data_offset 4096 + data_bytes"));
}

TEST_F(ImageFileTest, ManifestsThatLieAreRefused) {
  const auto message = [&](const ImageManifest& manifest) {
    Spit(Path("a"), Forge(manifest));
    return std::string(ReadImageFileInfo(Path("a")).status().message());
  };
  ASSERT_EQ(message(Delta({{0, 256}, {256, 1}, {258, 2}})), "");
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
  EXPECT_THAT(
      message(Delta({{0, 2}, {1, 1}})),
      HasSubstr("extent 1 begins at page 1, and extent 0 (pages [0, 2)) "
                "ends at page 2; they must ascend and not overlap"));
  EXPECT_THAT(message(Delta({{5, 1}, {0, 1}})), HasSubstr("must ascend"));
  EXPECT_THAT(message(Delta({{0, 0}})), HasSubstr("has no pages"));
  EXPECT_THAT(message(Delta({{kHuge, 1}})),
              HasSubstr("extent 0: page 18446744073709551615 + 1 pages exceeds "
                        "the memory's 300 pages"));
  EXPECT_THAT(message(Delta({{1, kHuge}})), HasSubstr("exceeds"));
  EXPECT_THAT(message(Delta({{300, 1}})), HasSubstr("exceeds"));
  EXPECT_THAT(message(Delta({{255, 2}})),
              HasSubstr("crosses a multiple of 256 pages"));
  EXPECT_THAT(message(Delta({{1, 1}, {2, 1}})), HasSubstr("touch"));
  const auto changed = [&](auto change) {
    ImageManifest manifest = Delta({{3, 2}});
    change(manifest);
    return message(manifest);
  };
  using M = ImageManifest;
  EXPECT_THAT(changed([](M& m) { m.set_format_version(3); }),
              HasSubstr("format_version 3 is not the header's 1"));
  EXPECT_THAT(changed([](M& m) { m.set_page_bytes(65536); }),
              HasSubstr("page_bytes 65536 is not 4096"));
  EXPECT_THAT(changed([](M& m) { m.set_size_bytes(kHuge - 5); }),
              HasSubstr("size_bytes 18446744073709551610, rounded up"));
  EXPECT_THAT(changed([](M& m) { m.set_name(std::string(5000, 'x')); }),
              HasSubstr("name has 5000 bytes; the limit is 4096"));
  EXPECT_THAT(changed([](M& m) { m.add_extent_pages(1); }),
              HasSubstr("1 of extent_first_page and 2 of extent_pages"));
  EXPECT_THAT(changed([](M& m) { m.set_extent_sha256("short"); }),
              HasSubstr("extent_sha256 has 5 bytes; 1 extents need 32 each"));
  EXPECT_THAT(changed([](M& m) { m.add_page_xxh3(7); }),
              HasSubstr("page_xxh3 has 1 checksums; it must have one for each "
                        "of the 2 stored pages, or none"));
  EXPECT_THAT(changed([](M& m) { m.clear_content_sha256(); }),
              HasSubstr("content_sha256 is missing"));
  EXPECT_THAT(changed([](M& m) { m.set_content_sha256("x"); }),
              HasSubstr("content_sha256 has 1 bytes; it must have 32"));
  EXPECT_THAT(
      changed([](M& m) { m.set_parent_content_sha256(m.content_sha256()); }),
      HasSubstr("an image is not its own parent"));
  EXPECT_THAT(changed([](M& m) { m.clear_parent_content_sha256(); }),
              HasSubstr("does not follow from size_bytes and the extents"));
  EXPECT_THAT(changed([](M& m) {
                m.add_zeroed_first_page(4);
                m.add_zeroed_pages(9);
              }),
              HasSubstr("zeroed 0 (pages [4, 13)) overlaps extent 0"));
  EXPECT_THAT(changed([](M& m) {
                m.clear_parent_content_sha256();
                m.add_zeroed_first_page(9);
                m.add_zeroed_pages(9);
              }),
              HasSubstr("only a delta has zeroed pages"));
  EXPECT_THAT(changed([](M& m) { m.set_working_set_read("1234567"); }),
              HasSubstr("working_set_read has 7 bytes; it must be a multiple"));
  EXPECT_THAT(changed([](M& m) {
                m.set_working_set_written(std::string((32 << 20) + 8, '\1'));
              }),
              HasSubstr("working_set_written has 33554440 bytes"));
}

TEST_F(ImageFileTest, AMillionEntriesAreReadAndNoMore) {
  ImageManifest manifest = Delta({});
  manifest.set_size_bytes(2 * (kMaxImageExtents + 1) * kPageBytes);
  for (uint64_t i = 0; i < kMaxImageExtents; ++i) {
    manifest.add_extent_first_page(2 * i);
    manifest.add_extent_pages(1);
  }
  manifest.set_extent_sha256(std::string(kMaxImageExtents * 32, 'e'));
  const auto decode = [](const ImageManifest& forged) {
    const std::string bytes = forged.SerializeAsString();
    return DecodeManifest(HeaderFor(bytes, forged.size_bytes()),
                          std::as_bytes(std::span(bytes.data(), bytes.size())));
  };
  const absl::StatusOr<ImageFileInfo> info = decode(manifest);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->stored_pages, kMaxImageExtents);
  manifest.add_extent_first_page(2 * kMaxImageExtents);
  manifest.add_extent_pages(1);
  EXPECT_TRUE(absl::IsResourceExhausted(decode(manifest).status()))
      << decode(manifest).status();
}

class DeltaTest : public ImageFileTest {
 protected:
  DeltaTest() {
    EXPECT_TRUE(WriteImageFile(*base_, Path("base")).ok());
    EXPECT_TRUE(
        WriteImageFile(*changed_, Path("delta"), {.parent = base_}).ok());
  }

  // By the names of the files here.
  std::function<absl::StatusOr<std::string>(const Digest&)> Finder() {
    return [this](const Digest& wanted) -> absl::StatusOr<std::string> {
      for (const std::string& name : Listing()) {
        const absl::StatusOr<ImageFileInfo> info =
            ReadImageFileInfo(Path(name));
        if (info.ok() && info->content == wanted) return Path(name);
      }
      return absl::NotFoundError("no such file here");
    };
  }

  const ImageRef base_ =
      MakeImage(300, {{0, 1}, {1, 2}, {2, 3}, {255, 4}, {256, 5}}, "base");
  // 1 changed, 2 zero, 256 and what follows kept and added, and larger.
  const ImageRef changed_ = MakeImage(
      400, {{0, 1}, {1, 9}, {255, 4}, {256, 5}, {257, 6}, {399, 7}}, "changed");
};

TEST_F(DeltaTest, HasOnlyWhatDiffersAndOpensAsTheWhole) {
  const ImageFileInfo info = ReadImageFileInfo(Path("delta")).value();
  EXPECT_EQ(info.stored_pages, 3);
  ASSERT_EQ(info.zeroed.size(), 1);
  EXPECT_EQ(info.zeroed[0].first, PageIndex(2));
  EXPECT_EQ(info.parent, ContentDigest(*base_));
  EXPECT_EQ(info.content, ContentDigest(*changed_));
  using Backing = OpenImageOptions::Backing;
  using Verify = OpenImageOptions::Verify;
  for (const Backing backing : {Backing::kFileBacked, Backing::kCopied}) {
    for (const Verify verify : {Verify::kManifest, Verify::kAll}) {
      ExpectSame(*changed_, **OpenImageFile(Path("delta"), {.backing = backing,
                                                            .verify = verify,
                                                            .parent = base_}));
      ExpectSame(*changed_,
                 **OpenImageFile(Path("delta"), {.backing = backing,
                                                 .verify = verify,
                                                 .find_parent = Finder()}));
    }
  }
  EXPECT_TRUE(VerifyImageFile(Path("delta")).ok());
  EXPECT_TRUE(VerifyImageFile(Path("delta"), {.parent = base_}).ok());
}

TEST_F(DeltaTest, ChainsAreFollowedAndMerged) {
  const ImageRef third = MakeImage(400, {{2, 11}, {399, 7}}, "third");
  ASSERT_TRUE(WriteImageFile(*third, Path("third"),
                             {.provenance = {.tool = "t"}, .parent = changed_})
                  .ok());
  ExpectSame(*third, **OpenImageFile(Path("third"), {.find_parent = Finder()}));
  const absl::StatusOr<ImageFileInfo> merged =
      MergeImageFile(Path("third"), Path("merged"), {.find_parent = Finder()});
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(merged->content, ContentDigest(*third));
  EXPECT_FALSE(merged->parent.has_value());
  EXPECT_EQ(merged->provenance.tool, "t");
  ExpectSame(*third, **OpenImageFile(Path("merged")));
}

TEST_F(DeltaTest, WithoutItsParentItIsNoImage) {
  const std::string wanted = ContentDigest(*base_).ToHex();
  absl::Status status = OpenImageFile(Path("delta")).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr(wanted));
  EXPECT_THAT(status.message(), HasSubstr("no parent was given"));
  status = OpenImageFile(Path("delta"), {.parent = changed_}).status();
  EXPECT_THAT(status.message(), HasSubstr("image 'changed', is"));
  std::filesystem::remove(Path("base"));
  status = OpenImageFile(Path("delta"), {.find_parent = Finder()}).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("no such file here"));
  status = OpenImageFile(
               Path("delta"),
               {.find_parent = [&](const Digest&) { return Path("delta"); }})
               .status();
  EXPECT_THAT(status.message(),
              HasSubstr(absl::StrCat("its parent is ", wanted, ", and '")));
}

TEST_F(DeltaTest, LoopsAndLongChainsEnd) {
  // Files that nobody has verified may say of themselves what they like.
  const auto forge = [&](const std::string& name, char content, char parent) {
    ImageManifest manifest = Delta({});
    manifest.set_content_sha256(std::string(32, content));
    manifest.set_parent_content_sha256(std::string(32, parent));
    Spit(Path(name), Forge(manifest));
  };
  forge("a", 'A', 'B');
  forge("b", 'B', 'C');
  forge("c", 'C', 'A');
  EXPECT_THAT(
      OpenImageFile(Path("a"), {.find_parent = Finder()}).status().message(),
      HasSubstr("a loop of 3 files"));
  int asked = 0;
  const absl::Status status =
      OpenImageFile(Path("a"), {.find_parent = [&](const Digest& wanted)
                                    -> absl::StatusOr<std::string> {
                      const std::string name = absl::StrCat("long", ++asked);
                      forge(name, static_cast<char>(wanted.bytes[0]),
                            static_cast<char>(wanted.bytes[0] + 1));
                      return Path(name);
                    }})
          .status();
  EXPECT_THAT(status.message(), HasSubstr("a chain of more than 16 files"));
  EXPECT_EQ(asked, kMaxImageChain - 1);
}

TEST_F(DeltaTest, OneThatLiesAboutTheWholeIsFound) {
  ImageManifest manifest = Delta({});
  manifest.set_size_bytes(300 * kPageBytes);
  manifest.set_parent_content_sha256(Raw(ContentDigest(*base_)));
  Spit(Path("liar"), Forge(manifest));
  EXPECT_TRUE(OpenImageFile(Path("liar"), {.parent = base_}).ok());
  EXPECT_THAT(
      VerifyImageFile(Path("liar"), {.parent = base_}).status().message(),
      HasSubstr("that the manifest says (content_sha256)"));
  manifest.set_size_bytes(200 * kPageBytes);
  Spit(Path("small"), Forge(manifest));
  EXPECT_THAT(
      OpenImageFile(Path("small"), {.parent = base_}).status().message(),
      HasSubstr("an image does not shrink"));
}

TEST_F(DeltaTest, WhatCannotBeADeltaIsNotWritten) {
  EXPECT_THAT(WriteImageFile(*base_, Path("x"), {.parent = changed_})
                  .status()
                  .message(),
              HasSubstr("is less than its parent's"));
  EXPECT_THAT(
      WriteImageFile(*base_, Path("x"), {.parent = base_}).status().message(),
      HasSubstr("is its own parent"));
  EXPECT_FALSE(std::filesystem::exists(Path("x")));
}

class PackTest : public ImageFileTest {
 protected:
  PackTest() {
    EXPECT_TRUE(WriteImageFile(*image_, Path("a")).ok());
    EXPECT_TRUE(PackImageFile(Path("a"), Path("z")).ok());
  }
  // What is in the packed file.
  std::string Inner() const {
    const std::string packed = Slurp(Path("z"));
    std::string inner(1 << 20, '\0');
    const size_t bytes = ZSTD_decompress(inner.data(), inner.size(),
                                         packed.data(), packed.size());
    EXPECT_EQ(ZSTD_isError(bytes), 0);
    inner.resize(bytes);
    return inner;
  }
  static std::string Compress(const std::string& inner) {
    std::string packed(ZSTD_compressBound(inner.size()), '\0');
    packed.resize(ZSTD_compress(packed.data(), packed.size(), inner.data(),
                                inner.size(), 1));
    return packed;
  }
  absl::Status Unpack(const std::string& packed,
                      const UnpackOptions& options = {}) {
    Spit(Path("z"), packed);
    const absl::Status status =
        UnpackImageFile(Path("z"), Path("b"), options).status();
    EXPECT_EQ(std::filesystem::exists(Path("b")), status.ok()) << status;
    return status;
  }

  const ImageRef image_ = MakeImage(1000, {{0, 1}, {256, 2}, {999, 3}});
};

TEST_F(PackTest, UnpacksToTheSameFile) {
  EXPECT_LT(std::filesystem::file_size(Path("z")), 4 * kPageBytes);
  ASSERT_TRUE(UnpackImageFile(Path("z"), Path("b")).ok());
  EXPECT_EQ(Slurp(Path("a")), Slurp(Path("b")));
  EXPECT_TRUE(Unpack(Compress(Inner())).ok()) << "of any zstd";
  EXPECT_THAT(PackImageFile(Path("a"), Path("y"), {.level = 20}).message(),
              HasSubstr("level 20 is not 1 to 19"));
}

TEST_F(PackTest, ADamagedOneGivesNoFile) {
  const std::string packed = Slurp(Path("z"));
  const std::string inner = Inner();
  for (size_t bytes = 0; bytes < packed.size(); bytes += 101) {
    const absl::Status status = Unpack(packed.substr(0, bytes));
    ASSERT_FALSE(status.ok());
    ASSERT_THAT(status.message(), HasSubstr(Path("z")));
  }
  for (size_t byte = 0; byte < packed.size(); byte += 97) {
    std::string flipped = packed;
    flipped[byte] = static_cast<char>(flipped[byte] ^ 0x10);
    // Where zstd does not say so, a digest does.
    ASSERT_FALSE(Unpack(flipped).ok()) << byte;
  }
  EXPECT_THAT(Unpack(packed + "x").message(), HasSubstr("something was added"));
  EXPECT_THAT(Unpack(Compress(inner + "x")).message(),
              HasSubstr("something was added"));
  EXPECT_THAT(Unpack(Compress(inner.substr(0, inner.size() - 1))).message(),
              HasSubstr("ends in extent 2"));
  std::string changed = inner;
  changed.back() ^= 1;
  EXPECT_THAT(Unpack(Compress(changed)).message(),
              HasSubstr("extent 2 (pages [999, 1000)) does not have"));
  EXPECT_THAT(Unpack("plain").message(), HasSubstr("(zstd)"));
}

TEST_F(PackTest, ABombIsRefusedBeforeItGoesOff) {
  const std::string inner = Inner();
  const absl::Status status =
      Unpack(Slurp(Path("z")), {.max_stored_bytes = 2 * kPageBytes});
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(
      status.message(),
      HasSubstr("would unpack to 12288 bytes of stored pages, more than "
                "the limit of 8192"));
  // Zeroes for ever, where a header should be.
  EXPECT_THAT(Unpack(Compress(std::string(50 << 20, '\0'))).message(),
              HasSubstr("not with the"));
  // A manifest that is promised and does not come.
  ImageHeader header = HeaderFor("", 0);
  header.manifest_bytes = kMaxManifestBytes;
  header.data_offset = PagesRoundedUp(128 + kMaxManifestBytes).bytes();
  header.file_bytes = header.data_offset;
  EXPECT_THAT(Unpack(Compress(EncodeHeader(header))).message(),
              HasSubstr("ends in the manifest"));
  // A window that would need a gigabyte.
  ZSTD_CCtx* const stream = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(stream, ZSTD_c_windowLog, 30);
  ZSTD_CCtx_setParameter(stream, ZSTD_c_contentSizeFlag, 0);
  std::string wide(1 << 16, '\0');
  ZSTD_inBuffer in = {inner.data(), inner.size(), 0};
  ZSTD_outBuffer out = {wide.data(), wide.size(), 0};
  ZSTD_compressStream2(stream, &out, &in, ZSTD_e_continue);
  ZSTD_compressStream2(stream, &out, &in, ZSTD_e_end);
  ZSTD_freeCCtx(stream);
  wide.resize(out.pos);
  EXPECT_THAT(Unpack(wide).message(), HasSubstr("too much memory"));
}

}  // namespace
}  // namespace firsttouch
