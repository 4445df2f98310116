#include "firsttouch/init/image_builder.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/fake_memfd.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder_with_kernel.h"
#include "firsttouch/init/image_memfd.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using Bytes = std::vector<std::byte>;

// A sanitizer's shadow memory counts as ours, and takes most address space.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized =
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

Bytes Fill(size_t count, int value) { return Bytes(count, std::byte(value)); }

uint64_t AllocatedBytes(const Image& image) {
  struct stat status = {};
  EXPECT_EQ(fstat(image.memfd(), &status), 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

// The image must hold exactly `expected`, and store exactly the pages of it
// that are not zero.
void CheckHolds(const Image& image, const Bytes& expected) {
  ASSERT_EQ(image.size_bytes(), expected.size());
  ASSERT_EQ(image.pages(), PagesRoundedUp(expected.size()));
  Bytes padded = expected;
  padded.resize(image.pages().bytes());
  uint64_t stored = 0;
  for (uint64_t page = 0; page < image.pages().value(); ++page) {
    const std::byte* const wanted = padded.data() + page * kPageBytes;
    const bool zero = std::all_of(wanted, wanted + kPageBytes, [](std::byte b) {
      return b == std::byte{0};
    });
    stored += !zero;
    ASSERT_EQ(image.IsStored(PageIndex(page)), !zero) << "page " << page;
    ASSERT_EQ((image.stored_words()[page / 64] >> (page % 64)) & 1, !zero)
        << "page " << page;
    ASSERT_EQ(std::memcmp(image.PageBytes(PageIndex(page)), wanted, kPageBytes),
              0)
        << "page " << page;
  }
  ASSERT_EQ(image.stored_pages(), stored);
  ASSERT_EQ(AllocatedBytes(image), stored * kPageBytes);
}

int OpenDescriptors() {
  const std::filesystem::directory_iterator fds("/proc/self/fd");
  return static_cast<int>(std::distance(begin(fds), end(fds)));
}

int Mappings() {
  std::ifstream maps("/proc/self/maps");
  return static_cast<int>(std::count(std::istreambuf_iterator<char>(maps),
                                     std::istreambuf_iterator<char>(), '\n'));
}

// --- Data segments ---

TEST(ImageFromSegmentsTest, LaterSegmentsWin) {
  const Bytes first = Fill(8, 0xff);
  const Bytes second = Fill(4, 0x00);
  const std::vector<DataSegment> segments = {{100, first}, {104, second}};
  const absl::StatusOr<ImageRef> image =
      ImageFromSegments({.name = "m", .size_bytes = 65536}, segments);
  ASSERT_TRUE(image.ok()) << image.status();
  Bytes expected(65536);
  std::fill_n(expected.begin() + 100, 4, std::byte{0xff});
  CheckHolds(**image, expected);
}

TEST(ImageFromSegmentsTest, APageOverwrittenWithZeroesIsNotStored) {
  const Bytes ones = Fill(3 * kPageBytes, 1);
  const Bytes zeroes = Fill(kPageBytes + 10, 0);
  const std::vector<DataSegment> segments = {{0, ones},
                                             {kPageBytes - 5, zeroes}};
  const absl::StatusOr<ImageRef> image =
      ImageFromSegments({.name = "m", .size_bytes = 3 * kPageBytes}, segments);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->stored_words()[0], 0b101u);
  Bytes expected = ones;
  std::fill_n(expected.begin() + kPageBytes - 5, kPageBytes + 10, std::byte{});
  CheckHolds(**image, expected);
}

TEST(ImageFromSegmentsTest, ZeroSegmentsStoreNothing) {
  const Bytes zeroes = Fill(10 * kPageBytes, 0);
  const std::vector<DataSegment> segments = {{5, zeroes}, {3, zeroes}};
  FakeMemfdCalls calls;
  const absl::StatusOr<ImageRef> image =
      ImageFromSegments({.name = "m", .size_bytes = 1 << 20}, segments, calls);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->stored_pages(), 0u);
  EXPECT_EQ(calls.Calls(MemfdOp::kWrite), 0);
  CheckHolds(**image, Bytes(1 << 20));
}

TEST(ImageFromSegmentsTest, AnEmptySegmentChangesNothing) {
  const Bytes ab = {std::byte{'A'}, std::byte{'B'}};
  const std::vector<DataSegment> segments = {
      {0, {}}, {10, ab}, {11, {}}, {65536, {}}};
  const absl::StatusOr<ImageRef> image =
      ImageFromSegments({.name = "m", .size_bytes = 65536}, segments);
  ASSERT_TRUE(image.ok()) << image.status();
  Bytes expected(65536);
  expected[10] = std::byte{'A'};
  expected[11] = std::byte{'B'};
  CheckHolds(**image, expected);
}

TEST(ImageFromSegmentsTest, NoSegmentsAtAll) {
  const absl::StatusOr<ImageRef> image =
      ImageFromSegments({.name = "m", .size_bytes = 5000}, {});
  ASSERT_TRUE(image.ok()) << image.status();
  CheckHolds(**image, Bytes(5000));
}

