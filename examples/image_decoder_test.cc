// Decodes pictures that are right, damaged and hostile: the decoders by
// themselves, and image_decoder as a program.
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/examples/picture.h"
#include "firsttouch/examples/picture_forks.h"
#include "firsttouch/examples/picture_sandboxes.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include "stb_image_write.h"

namespace firsttouch::examples {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kProgram[] = "examples/image_decoder";

using Bytes = std::vector<std::byte>;

struct Pixels {
  uint32_t width = 0;
  uint32_t height = 0;
  Bytes rgba;
  bool operator==(const Pixels&) const = default;
};

// A picture in which no two neighbours are alike.
Pixels Made(uint32_t width, uint32_t height) {
  Pixels made = {.width = width, .height = height};
  for (uint32_t i = 0; i < width * height; ++i) {
    for (const uint32_t value : {i, i / width * 3, i * 7 / 5, 255 - i % 16}) {
      made.rgba.push_back(static_cast<std::byte>(value));
    }
  }
  return made;
}

void Append(void* bytes, void* data, int count) {
  const auto* const first = static_cast<const std::byte*>(data);
  static_cast<Bytes*>(bytes)->insert(static_cast<Bytes*>(bytes)->end(), first,
                                     first + count);
}

Bytes Png(const Pixels& pixels) {
  Bytes file;
  EXPECT_NE(stbi_write_png_to_func(
                Append, &file, static_cast<int>(pixels.width),
                static_cast<int>(pixels.height), 4, pixels.rgba.data(), 0),
            0);
  return file;
}

Bytes Jpeg(const Pixels& pixels) {
  Bytes file;
  EXPECT_NE(stbi_write_jpg_to_func(
                Append, &file, static_cast<int>(pixels.width),
                static_cast<int>(pixels.height), 4, pixels.rgba.data(), 90),
            0);
  return file;
}

// A file of the format that picture_guest.c has its bug in.
Bytes Planted(uint32_t address, uint32_t value) {
  Bytes file(16);
  memcpy(file.data(), "PLANTED!", 8);
  memcpy(file.data() + 8, &address, 4);
  memcpy(file.data() + 12, &value, 4);
  return file;
}

// Puts other dimensions into a file of Png() or Jpeg().
Bytes WithDimensions(Bytes file, uint32_t width, uint32_t height) {
  const auto put = [&](size_t at, uint32_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) {
      file[at + static_cast<size_t>(i)] =
          static_cast<std::byte>(value >> (8 * (bytes - 1 - i)));
    }
  };
  if (file[0] == std::byte{0x89}) {
    put(16, width, 4);
    put(20, height, 4);
    return file;
  }
  // Behind the marker of the frame: its length, and the bits of a sample.
  const std::byte frame[] = {std::byte{0xff}, std::byte{0xc0}};
  const auto at =
      static_cast<size_t>(std::search(file.begin(), file.end(),
                                      std::begin(frame), std::end(frame)) -
                          file.begin());
  put(at + 5, height, 2);
  put(at + 7, width, 2);
  return file;
}

template <typename Decode>
absl::StatusOr<Pixels> Copied(Decode decode, const Bytes& file) {
  Pixels pixels;
  const absl::Status status = decode(file, [&](const PictureView& picture) {
    pixels = {.width = picture.width,
              .height = picture.height,
              .rgba = Bytes(picture.rgba.begin(), picture.rgba.end())};
  });
  if (!status.ok()) return status;
  return pixels;
}

class ImageDecoderTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<PictureSandboxes>> made =
        PictureSandboxes::Create(4);
    ASSERT_TRUE(made.ok()) << made.status();
    sandboxes_ = *std::move(made);
  }

  absl::StatusOr<Pixels> Sandboxed(const Bytes& file) const {
    return Copied(
        [&](PictureFile bytes, UsePicture use) {
          return sandboxes_->Decode(bytes, use);
        },
        file);
  }

  std::unique_ptr<PictureSandboxes> sandboxes_;
};

TEST_F(ImageDecoderTest, PixelsAreThoseOfTheNativeDecoderInEachThread) {
  std::vector<Bytes> files;
  std::vector<Pixels> wanted;
  for (const auto& [width, height] :
       {std::pair{1u, 1u}, {300u, 200u}, {17u, 900u}}) {
    const Pixels made = Made(width, height);
    files.push_back(Png(made));
    wanted.push_back(made);
    files.push_back(Jpeg(made));
    const absl::StatusOr<Pixels> native = Copied(&DecodeHere, files.back());
    ASSERT_TRUE(native.ok()) << native.status();
    EXPECT_EQ(native->width, width);
    wanted.push_back(*native);
  }
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < files.size(); ++i) {
        const absl::StatusOr<Pixels> got = Sandboxed(files[i]);
        if (got.ok() && *got == wanted[i]) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 4 * 6);
  // That of the instance which was snapshotted is one more.
  EXPECT_EQ(sandboxes_->memories_recycled(), 4u * 6 + 1);
}

