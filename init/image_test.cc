#include "firsttouch/init/image.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

// Linux 6.3; not in Debian 12's headers.
constexpr int kSealExec = 0x0020;

// Three pages and a bit: page 0 stored, 1 a hole, 2 stored, 3 (cut) stored.
constexpr uint64_t kSize = 3 * kPageBytes + 100;

std::vector<std::byte> Contents() {
  std::vector<std::byte> bytes(kSize);
  for (uint64_t i = 0; i < kSize; ++i) {
    if (i / kPageBytes != 1) bytes[i] = std::byte(i % 251 + 1);
  }
  return bytes;
}

ImageRef MakeImage(const std::string& name = "three pages") {
  absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = name, .size_bytes = kSize}, Contents());
  EXPECT_TRUE(image.ok()) << image.status();
  return image.ok() ? *image : nullptr;
}

uint64_t AllocatedPages(const Image& image) {
  struct stat status = {};
  EXPECT_EQ(fstat(image.memfd(), &status), 0);
  return static_cast<uint64_t>(status.st_blocks) * 512 / kPageBytes;
}

// The VmFlags line of the mapping that begins at `address`.
std::string VmFlags(const void* address) {
  std::ostringstream wanted;
  wanted << std::hex << reinterpret_cast<uintptr_t>(address) << "-";
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool here = false;
  while (std::getline(smaps, line)) {
    if (line.rfind(wanted.str(), 0) == 0) here = true;
    if (here && line.rfind("VmFlags:", 0) == 0) return line + " ";
  }
  return "";
}

TEST(ImageTest, SaysWhatItHolds) {
  const ImageRef image = MakeImage();
  ASSERT_NE(image, nullptr);
  EXPECT_EQ(image->name(), "three pages");
  EXPECT_EQ(image->size_bytes(), 12388u);
  EXPECT_EQ(image->pages(), PageCount(4));
  EXPECT_EQ(image->stored_pages(), 3u);
  EXPECT_EQ(image->stored_words()[0], 0b1101u);
  EXPECT_TRUE(image->IsStored(PageIndex(0)));
  EXPECT_FALSE(image->IsStored(PageIndex(1)));
  EXPECT_TRUE(image->IsStored(PageIndex(3)));
  EXPECT_FALSE(image->IsStored(PageIndex(4)));
  EXPECT_FALSE(image->IsStored(PageIndex(UINT64_MAX)));
  EXPECT_EQ(AllocatedPages(*image), 3u);

  struct stat status = {};
  ASSERT_EQ(fstat(image->memfd(), &status), 0);
  EXPECT_EQ(static_cast<uint64_t>(status.st_size), 4 * kPageBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(image->data()) % kPageBytes, 0u);
}

TEST(ImageTest, ReadingNeverAllocatesAPage) {
  const ImageRef image = MakeImage();
  const std::vector<std::byte> contents = Contents();
  std::vector<std::byte> bytes(kSize);
  ASSERT_EQ(image->Read(0, std::span(bytes)), absl::OkStatus());
  EXPECT_EQ(bytes, contents);
  for (uint64_t page = 0; page < 4; ++page) {
    const std::byte* const got = image->PageBytes(PageIndex(page));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(got) % kPageBytes, 0u);
    for (uint64_t i = 0; i < kPageBytes; ++i) {
      const uint64_t offset = page * kPageBytes + i;
      ASSERT_EQ(got[i], offset < kSize ? contents[offset] : std::byte{0})
          << offset;
    }
  }
  EXPECT_EQ(image->PageBytes(PageIndex(1)), image->PageBytes(PageIndex(99)));
  EXPECT_EQ(AllocatedPages(*image), 3u);
}

TEST(ImageTest, ReadsAnyRangeWithinTheSize) {
  const ImageRef image = MakeImage();
  const std::vector<std::byte> contents = Contents();
  for (uint64_t offset : {uint64_t{0}, uint64_t{1}, kPageBytes - 1, kPageBytes,
                          2 * kPageBytes - 1, kSize - 1, kSize}) {
    for (uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{2}, kPageBytes,
                            kPageBytes + 1, kSize - offset}) {
      if (length > kSize - offset) continue;
      std::vector<std::byte> bytes(length, std::byte{0xee});
      ASSERT_EQ(image->Read(offset, std::span(bytes)), absl::OkStatus());
      ASSERT_TRUE(
          std::equal(bytes.begin(), bytes.end(), contents.begin() + offset))
          << offset << " + " << length;
    }
  }
}