TEST(ImageFromSegmentsTest, OutOfRangeNamesTheSegmentAndTheRange) {
  const Bytes two = Fill(2, 7);
  struct Case {
    uint64_t offset;
    std::span<const std::byte> bytes;
    const char* range;
  };
  const Case cases[] = {
      {65535, two, "offset 65535 + 2 bytes"},
      {65536, two, "offset 65536 + 2 bytes"},
      // i32.const -1, as an unsigned 32-bit offset.
      {0xffffffff, two, "offset 4294967295 + 2 bytes"},
      // The sum wraps around 64 bits.
      {UINT64_MAX, two, "offset 18446744073709551615 + 2 bytes"},
      {UINT64_MAX - 1, two, "offset 18446744073709551614 + 2 bytes"},
      // Empty, but past the end.
      {65537, {}, "offset 65537 + 0 bytes"},
      {UINT64_MAX, {}, "offset 18446744073709551615 + 0 bytes"},
  };
  for (const Case& c : cases) {
    const std::vector<DataSegment> segments = {
        {0, two}, {65534, two}, {0, {}}, {c.offset, c.bytes}, {1, two}};
    const absl::StatusOr<ImageRef> image =
        ImageFromSegments({.name = "m", .size_bytes = 65536}, segments);
    EXPECT_EQ(image.status(),
              absl::OutOfRangeError(absl::StrCat(
                  "image 'm': segment 3: ", c.range,
                  " exceeds memory size 65536; move the segment or raise "
                  "size_bytes")));
  }
}