TEST_F(ImageDecoderTest, ADamagedFileIsAnErrorOrAPictureAsInAFork) {
  const Pixels good = Made(64, 48);
  const Bytes png = Png(good);
  std::vector<Bytes> damaged = {Bytes(), Bytes(1), Bytes(5000)};
  std::mt19937 random(1);
  for (const Bytes& file : {png, Jpeg(good)}) {
    for (int i = 0; i < 20; ++i) {
      damaged.emplace_back(
          file.begin(),
          file.begin() + static_cast<std::ptrdiff_t>(random() % file.size()));
    }
    for (int i = 0; i < 60; ++i) {
      Bytes flipped = file;
      for (uint32_t flips = 1 + random() % 4; flips > 0; --flips) {
        flipped[random() % file.size()] ^=
            static_cast<std::byte>(1 << random() % 8);
      }
      damaged.push_back(flipped);
    }
  }
  int refused = 0;
  for (const Bytes& file : damaged) {
    const absl::StatusOr<Pixels> forked = Copied(&DecodeInFork, file);
    const absl::StatusOr<Pixels> got = Sandboxed(file);
    ASSERT_TRUE(got.ok() || IsErrorOfFile(got.status())) << got.status();
    EXPECT_EQ(got.ok(), forked.ok()) << got.status() << forked.status();
    if (got.ok() && forked.ok()) {
      // The SSE2 of the native decoder saturates where what a damaged JPEG says
      // is too much for 16 bits; the guest's arithmetic has 32.
      const bool jpeg = file[0] == std::byte{0xff};
      EXPECT_TRUE(*got == *forked || (jpeg && got->width == forked->width &&
                                      got->height == forked->height));
    }
    if (!got.ok()) ++refused;
    const absl::StatusOr<Pixels> next = Sandboxed(png);
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_TRUE(*next == good);
  }
  EXPECT_GT(refused, 40);
}

TEST_F(ImageDecoderTest, TextsSayWhyAFileIsRefused) {
  EXPECT_EQ(
      Sandboxed(Bytes()).status(),
      absl::InvalidArgumentError("the decoder refuses it: unknown image type"));
  const Bytes png = Png(Made(20, 20));
  const Bytes half(png.begin(), png.begin() + 60);
  EXPECT_EQ(Sandboxed(half).status(), Copied(&DecodeInFork, half).status());
  const Bytes large(kMaxFileBytes + 1);
  for (const absl::Status& status :
       {Sandboxed(large).status(), Copied(&DecodeHere, large).status(),
        Copied(&DecodeInFork, large).status()}) {
    EXPECT_EQ(status, absl::InvalidArgumentError(
                          "the file has more than 16777216 bytes, the most "
                          "that is decoded"));
  }
}

TEST_F(ImageDecoderTest, DimensionsAreBoundedByTheMemory) {
  for (const Bytes& file : {Png(Made(20, 20)), Jpeg(Made(20, 20))}) {
    // Some 1 GB, of which not one pixel is there.
    const Bytes huge = WithDimensions(file, 16000, 16000);
    EXPECT_THAT(std::string(Sandboxed(huge).status().message()),
                AnyOf("the decoder refuses it: outofmem",
                      "the decoder refuses it: no reason given"));
    EXPECT_EQ(Copied(&DecodeHere, huge).status(),
              absl::InvalidArgumentError(
                  "the picture has 16000 x 16000 pixels, and 4194304 are "
                  "decoded at most"));
  }
  // What fits the memory and not the host's bound.
  const Pixels wide = Made(2100, 2000);
  EXPECT_EQ(Sandboxed(Jpeg(wide)).status(),
            absl::InvalidArgumentError(
                "the picture has 2100 x 2000 pixels, and 4194304 are decoded "
                "at most"));
}