TEST(ImageTest, AReadPastTheSizeIsRefused) {
  const ImageRef image = MakeImage();
  std::vector<std::byte> bytes(2, std::byte{0xee});
  EXPECT_EQ(image->Read(12387, std::span(bytes)),
            absl::OutOfRangeError("image 'three pages': read of offset 12387 + "
                                  "2 bytes exceeds size_bytes 12388"));
  EXPECT_EQ(image->Read(UINT64_MAX, std::span(bytes)).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(bytes[0], std::byte{0xee});
}

TEST(ImageTest, NobodyCanChangeOrResizeIt) {
  const ImageRef image = MakeImage();
  const int fd = image->memfd();
  const int seals = fcntl(fd, F_GET_SEALS);
  EXPECT_EQ(seals & ~kSealExec,
            F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);

  const auto expect_eperm = [](int64_t result, const char* what) {
    EXPECT_EQ(result, -1) << what;
    EXPECT_EQ(errno, EPERM) << what;
  };
  expect_eperm(write(fd, "x", 1), "write");
  expect_eperm(pwrite(fd, "x", 1, 0), "pwrite");
  expect_eperm(pwrite(fd, "x", 1, kPageBytes), "pwrite into a hole");
  expect_eperm(ftruncate(fd, 0), "ftruncate to nothing");
  expect_eperm(ftruncate(fd, 1 << 20), "ftruncate to more");
  expect_eperm(
      fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPageBytes),
      "fallocate(PUNCH_HOLE)");
  expect_eperm(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL), "F_ADD_SEALS");
  expect_eperm(
      reinterpret_cast<intptr_t>(
          mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)),
      "mmap shared and writable");

  // The way round, by another file description.
  const std::string path = absl::StrCat("/proc/self/fd/", fd);
  const int again = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (again >= 0) {
    expect_eperm(pwrite(again, "x", 1, 0), "pwrite after open");
    close(again);
  }

  std::vector<std::byte> bytes(kSize);
  ASSERT_EQ(image->Read(0, std::span(bytes)), absl::OkStatus());
  EXPECT_EQ(bytes, Contents());
}

TEST(ImageTest, TheMemfdCannotBeExecuted) {
  const ImageRef image = MakeImage();
  if ((fcntl(image->memfd(), F_GET_SEALS) & kSealExec) == 0) {
    GTEST_SKIP() << "MFD_NOEXEC_SEAL (Linux 6.3)";
  }
  struct stat status = {};
  ASSERT_EQ(fstat(image->memfd(), &status), 0);
  EXPECT_EQ(status.st_mode & 0111, 0u);
  EXPECT_EQ(fchmod(image->memfd(), 0755), -1);
  EXPECT_EQ(errno, EPERM);
}

