#include "firsttouch/init/image_file.h"

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
#include <iterator>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/init/fake_memfd.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_format.h"
#include "firsttouch/init/image_manifest.pb.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;

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

TEST_F(ImageFileTest, WhatIsWrittenIsOpenedAgain) {
  const ImageRef image =
      MakeImage(1000, {{0, 1}, {1, 2}, {255, 3}, {256, 4}, {999, 5}});
  const absl::StatusOr<ImageFileInfo> written =
      WriteImageFile(*image, Path("a.ftimg"));
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->stored_pages, 5);
  EXPECT_EQ(written->extents.size(), 4);
  const absl::StatusOr<ImageRef> opened = OpenImageFile(Path("a.ftimg"));
  ASSERT_TRUE(opened.ok()) << opened.status();
  ExpectSame(*image, **opened);
  EXPECT_TRUE((*opened)->is_mapped());
  EXPECT_EQ((*opened)->name(), "memory");
  EXPECT_EQ(ContentDigest(*image), written->content);
  EXPECT_EQ((*opened)->known_digest(), written->content);
  EXPECT_TRUE(VerifyImageFile(Path("a.ftimg")).ok());
  ASSERT_TRUE(PackImageFile(Path("a.ftimg"), Path("a.zst")).ok());
  ASSERT_TRUE(UnpackImageFile(Path("a.zst"), Path("b.ftimg")).ok());
  EXPECT_EQ(Slurp(Path("a.ftimg")), Slurp(Path("b.ftimg")));
}

}  // namespace
}  // namespace firsttouch
