// That docs/image-format.md is enough to write an image file: write_image.py
// knows no more, and what it writes is opened, and is what we write ourselves.

#include "firsttouch/init/image_format.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// Stored pages at both sides of a block's border, a gap, and a last page that
// the memory ends in.
std::vector<std::byte> SomeMemory(uint64_t size_bytes) {
  std::vector<std::byte> memory(size_bytes);
  std::mt19937 random(1);
  for (const uint64_t page :
       {0, 1, 254, 255, 256, 257, 400, 599, 16383, 16384, 16896}) {
    for (uint64_t at = page * kPageBytes;
         at < std::min((page + 1) * kPageBytes, size_bytes); ++at) {
      memory[at] = std::byte(random());
    }
  }
  return memory;
}

class ImageFormatTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(ImageFormatTest, WhatAnotherProgramWritesIsOpened) {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) /
      absl::StrCat("image_format", GetParam());
  std::filesystem::create_directories(folder);
  const std::vector<std::byte> memory = SomeMemory(GetParam());
  std::ofstream(folder / "raw", std::ios::binary)
      .write(reinterpret_cast<const char*>(memory.data()),
             static_cast<std::streamsize>(memory.size()));
  const std::string theirs = (folder / "theirs.ftimg").string();
  const std::string command =
      absl::StrCat("python3 tests/image_format/write_image.py '",
                   (folder / "raw").string(), "' '", theirs, "' memory");
  ASSERT_EQ(std::system(command.c_str()), 0) << command;

  const absl::StatusOr<ImageFileInfo> verified = VerifyImageFile(theirs);
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_EQ(verified->provenance.tool, "write_image.py");
  const absl::StatusOr<ImageRef> image = OpenImageFile(theirs);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->name(), "memory");
  std::vector<std::byte> read(memory.size());
  ASSERT_TRUE((*image)->Read(0, read).ok());
  EXPECT_EQ(read, memory);

  const std::string ours = (folder / "ours.ftimg").string();
  const absl::StatusOr<ImageRef> built =
      ImageFromBytes({.name = "memory", .size_bytes = memory.size()}, memory);
  ASSERT_TRUE(built.ok()) << built.status();
  const absl::StatusOr<ImageFileInfo> written =
      WriteImageFile(**built, ours, {.provenance = {.tool = "write_image.py"}});
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->content, verified->content);
  EXPECT_EQ(written->extents, verified->extents);
  const auto slurp = [](const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  // Protobuf leaves out what is 0 or empty; the script does not. It writes no
  // checksums, which may be absent.
  if (!memory.empty()) {
    ImageFileInfo bare = *written;
    bare.page_checksums.clear();
    const std::string manifest = EncodeManifest(bare);
    const ImageHeader header = HeaderFor(manifest, bare.size_bytes);
    const std::string head = EncodeHeader(header) + manifest;
    const std::string their_bytes = slurp(theirs);
    EXPECT_TRUE(their_bytes.substr(0, head.size()) == head);
    EXPECT_TRUE(their_bytes.substr(header.data_offset) ==
                slurp(ours).substr(written->data_offset));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ImageFormatTest,
                         ::testing::Values(600 * kPageBytes,
                                           600 * kPageBytes - 1000,
                                           // Blocks of twice the pages.
                                           17000 * kPageBytes, 0));

}  // namespace
}  // namespace firsttouch