TEST(ImageFromSegmentsTest, TwoBytesAGigabyteApart) {
  const Bytes one = Fill(1, 1);
  const std::vector<DataSegment> segments = {{0, one}, {1'000'000'000, one}};
  FakeMemfdCalls calls;
  const absl::StatusOr<ImageRef> image = ImageFromSegments(
      {.name = "sparse", .size_bytes = uint64_t{65536} * 65536}, segments,
      calls);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->pages(), PageCount(1 << 20));
  EXPECT_EQ((*image)->stored_pages(), 2u);
  EXPECT_TRUE((*image)->IsStored(PageIndex(0)));
  EXPECT_TRUE((*image)->IsStored(PageContaining(1'000'000'000)));
  EXPECT_EQ(AllocatedBytes(**image), 2 * kPageBytes);
  // The work goes with the bytes, not with what lies between them.
  EXPECT_EQ(calls.Calls(MemfdOp::kWrite), 2);
  EXPECT_EQ(calls.Calls(MemfdOp::kRead), 0);
}

// Private memory of this process, exactly: smaps walks the page tables.
uint64_t AnonymousBytes() {
  std::ifstream rollup("/proc/self/smaps_rollup");
  std::string word;
  while (rollup >> word) {
    uint64_t kilobytes = 0;
    if (word == "Anonymous:" && rollup >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

TEST(ImageFromSegmentsTest, TwoBytesAGigabyteApartCostUnder64KiB) {
  if (kSanitized) GTEST_SKIP() << "memory use, under a sanitizer";
  const uint64_t before = AnonymousBytes();
  if (before == 0) GTEST_SKIP() << "/proc/self/smaps_rollup (Linux 4.14)";
  const Bytes one = Fill(1, 1);
  const std::vector<DataSegment> segments = {{0, one}, {1'000'000'000, one}};
  const absl::StatusOr<ImageRef> image = ImageFromSegments(
      {.name = "sparse", .size_bytes = uint64_t{65536} * 65536}, segments);
  ASSERT_TRUE(image.ok()) << image.status();
  uint64_t sum = 0;
  for (uint64_t page = 0; page < (*image)->pages().value(); page += 64) {
    sum += (*image)->IsStored(PageIndex(page));
  }
  EXPECT_GE(sum, 1u);
  const uint64_t after = AnonymousBytes();
  EXPECT_LT(after - before + AllocatedBytes(**image), 65536u)
      << before << " to " << after;
}

TEST(ImageFromSegmentsTest, AHundredThousandOneByteSegments) {
  Bytes contents(kMaxSegments);
  std::vector<DataSegment> segments;
  for (size_t i = 0; i < kMaxSegments; ++i) {
    contents[i] = std::byte(i % 255 + 1);
    segments.push_back({7 * i, std::span(contents).subspan(i, 1)});
  }
  FakeMemfdCalls calls;
  const absl::StatusOr<ImageRef> image =
      ImageFromSegments({.name = "m", .size_bytes = 1 << 20}, segments, calls);
  ASSERT_TRUE(image.ok()) << image.status();
  Bytes expected(1 << 20);
  for (size_t i = 0; i < kMaxSegments; ++i) expected[7 * i] = contents[i];
  CheckHolds(**image, expected);
  // Linear: a call for each segment and nothing else that grows with them.
  EXPECT_EQ(calls.Calls(MemfdOp::kWrite), static_cast<int>(kMaxSegments));
  EXPECT_EQ(calls.Calls(MemfdOp::kRead), 0);
}

TEST(ImageFromSegmentsTest, OverwritingOnePageTimeAndAgainIsCheckedOnce) {
  const Bytes one = Fill(1, 1);
  const Bytes zero = Fill(1, 0);
  std::vector<DataSegment> segments;
  for (int i = 0; i < 1000; ++i) segments.push_back({5, i % 2 ? zero : one});
  FakeMemfdCalls calls;
  const absl::StatusOr<ImageRef> image =
      ImageFromSegments({.name = "m", .size_bytes = 4096}, segments, calls);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->stored_pages(), 0u);
  EXPECT_EQ(calls.Calls(MemfdOp::kRead), 1);
}

TEST(ImageFromSegmentsTest, TooManySegmentsNamesTheLimit) {
  const std::vector<DataSegment> segments(200'000);
  const absl::StatusOr<ImageRef> image =
      ImageFromSegments({.name = "m", .size_bytes = 65536}, segments);
  EXPECT_EQ(image.status(),
            absl::InvalidArgumentError(
                "image 'm': 200000 segments exceed the limit of 100000; join "
                "neighbouring segments, or use ImageFromBytes or "
                "ImageFromCallback"));
}

TEST(ImageFromSegmentsTest, RandomSegmentsAgainstAByteArray) {
  std::mt19937 random(20240607);
  const auto below = [&](uint64_t limit) {
    return std::uniform_int_distribution<uint64_t>(0, limit - 1)(random);
  };
  for (int round = 0; round < 400; ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    const uint64_t size = below(2) ? below(70 * kPageBytes) : below(3) * 100;
    Bytes expected(size);
    std::vector<Bytes> contents;
    std::vector<uint64_t> offsets;
    const uint64_t count = below(20);
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t offset = below(size + 1);
      // From single bytes to many pages, aligned or not.
      const uint64_t longest = below(3) == 0 ? 10 * kPageBytes
                               : below(2)    ? kPageBytes + 2
                                             : 3;
      const uint64_t start = below(3) == 0 ? RoundDownToPage(offset) : offset;
      Bytes bytes(std::min(below(longest + 1), size - start));
      switch (below(3)) {
        case 0:  // Zeroes.
          break;
        case 1:
          for (std::byte& byte : bytes) byte = std::byte(below(256));
          break;
        default:  // Mostly zeroes.
          if (!bytes.empty()) bytes[below(bytes.size())] = std::byte{1};
      }
      std::copy(bytes.begin(), bytes.end(), expected.begin() + start);
      contents.push_back(std::move(bytes));
      offsets.push_back(start);
    }
    std::vector<DataSegment> segments;
    for (uint64_t i = 0; i < count; ++i) {
      segments.push_back({offsets[i], contents[i]});
    }
    const absl::StatusOr<ImageRef> image =
        ImageFromSegments({.name = "random", .size_bytes = size}, segments);
    ASSERT_TRUE(image.ok()) << image.status();
    CheckHolds(**image, expected);
    ASSERT_FALSE(HasFatalFailure());
  }
}

// --- A byte span ---

TEST(ImageFromBytesTest, BytesThenZeroes) {
  const Bytes bytes = Fill(5000, 9);
  const absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = "m", .size_bytes = 20'001}, bytes);
  ASSERT_TRUE(image.ok()) << image.status();
  Bytes expected = bytes;
  expected.resize(20'001);
  CheckHolds(**image, expected);
}

TEST(ImageFromBytesTest, AdjacentPagesAreWrittenInOneCall) {
  Bytes bytes = Fill(100 * kPageBytes, 1);
  std::fill_n(bytes.begin() + 40 * kPageBytes, 2 * kPageBytes, std::byte{});
  FakeMemfdCalls calls;
  const absl::StatusOr<ImageRef> image = ImageFromBytes(
      {.name = "m", .size_bytes = 100 * kPageBytes}, bytes, calls);
  ASSERT_TRUE(image.ok()) << image.status();
  CheckHolds(**image, bytes);
  EXPECT_EQ(calls.Calls(MemfdOp::kWrite), 2);
}

TEST(ImageFromBytesTest, AShortWriteIsContinued) {
  Bytes bytes(10'000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte(i * 7 + 1);
  FakeMemfdCalls calls;
  calls.LimitWrites(999);
  const absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = "m", .size_bytes = 10'000}, bytes, calls);
  ASSERT_TRUE(image.ok()) << image.status();
  CheckHolds(**image, bytes);
  EXPECT_EQ(calls.Calls(MemfdOp::kWrite), 11);
}

TEST(ImageFromBytesTest, AWriteThatDoesNothingIsOutOfSpaceNotALoop) {
  FakeMemfdCalls calls;
  calls.LimitWrites(0);
  const absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = "m", .size_bytes = 10}, Fill(10, 1), calls);
  EXPECT_EQ(image.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(calls.open(), 0);
}

TEST(ImageFromBytesTest, MoreBytesThanTheSize) {
  const absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = "m", .size_bytes = 5}, Fill(6, 1));
  EXPECT_EQ(image.status(),
            absl::OutOfRangeError("image 'm': 6 bytes exceed size_bytes 5; "
                                  "raise size_bytes or give fewer bytes"));
}

TEST(ImageFromBytesTest, ASizeAboveTheLimit) {
  const absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = "m", .size_bytes = kMaxImageBytes + 1}, {});
  EXPECT_EQ(image.status(),
            absl::InvalidArgumentError(
                "image 'm': size_bytes 1099511627777 exceeds the limit of "
                "1099511627776 (1 TiB); lower size_bytes"));
  EXPECT_EQ(ImageFromBytes({.name = "m", .size_bytes = UINT64_MAX}, {})
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ImageFromBytesTest, TheLargestSizeWorks) {
  if (kSanitized) GTEST_SKIP() << "address space, under a sanitizer";
  const absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = "m", .size_bytes = kMaxImageBytes}, Fill(1, 1));
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->stored_pages(), 1u);
  EXPECT_EQ(AllocatedBytes(**image), kPageBytes);
}

TEST(ImageFromBytesTest, ASourceTheKernelCannotReadKeepsEfault) {
  // Readable to us when it is looked at, gone when the kernel copies it: as
  // with a live memory whose pages are taken away during the call.
  void* const page = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  std::memset(page, 1, kPageBytes);
  class Vanishing : public FakeMemfdCalls {
   public:
    explicit Vanishing(void* page) : page_(page) {}
    MemfdResult Write(int fd, const void* from, size_t bytes,
                      uint64_t offset) noexcept override {
      munmap(page_, kPageBytes);
      return FakeMemfdCalls::Write(fd, from, bytes, offset);
    }

   private:
    void* page_;
  };
  Vanishing calls(page);
  const absl::StatusOr<ImageRef> image = ImageFromBytes(
      {.name = "m", .size_bytes = kPageBytes},
      std::span(static_cast<const std::byte*>(page), kPageBytes), calls);
  EXPECT_EQ(image.status(),
            absl::ErrnoToStatus(
                EFAULT,
                "image 'm': pwrite of 4096 bytes at offset 0 failed with errno "
                "14; the source bytes must stay mapped and readable during the "
                "call"));
  EXPECT_EQ(calls.open(), 0);
}

// --- A callback ---

TEST(ImageFromCallbackTest, EachPageOnceInOrderZeroedAndAligned) {
  std::vector<uint64_t> asked;
  Bytes expected(4 * kPageBytes + 10);
  const absl::StatusOr<ImageRef> image = ImageFromCallback(
      {.name = "m", .size_bytes = expected.size()},
      [&](PageIndex page, std::span<std::byte, kPageBytes> bytes) {
        asked.push_back(page.value());
        EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % kPageBytes, 0u);
        EXPECT_EQ(std::count(bytes.begin(), bytes.end(), std::byte{}),
                  static_cast<int64_t>(kPageBytes));
        // Page 2 stays zero; the last page is filled past the size.
        if (page.value() != 2) {
          std::memset(bytes.data(), static_cast<int>(page.value()) + 1,
                      kPageBytes);
        }
        return absl::OkStatus();
      });
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(asked, (std::vector<uint64_t>{0, 1, 2, 3, 4}));
  for (size_t i = 0; i < expected.size(); ++i) {
    const size_t page = i / kPageBytes;
    if (page != 2) expected[i] = std::byte(page + 1);
  }
  CheckHolds(**image, expected);
}

TEST(ImageFromCallbackTest, ATailOfNothingButLeftoversIsNotStored) {
  const absl::StatusOr<ImageRef> image =
      ImageFromCallback({.name = "m", .size_bytes = 10},
                        [](PageIndex, std::span<std::byte, kPageBytes> bytes) {
                          bytes[10] = std::byte{1};
                          return absl::OkStatus();
                        });
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->stored_pages(), 0u);
  CheckHolds(**image, Bytes(10));
}

TEST(ImageFromCallbackTest, ItsErrorIsPassedOnWithThePageAndNothingLeaks) {
  FakeMemfdCalls calls;
  const int descriptors = OpenDescriptors();
  const int mappings = Mappings();
  int asked = 0;
  const absl::StatusOr<ImageRef> image = ImageFromCallback(
      {.name = "m", .size_bytes = 10 * kPageBytes},
      [&](PageIndex page, std::span<std::byte, kPageBytes> bytes) {
        ++asked;
        bytes[0] = std::byte{1};
        return page == PageIndex(3) ? absl::DataLossError("disk on fire")
                                    : absl::OkStatus();
      },
      calls);
  EXPECT_EQ(
      image.status(),
      absl::DataLossError("image 'm': callback for page 3: disk on fire"));
  EXPECT_EQ(asked, 4);
  EXPECT_EQ(calls.open(), 0);
  EXPECT_EQ(OpenDescriptors(), descriptors);
  EXPECT_EQ(Mappings(), mappings);
}

TEST(ImageFromCallbackTest, NoPagesNoCalls) {
  const absl::StatusOr<ImageRef> image =
      ImageFromCallback({.name = "m", .size_bytes = 0},
                        [](PageIndex, std::span<std::byte, kPageBytes>) {
                          return absl::InternalError("called");
                        });
  EXPECT_TRUE(image.ok()) << image.status();
}

// --- A base and changed pages ---

ImageRef Base(const Bytes& bytes) {
  absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = "base", .size_bytes = bytes.size()}, bytes);
  EXPECT_TRUE(image.ok()) << image.status();
  return image.ok() ? *image : nullptr;
}

