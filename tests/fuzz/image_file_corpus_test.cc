// The fuzzer's target without the fuzzer: inputs that it found, and a few
// thousand changes of good ones, the same in each run.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "tests/fuzz/image_file_target.h"

namespace firsttouch {
namespace {

void Read(std::string_view input) {
  ReadAsImageFile(
      {reinterpret_cast<const uint8_t*>(input.data()), input.size()});
}

TEST(ImageFileCorpusTest, SeedsAreRead) {
  for (const std::string& seed : ImageFileSeeds()) Read(seed);
}

TEST(ImageFileCorpusTest, WhatTheFuzzerFoundIsRead) {
  // The test runs where its files are.
  const std::filesystem::path corpus = "tests/fuzz/corpus";
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(corpus)) {
    std::ifstream in(entry.path(), std::ios::binary);
    const std::string input = {std::istreambuf_iterator<char>(in), {}};
    SCOPED_TRACE(entry.path());
    Read(input);
    ++files;
  }
  EXPECT_GT(files, 10);
}

TEST(ImageFileCorpusTest, ChangedSeedsAreReadOrRefused) {
  std::mt19937 random(1);
  const std::vector<std::string> seeds = ImageFileSeeds();
  for (int i = 0; i < 4000; ++i) {
    std::string input = seeds[i % seeds.size()];
    for (uint32_t changes = 1 + random() % 4; changes > 0; --changes) {
      // Mostly where header and manifest are.
      const size_t at =
          random() % (random() % 4 == 0 ? input.size()
                                        : std::min<size_t>(input.size(), 400));
      switch (random() % 4) {
        case 0:
          input[at] = static_cast<char>(input[at] ^ (1 << (random() % 8)));
          break;
        case 1:
          input[at] = static_cast<char>(random());
          break;
        case 2:
          input.erase(at, random() % 9);
          break;
        default:
          input.insert(at, random() % 9, static_cast<char>(random()));
      }
      if (input.empty()) input = "\1";
    }
    Read(input);
  }
}

}  // namespace
}  // namespace firsttouch