TEST_F(ImageDecoderTest, ABugOfTheDecoderEndsWithItsPicture) {
  const Pixels good = Made(30, 20);
  const Bytes png = Png(good);
  const absl::Status far = Sandboxed(Planted(0xfffffff0, 1)).status();
  EXPECT_TRUE(absl::IsAborted(far)) << far;
  EXPECT_THAT(std::string(far.message()),
              HasSubstr("out of bounds: write at offset 4294967280 of memory "
                        "0"));
  // What the file has for it is only its own: tables, the stack, the heap.
  for (uint32_t address = 0; address < 12000; address += 20) {
    const absl::Status own = Sandboxed(Planted(address, 0xdeadbeef)).status();
    EXPECT_TRUE(IsErrorOfFile(own)) << own;
    const absl::StatusOr<Pixels> next = Sandboxed(png);
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_TRUE(*next == good) << "after a write at " << address;
  }
}

TEST_F(ImageDecoderTest, NoFreeSandboxIsNoFaultOfAFile) {
  const absl::StatusOr<std::unique_ptr<PictureSandboxes>> one =
      PictureSandboxes::Create(1);
  ASSERT_TRUE(one.ok()) << one.status();
  const Bytes png = Png(Made(2, 2));
  absl::Status inner;
  const absl::Status outer = (*one)->Decode(png, [&](const PictureView&) {
    inner = (*one)->Decode(png, [](const PictureView&) {});
  });
  EXPECT_TRUE(outer.ok()) << outer;
  EXPECT_TRUE(absl::IsResourceExhausted(inner)) << inner;
  EXPECT_FALSE(IsErrorOfFile(inner));
}

TEST(PictureForkTest, AProcessThatIsEndedIsAnErrorOfItsPicture) {
  const absl::Status ended = DecodeInFork(
      PictureFile(reinterpret_cast<const std::byte*>(uintptr_t{4096}), 100),
      [](const PictureView&) {});
  EXPECT_EQ(ended, absl::AbortedError("its process was ended by signal 11"));
}

// The program.

struct Result {
  int exit_code = -1;
  std::string output;
};

Result RunWith(const std::string& words) {
  Result result;
  FILE* const pipe =
      popen(absl::StrCat(kProgram, " ", words, " 2>&1").c_str(), "r");
  if (pipe == nullptr) return result;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
    result.output.append(buffer, n);
  }
  const int status = pclose(pipe);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

void Save(const std::string& path, const Bytes& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

TEST(ImageDecoderProgramTest, AHostileFileIsALineOfItsOwnInTheTable) {
  const std::string folder = testing::TempDir() + "/pictures";
  std::filesystem::create_directories(folder + "/a folder");
  const Bytes png = Png(Made(120, 80));
  Save(folder + "/a.png", png);
  Save(folder + "/b.jpg", Jpeg(Made(200, 100)));
  Save(folder + "/c.jpg", Jpeg(Made(90, 90)));
  Save(folder + "/half.png", Bytes(png.begin(), png.begin() + 100));
  Save(folder + "/hostile", Planted(0x80000000, 1));
  const Result result = RunWith("--rounds 3 --sandboxes 2 " + folder);
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_THAT(
      result.output,
      AllOf(HasSubstr("5 files, 3 rounds, 2 threads, 2 sandboxes, of which 15 "
                      "times one was recycled.\n"),
            testing::ContainsRegex("\nunsandboxed +9 +6 +0 +0 "),
            testing::ContainsRegex("\nsandboxed +9 +6 +0 +0 "),
            testing::ContainsRegex("\nfork per picture +9 +6 +0 +0 "),
            testing::ContainsRegex("\nhostile +sandboxed +out of bounds: write "
                                   "at offset 2147483648 of memory 0"),
            testing::ContainsRegex("\nhostile +fork per picture +the decoder "
                                   "refuses it: unknown image type"),
            testing::ContainsRegex("\nhalf.png +sandboxed +the decoder "
                                   "refuses it: ")));
}

TEST(ImageDecoderProgramTest, WordsThatAreNotRight) {
  const std::string empty = testing::TempDir() + "/empty";
  std::filesystem::create_directories(empty);
  struct Case {
    std::string words;
    int exit_code;
    std::string error;
  };
  for (const Case& c : {
           Case{"", 64, "FOLDER"},
           Case{"--threads 5 .", 64,
                "image_decoder: --threads 5 is more than --sandboxes 4: each "
                "thread needs one\n"},
           Case{"--threads 0 .", 64, "--threads"},
           Case{empty, 4,
                "image_decoder: the folder " + empty + " has no files\n"},
           Case{empty + "/none", 4,
                "image_decoder: reading the folder " + empty +
                    "/none: No such file or directory\n"},
       }) {
    const Result result = RunWith(c.words);
    EXPECT_EQ(result.exit_code, c.exit_code) << c.words;
    EXPECT_THAT(result.output, HasSubstr(c.error)) << c.words;
  }
}

}  // namespace
}  // namespace firsttouch::examples