TEST(ImageWithPagesTest, ChangedPagesReplaceTheBases) {
  Bytes bytes = Fill(6 * kPageBytes, 1);
  std::fill_n(bytes.begin() + 2 * kPageBytes, kPageBytes, std::byte{});
  const ImageRef base = Base(bytes);
  const Bytes zero = Fill(kPageBytes, 0);
  const Bytes two = Fill(kPageBytes, 2);
  const Bytes three = Fill(kPageBytes, 3);
  const std::vector<PageData> pages = {
      {PageIndex(4), zero.data()},   // Became zero.
      {PageIndex(2), two.data()},    // Was zero.
      {PageIndex(0), two.data()},    // Given twice: the last one counts.
      {PageIndex(5), nullptr},       // Became zero, said so.
      {PageIndex(0), three.data()},  //
      {PageIndex(7), two.data()},    // Grown.
  };
  const absl::StatusOr<ImageRef> image = ImageWithPages(
      {.name = "snapshot", .size_bytes = 8 * kPageBytes}, base.get(), pages);
  ASSERT_TRUE(image.ok()) << image.status();
  Bytes expected = bytes;
  expected.resize(8 * kPageBytes);
  const auto set = [&](int page, int value) {
    std::fill_n(expected.begin() + page * kPageBytes, kPageBytes,
                std::byte(value));
  };
  set(0, 3);
  set(2, 2);
  set(4, 0);
  set(5, 0);
  set(7, 2);
  CheckHolds(**image, expected);
  EXPECT_NE((*image)->id(), base->id());
  CheckHolds(*base, bytes);
}