TEST(ImageTest, TheDescriptorIsCloseOnExec) {
  const ImageRef image = MakeImage();
  EXPECT_EQ(fcntl(image->memfd(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
}

TEST(ImageTest, TheViewIsReadOnlyAndNotDumped) {
  const ImageRef image = MakeImage();
  const std::string flags = VmFlags(image->data());
  ASSERT_NE(flags, "");
  EXPECT_NE(flags.find(" dd "), std::string::npos) << flags;
  EXPECT_EQ(flags.find(" wr "), std::string::npos) << flags;
  if (flags.find(" sh ") == std::string::npos &&
      flags.find(" ms ") == std::string::npos) {
    GTEST_SKIP() << "shared mapping of a write-sealed memfd (Linux 6.7)";
  }
  EXPECT_EQ(flags.find(" mw "), std::string::npos) << flags;
  EXPECT_EQ(mprotect(const_cast<std::byte*>(image->data()), kPageBytes,
                     PROT_READ | PROT_WRITE),
            -1);
  EXPECT_EQ(errno, EACCES);
}

TEST(ImageTest, APrivateMappingChangesNothing) {
  const ImageRef image = MakeImage();
  void* const mapped = mmap(nullptr, 4 * kPageBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_NORESERVE, image->memfd(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  std::memset(mapped, 0xab, 4 * kPageBytes);
  munmap(mapped, 4 * kPageBytes);
  std::vector<std::byte> bytes(kSize);
  ASSERT_EQ(image->Read(0, std::span(bytes)), absl::OkStatus());
  EXPECT_EQ(bytes, Contents());
}

TEST(ImageTest, TheNameIsShownByTheKernelCutToItsLimit) {
  const auto link = [](const Image& image) {
    char text[512] = {};
    const std::string path = absl::StrCat("/proc/self/fd/", image.memfd());
    EXPECT_GT(readlink(path.c_str(), text, sizeof(text) - 1), 0);
    return std::string(text);
  };
  EXPECT_EQ(link(*MakeImage("guest.wasm")),
            "/memfd:firsttouch:guest.wasm (deleted)");
  EXPECT_EQ(link(*MakeImage("")), "/memfd:firsttouch: (deleted)");
  const ImageRef image = MakeImage(std::string(1000, 'n'));
  EXPECT_EQ(
      link(*image),
      absl::StrCat("/memfd:firsttouch:", std::string(238, 'n'), " (deleted)"));
  EXPECT_EQ(image->name(), std::string(1000, 'n'));
}

TEST(ImageTest, DroppingTheLastReferenceLeavesNothing) {
  ImageRef image = MakeImage();
  const int fd = image->memfd();
  const std::byte* const data = image->data();
  ImageRef second = image;
  image = nullptr;
  EXPECT_GE(fcntl(fd, F_GETFD), 0);
  second = nullptr;
  EXPECT_EQ(fcntl(fd, F_GETFD), -1);
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(VmFlags(data), "");
}

TEST(ImageTest, AForkedChildSeesTheSameAndDoesNotDisturb) {
  ImageRef image = MakeImage();
  const std::vector<std::byte> contents = Contents();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::vector<std::byte> bytes(kSize);
    const bool same =
        image->Read(0, std::span(bytes)).ok() && bytes == contents;
    image = nullptr;
    _exit(same ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  std::vector<std::byte> bytes(kSize);
  ASSERT_EQ(image->Read(0, std::span(bytes)), absl::OkStatus());
  EXPECT_EQ(bytes, contents);
}

TEST(ImageTest, IdsAreNeverUsedTwice) {
  constexpr int kThreads = 4;
  constexpr int kImages = 50;
  std::mutex mutex;
  std::set<uint64_t> ids;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kImages; ++i) {
        const ImageRef image = MakeImage();
        std::lock_guard<std::mutex> lock(mutex);
        ids.insert(image->id());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ids.size(), static_cast<size_t>(kThreads * kImages));
  EXPECT_EQ(ids.count(0), 0u);
}

TEST(ImageTest, ManyThreadsReadOneImageAndAnyMayDropIt) {
  constexpr int kThreads = 8;
  constexpr int kRounds = 200;
  const std::vector<std::byte> contents = Contents();
  ImageRef image = MakeImage();
  const int fd = image->memfd();
  std::vector<int> good(kThreads, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&contents, &good, t, mine = image]() mutable {
      std::vector<std::byte> bytes(kSize);
      for (int round = 0; round < kRounds; ++round) {
        const ImageRef copy = mine;
        const uint64_t page = (round + t) % 4;
        const uint64_t offset = page * kPageBytes;
        const uint64_t length = std::min(kPageBytes, kSize - offset);
        good[t] += copy->Read(0, std::span(bytes)).ok() && bytes == contents &&
                   copy->IsStored(PageIndex(page)) == (page != 1) &&
                   std::memcmp(copy->PageBytes(PageIndex(page)),
                               contents.data() + offset, length) == 0 &&
                   copy->stored_words()[0] == 0b1101u;
      }
      mine = nullptr;
    });
  }
  image = nullptr;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, std::vector<int>(kThreads, kRounds));
  EXPECT_EQ(fcntl(fd, F_GETFD), -1);
}

TEST(ImageTest, AnImageOfNoPages) {
  const absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = "empty", .size_bytes = 0}, {});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_NE((*image)->id(), 0u);
  EXPECT_EQ((*image)->size_bytes(), 0u);
  EXPECT_EQ((*image)->pages(), PageCount(0));
  EXPECT_EQ((*image)->stored_pages(), 0u);
  EXPECT_EQ((*image)->stored_words(), nullptr);
  EXPECT_EQ((*image)->data(), nullptr);
  EXPECT_FALSE((*image)->IsStored(PageIndex(0)));
  EXPECT_EQ((*image)->PageBytes(PageIndex(0))[17], std::byte{0});
  EXPECT_EQ((*image)->Read(0, {}), absl::OkStatus());
  EXPECT_NE(fcntl((*image)->memfd(), F_GET_SEALS) & F_SEAL_GROW, 0);
}

}  // namespace
}  // namespace firsttouch