TEST(ImageWithPagesTest, AllSetsOfChangedPagesOverAllSmallBases) {
  // Each of five pages of the base is stored or not; each is changed to
  // something, changed to zero, or left alone.
  constexpr int kPages = 5;
  const Bytes nine = Fill(kPageBytes, 9);
  const Bytes zero = Fill(kPageBytes, 0);
  for (int stored = 0; stored < 1 << kPages; ++stored) {
    Bytes bytes(kPages * kPageBytes);
    for (int page = 0; page < kPages; ++page) {
      if ((stored >> page) & 1) bytes[page * kPageBytes + 1] = std::byte{5};
    }
    const ImageRef base = Base(bytes);
    for (int changes = 0; changes < 3 * 3 * 3 * 3 * 3; ++changes) {
      Bytes expected = bytes;
      std::vector<PageData> pages;
      for (int page = 0, left = changes; page < kPages; ++page, left /= 3) {
        if (left % 3 == 0) continue;
        const Bytes& now = left % 3 == 1 ? nine : zero;
        pages.push_back({PageIndex(page), now.data()});
        std::copy(now.begin(), now.end(), expected.begin() + page * kPageBytes);
      }
      const absl::StatusOr<ImageRef> image = ImageWithPages(
          {.name = "snapshot", .size_bytes = bytes.size()}, base.get(), pages);
      ASSERT_TRUE(image.ok()) << image.status();
      CheckHolds(**image, expected);
      ASSERT_FALSE(HasFatalFailure()) << stored << " / " << changes;
    }
  }
}

TEST(ImageWithPagesTest, WithoutABase) {
  const Bytes two = Fill(kPageBytes, 2);
  const std::vector<PageData> pages = {{PageIndex(1), two.data()}};
  // Cut inside the page: what the memory held past its size is not kept.
  const absl::StatusOr<ImageRef> image = ImageWithPages(
      {.name = "snapshot", .size_bytes = kPageBytes + 3}, nullptr, pages);
  ASSERT_TRUE(image.ok()) << image.status();
  Bytes expected(kPageBytes + 3);
  std::fill_n(expected.begin() + kPageBytes, 3, std::byte{2});
  CheckHolds(**image, expected);
}

TEST(ImageWithPagesTest, UnchangedRunsOfTheBaseAreCopiedInOneCall) {
  const ImageRef base = Base(Fill(100 * kPageBytes, 1));
  const Bytes two = Fill(kPageBytes, 2);
  const std::vector<PageData> pages = {{PageIndex(50), two.data()}};
  FakeMemfdCalls calls;
  const absl::StatusOr<ImageRef> image =
      ImageWithPages({.name = "snapshot", .size_bytes = 100 * kPageBytes},
                     base.get(), pages, calls);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(calls.Calls(MemfdOp::kWrite), 3);
}

TEST(ImageWithPagesTest, NothingChanged) {
  const Bytes bytes = Fill(5000, 1);
  const absl::StatusOr<ImageRef> image = ImageWithPages(
      {.name = "snapshot", .size_bytes = 5003}, Base(bytes).get(), {});
  ASSERT_TRUE(image.ok()) << image.status();
  Bytes expected = bytes;
  expected.resize(5003);
  CheckHolds(**image, expected);
}

TEST(ImageWithPagesTest, ALargerBaseIsRefused) {
  const absl::StatusOr<ImageRef> image = ImageWithPages(
      {.name = "snapshot", .size_bytes = 4999}, Base(Fill(5000, 1)).get(), {});
  EXPECT_EQ(image.status(),
            absl::InvalidArgumentError(
                "image 'snapshot': base image 'base' has size_bytes 5000, more "
                "than size_bytes 4999; an image does not shrink, raise "
                "size_bytes"));
}

TEST(ImageWithPagesTest, APagePastTheEndIsNamed) {
  const Bytes two = Fill(kPageBytes, 2);
  const std::vector<PageData> pages = {{PageIndex(0), two.data()},
                                       {PageIndex(2), two.data()}};
  const absl::StatusOr<ImageRef> image =
      ImageWithPages({.name = "snapshot", .size_bytes = 5000}, nullptr, pages);
  EXPECT_EQ(image.status(),
            absl::OutOfRangeError(
                "image 'snapshot': changed page 1: page 2 is past the image's "
                "2 pages (size_bytes 5000)"));
}

// --- When the kernel refuses ---

// A build that makes every kind of call: a page that becomes zero is read back
// and punched.
absl::StatusOr<ImageRef> BuildWithEveryCall(MemfdCalls& calls) {
  static const Bytes* const ones = new Bytes(Fill(2 * kPageBytes, 1));
  static const Bytes* const zeroes = new Bytes(Fill(kPageBytes, 0));
  const std::vector<DataSegment> segments = {{0, *ones}, {0, *zeroes}};
  return ImageFromSegments({.name = "m", .size_bytes = 3 * kPageBytes},
                           segments, calls);
}

TEST(ImageFailureTest, EveryCallThatFailsFailsTheBuildAndNothingLeaks) {
  const int descriptors = OpenDescriptors();
  const int mappings = Mappings();
  std::set<MemfdOp> failed;
  for (int nth = 0;; ++nth) {
    FakeMemfdCalls calls;
    calls.FailAny(nth, EIO);
    {
      const absl::StatusOr<ImageRef> image = BuildWithEveryCall(calls);
      if (!calls.struck()) {
        EXPECT_TRUE(image.ok()) << image.status();
        break;
      }
      if (calls.struck_op() == MemfdOp::kFileSizeLimit) {
        // Only asked so as to say more; the kernel has the last word.
        EXPECT_TRUE(image.ok()) << image.status();
      } else {
        failed.insert(calls.struck_op());
        ASSERT_FALSE(image.ok()) << "call " << nth;
        EXPECT_THAT(std::string(image.status().message()),
                    StartsWith("image 'm': "));
        EXPECT_THAT(std::string(image.status().message()),
                    HasSubstr("failed with errno 5; "));
        EXPECT_THAT(std::string(image.status().message()),
                    HasSubstr("Input/output error"));
      }
    }
    EXPECT_EQ(calls.open(), 0) << "call " << nth;
  }
  EXPECT_EQ(failed,
            (std::set<MemfdOp>{
                MemfdOp::kCreate, MemfdOp::kTruncate, MemfdOp::kWrite,
                MemfdOp::kRead, MemfdOp::kPunchHole, MemfdOp::kAllocatedBytes,
                MemfdOp::kAddSeals, MemfdOp::kMapReadOnly, MemfdOp::kAdvise}));
  EXPECT_EQ(OpenDescriptors(), descriptors);
  EXPECT_EQ(Mappings(), mappings);
}

TEST(ImageFailureTest, TheErrnoAndTheWayOutAreNamed) {
  struct Case {
    MemfdOp op;
    int error;
    const char* text;
  };
  const Case cases[] = {
      {MemfdOp::kCreate, EMFILE,
       "image 'm': memfd_create failed with errno 24; close descriptors or "
       "raise RLIMIT_NOFILE (ulimit -n)"},
      {MemfdOp::kCreate, ENFILE,
       "image 'm': memfd_create failed with errno 23; close files in other "
       "processes or raise fs.file-max"},
      {MemfdOp::kCreate, EPERM,
       "image 'm': memfd_create failed with errno 1; allow memfd_create and "
       "F_ADD_SEALS in the seccomp or security policy (Linux 3.17 or later)"},
      {MemfdOp::kCreate, ENOSYS,
       "image 'm': memfd_create failed with errno 38; allow memfd_create and "
       "F_ADD_SEALS in the seccomp or security policy (Linux 3.17 or later)"},
      {MemfdOp::kTruncate, EFBIG,
       "image 'm': ftruncate to 12288 bytes failed with errno 27; this is not "
       "expected of Linux 3.17 or later"},
      {MemfdOp::kWrite, ENOSPC,
       "image 'm': pwrite of 8192 bytes at offset 0 failed with errno 28; free "
       "shared memory or raise the memory limit of the container"},
      {MemfdOp::kWrite, ENOMEM,
       "image 'm': pwrite of 8192 bytes at offset 0 failed with errno 12; free "
       "memory, or raise RLIMIT_AS (ulimit -v), vm.max_map_count or the memory "
       "limit of the container"},
      {MemfdOp::kRead, EIO,
       "image 'm': pread of page 0 (0 of 4096 bytes) failed with errno 5; this "
       "is not expected of Linux 3.17 or later"},
      {MemfdOp::kPunchHole, ENOSYS,
       "image 'm': fallocate(PUNCH_HOLE) of 4096 bytes at offset 0 failed with "
       "errno 38; allow memfd_create and F_ADD_SEALS in the seccomp or "
       "security "
       "policy (Linux 3.17 or later)"},
      {MemfdOp::kMapReadOnly, ENOMEM,
       "image 'm': mmap of 12288 bytes failed with errno 12; free memory, or "
       "raise RLIMIT_AS (ulimit -v), vm.max_map_count or the memory limit of "
       "the container"},
  };
  for (const Case& c : cases) {
    FakeMemfdCalls calls;
    calls.Fail(c.op, 0, c.error);
    EXPECT_EQ(BuildWithEveryCall(calls).status(),
              absl::ErrnoToStatus(c.error, c.text));
    EXPECT_EQ(calls.open(), 0);
  }
}

TEST(ImageFailureTest, APageThatIsHeldForAMomentDoesNotFailTheBuild) {
  FakeMemfdCalls calls;
  for (int nth = 0; nth < kSealTries - 1; ++nth) {
    calls.Fail(MemfdOp::kAddSeals, nth, EBUSY);
  }
  const absl::StatusOr<ImageRef> image = BuildWithEveryCall(calls);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(calls.Calls(MemfdOp::kAddSeals), kSealTries);
  EXPECT_NE(fcntl((*image)->memfd(), F_GET_SEALS) & F_SEAL_WRITE, 0);
}

TEST(ImageFailureTest, APageThatStaysPinnedIsAnErrorThatSaysSo) {
  FakeMemfdCalls calls;
  for (int nth = 0; nth < kSealTries; ++nth) {
    calls.Fail(MemfdOp::kAddSeals, nth, EBUSY);
  }
  EXPECT_EQ(
      BuildWithEveryCall(calls).status(),
      absl::ErrnoToStatus(
          EBUSY,
          "image 'm': fcntl(F_ADD_SEALS) failed with errno 16; a page of it "
          "stays pinned, or it is mapped for writing: nobody but this library "
          "may have its descriptor by then"));
  EXPECT_EQ(calls.Calls(MemfdOp::kAddSeals), kSealTries);
  EXPECT_EQ(calls.open(), 0);
}

TEST(ImageFailureTest, AKernelWithoutNoexecSealGetsAPlainMemfd) {
  // Before Linux 6.3 the flag is EINVAL.
  FakeMemfdCalls calls;
  calls.Fail(MemfdOp::kCreate, 0, EINVAL);
  const absl::StatusOr<ImageRef> image = BuildWithEveryCall(calls);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(calls.Calls(MemfdOp::kCreate), 2);
  EXPECT_EQ(fcntl((*image)->memfd(), F_GET_SEALS),
            F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
}

TEST(ImageFailureTest, AKernelThatRefusesTheSharedViewGetsAPrivateOne) {
  // Before Linux 6.7.
  FakeMemfdCalls calls;
  calls.Fail(MemfdOp::kMapReadOnly, 0, EPERM);
  const absl::StatusOr<ImageRef> image = BuildWithEveryCall(calls);
  ASSERT_TRUE(image.ok()) << image.status();
  Bytes expected(3 * kPageBytes);
  std::fill_n(expected.begin() + kPageBytes, kPageBytes, std::byte{1});
  CheckHolds(**image, expected);
  // And when that is refused too, the error is of the second call.
  FakeMemfdCalls again;
  again.Fail(MemfdOp::kMapReadOnly, 0, EPERM);
  again.Fail(MemfdOp::kMapReadOnly, 1, ENOMEM);
  EXPECT_EQ(BuildWithEveryCall(again).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(ImageFailureTest, PagesThatNobodyAskedForAreGivenBack) {
  // As with huge pages in shared memory: a write makes its neighbours resident,
  // also past the end of the file.
  class Generous : public FakeMemfdCalls {
   public:
    MemfdResult Write(int fd, const void* from, size_t bytes,
                      uint64_t offset) noexcept override {
      EXPECT_EQ(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 2 << 20), 0);
      return FakeMemfdCalls::Write(fd, from, bytes, offset);
    }
  };
  Bytes bytes(16 * kPageBytes);
  bytes[5 * kPageBytes] = std::byte{1};
  {
    Generous calls;
    const absl::StatusOr<ImageRef> image =
        ImageFromBytes({.name = "m", .size_bytes = bytes.size()}, bytes, calls);
    ASSERT_TRUE(image.ok()) << image.status();
    CheckHolds(**image, bytes);
    EXPECT_EQ(calls.Calls(MemfdOp::kPunchHole), 3);
  }
  // Up to the end of a huge page, where there is nothing past it.
  bytes.resize(2 << 20);
  {
    Generous calls;
    const absl::StatusOr<ImageRef> image =
        ImageFromBytes({.name = "m", .size_bytes = bytes.size()}, bytes, calls);
    ASSERT_TRUE(image.ok()) << image.status();
    CheckHolds(**image, bytes);
    EXPECT_EQ(calls.Calls(MemfdOp::kPunchHole), 2);
  }
}

void SetLimit(decltype(RLIMIT_AS) resource, rlim_t value) {
  struct rlimit limit = {};
  limit.rlim_cur = value;
  limit.rlim_max = value;
  setrlimit(resource, &limit);
}

// Each in a process of its own, which ends with the error on stderr.
void BuildAndDie(uint64_t size_bytes) {
  const absl::StatusOr<ImageRef> image =
      ImageFromBytes({.name = "m", .size_bytes = size_bytes}, Fill(1, 1));
  std::fprintf(stderr, "%s", image.status().ToString().c_str());
  _exit(image.ok() ? 0 : 3);
}

TEST(ImageLimitsDeathTest, AFullDescriptorTable) {
  EXPECT_EXIT(
      {
        SetLimit(RLIMIT_NOFILE, 20);
        while (dup(0) >= 0) {
        }
        BuildAndDie(4096);
      },
      testing::ExitedWithCode(3),
      "RESOURCE_EXHAUSTED: image 'm': memfd_create failed with errno 24; close "
      "descriptors or raise RLIMIT_NOFILE .ulimit -n.: Too many open files");
}

TEST(ImageLimitsDeathTest, AFileSizeLimit) {
  EXPECT_EXIT(
      {
        SetLimit(RLIMIT_FSIZE, 65536);
        BuildAndDie(65537);
      },
      testing::ExitedWithCode(3),
      "RESOURCE_EXHAUSTED: image 'm': size_bytes 65537 exceeds RLIMIT_FSIZE "
      "65536, which holds for a memfd too; raise it .ulimit -f.");
}

TEST(ImageLimitsDeathTest, AnAddressSpaceLimit) {
  if (kSanitized) GTEST_SKIP() << "address space, under a sanitizer";
  const auto limit_and_build = [](uint64_t room_bytes) {
    std::ifstream statm("/proc/self/statm");
    uint64_t pages = 0;
    statm >> pages;
    SetLimit(RLIMIT_AS, pages * kPageBytes + room_bytes);
    BuildAndDie(kMaxImageBytes);
  };
  EXPECT_EXIT(
      limit_and_build(16 << 20), testing::ExitedWithCode(3),
      "RESOURCE_EXHAUSTED: image 'm': mmap of 33554432 bytes for a page "
      "map of 268435456 pages failed with errno 12; RLIMIT_AS .ulimit -v. is "
      "[0-9]+ bytes, of which [0-9]+ are used: raise it: Cannot allocate "
      "memory");
  EXPECT_EXIT(limit_and_build(80 << 20), testing::ExitedWithCode(3),
              "RESOURCE_EXHAUSTED: image 'm': mmap of 1099511627776 bytes "
              "failed with errno 12; free memory, or raise RLIMIT_AS");
}

TEST(ImageFromWriterTest, PutsInAnyOrderAndTheLastOneWins) {
  const std::vector<std::byte> ones(kPageBytes, std::byte{1});
  const std::vector<std::byte> twos(10, std::byte{2});
  const absl::StatusOr<ImageRef> image = ImageFromWriter(
      {.name = "written", .size_bytes = 3 * kPageBytes},
      [&](ImagePut put) -> absl::Status {
        absl::Status status = put(2 * kPageBytes, ones);
        if (status.ok()) status = put(2 * kPageBytes - 5, twos);
        EXPECT_THAT(std::string(put(3 * kPageBytes - 9, twos).message()),
                    testing::HasSubstr("image 'written': write of offset 12279 "
                                       "+ 10 bytes exceeds size_bytes 12288"));
        EXPECT_FALSE(put(~uint64_t{0}, twos).ok());
        return status;
      });
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->stored_pages(), 2);
  EXPECT_EQ((*image)->PageBytes(PageIndex(2))[4], std::byte{2});
  EXPECT_EQ((*image)->PageBytes(PageIndex(2))[5], std::byte{1});
  EXPECT_EQ(ImageFromWriter({.size_bytes = 1},
                            [](ImagePut) { return absl::CancelledError("no"); })
                .status(),
            absl::CancelledError("no"));
}

}  // namespace
}  // namespace firsttouch
