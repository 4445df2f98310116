// Slots that change their image with every lease: each lease finds its own
// image and zeroes, whatever the leases before have left in the slot; and where
// the images are small, a pool comes to need neither the kernel nor a fault.

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/stats.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr uint64_t kMemoryPages = 64;

// A byte of page `page` of image `number`; never zero.
uint8_t ByteOf(uint64_t number, uint64_t page) {
  return static_cast<uint8_t>(1 + (number * 31 + page * 7) % 255);
}

struct TestImage {
  uint64_t number = 0;
  uint64_t pages = 0;
  ImageRef image;

  // Each fifth page is a hole, beginning at another one in each image.
  bool IsHole(uint64_t page) const { return (page + number) % 5 == 0; }
  uint8_t InitialByte(uint64_t page) const {
    return page < pages && !IsHole(page) ? ByteOf(number, page) : 0;
  }
};

TestImage MakeImage(uint64_t number, uint64_t pages) {
  TestImage made{number, pages, nullptr};
  std::vector<std::byte> bytes(pages * kPageBytes);
  for (uint64_t page = 0; page < pages; ++page) {
    memset(bytes.data() + page * kPageBytes, made.InitialByte(page),
           kPageBytes);
  }
  absl::StatusOr<ImageRef> image = ImageFromBytes(
      {.name = absl::StrCat("rotating-", number), .size_bytes = bytes.size()},
      bytes);
  EXPECT_TRUE(image.ok()) << image.status();
  if (image.ok()) made.image = *std::move(image);
  return made;
}

class ImageRotationTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
  }

  void Make(uint32_t slots) {
    ServiceOptions options;
    options.name = "rotation";
    options.layout = {.instances = slots,
                      .max_memory_bytes = kMemoryPages * kPageBytes,
                      .guard_after_bytes = 1 << 20};
    options.supply = Asking(GetParam());
    options.trap_callback = JumpOutOfTrap;
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(GetParam(), options);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  Memory Acquire(const TestImage& image, uint64_t pages) {
    absl::StatusOr<Memory> memory = service_->Acquire(
        {.image = image.image, .size_bytes = pages * kPageBytes});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  std::unique_ptr<Service> service_;
};

TEST_P(ImageRotationTest, EachLeaseFindsItsOwnImageAndZeroes) {
  Make(/*slots=*/3);
  std::vector<TestImage> images = {TestImage()};  // Zeroes alone.
  for (uint64_t i = 1; i < 24; ++i) {
    // Mostly small ones.
    images.push_back(MakeImage(i, i % 4 == 0 ? 17 + i : 1 + i % 16));
  }
  std::minstd_rand random(7);
  const auto pick = [&](uint64_t below) { return random() % below; };
  const auto expect_initial = [&](const Memory& memory, const TestImage& image,
                                  uint64_t page) {
    for (const uint64_t offset :
         {uint64_t{0}, kPageBytes / 2 + 8, kPageBytes - 1}) {
      ASSERT_EQ(Load(memory, page * kPageBytes + offset),
                image.InitialByte(page))
          << "page " << page << " of image " << image.number;
    }
  };
  for (int lease = 0; lease < 600; ++lease) {
    const TestImage& image = images[pick(images.size())];
    const uint64_t size = image.pages + pick(kMemoryPages - image.pages) + 1;
    Memory memory = Acquire(image, size);
    const bool looks_first = pick(2) == 0;
    for (int touch = 0; touch < 6; ++touch) {
      const uint64_t page = pick(std::min<uint64_t>(size, 24));
      if (looks_first) expect_initial(memory, image, page);
    }
    // No page is written to twice, so that each can be looked at before.
    for (uint64_t page = pick(4); page < std::min<uint64_t>(size, 24);
         page += 1 + pick(7)) {
      expect_initial(memory, image, page);
      for (const uint64_t offset :
           {uint64_t{0}, kPageBytes / 2 + 8, kPageBytes - 1}) {
        Store(memory, page * kPageBytes + offset, 0xee);
      }
    }
    if (HasFatalFailure()) return;
    if (pick(8) == 0) {
      ASSERT_TRUE(memory.Reset().ok());
      for (uint64_t page = 0; page < size; ++page) {
        expect_initial(memory, image, page);
      }
    }
    if (HasFatalFailure()) return;
    if (pick(40) == 0 && image.image != nullptr) {
      // Its slots are unbound.
      const uint64_t number = image.number;
      const uint64_t pages = image.pages;
      ASSERT_TRUE(memory.Release().ok());
      images[number] = TestImage();
      images[number] = MakeImage(number, pages);
    }
  }
}

TEST_P(ImageRotationTest, SmallImagesComeToNeedNeitherAFaultNorTheKernel) {
  if (GetParam().by_mappings()) {
    GTEST_SKIP() << "a mapping is made anew for each image";
  }
  if (GetParam().tracking == Tracking::kAsync) {
    GTEST_SKIP() << "the kernel tracks mapped images alone";
  }
  Make(/*slots=*/1);
  std::vector<TestImage> images;
  for (uint64_t i = 0; i < 8; ++i) images.push_back(MakeImage(i, 16));
  const auto run_all = [&] {
    for (const TestImage& image : images) {
      const Memory memory = Acquire(image, 20);
      for (const uint64_t page : {1, 4, 11}) {
        Store(memory, page * kPageBytes, 0xee);
      }
      ASSERT_EQ(Load(memory, 4 * kPageBytes + 1), image.InitialByte(4));
    }
  };
  for (int round = 0; round < 6; ++round) run_all();
  const ServiceStats before = service_->Stats();
  for (int round = 0; round < 5; ++round) run_all();
  const ServiceStats after = service_->Stats();
  EXPECT_EQ(after.binds - before.binds, 5 * images.size());
  EXPECT_EQ(after.faults(), before.faults());
  EXPECT_EQ(after.kernel_calls, before.kernel_calls);
}

// Somebody unmaps a page of a slot that nobody has. Whoever acquires memory
// from then on gets an error, or memory as it must be.
TEST_P(ImageRotationTest, APageThatIsLostWhileItsSlotIsIdleIsNeverReplaced) {
  constexpr uint64_t kPages = 8;
  constexpr uint64_t kPage = 3;
  const TestImage images[] = {MakeImage(1, kPages), MakeImage(3, kPages)};
  Make(/*slots=*/1);
  std::byte* lost = nullptr;
  for (const TestImage& image : {images[0], images[1], images[0]}) {
    Memory memory = Acquire(image, kPages);
    Store(memory, kPage * kPageBytes, 99);
    lost = memory.base() + kPage * kPageBytes;
    ASSERT_TRUE(memory.Release().ok());
  }
  ASSERT_EQ(munmap(lost, kPageBytes), 0);
  for (int i = 0; i < 6; ++i) {
    const TestImage& image = images[(i + 1) % 2];
    absl::StatusOr<Memory> memory = service_->Acquire(
        {.image = image.image, .size_bytes = kPages * kPageBytes});
    if (!memory.ok()) continue;
    for (uint64_t page = 0; page < kPages; ++page) {
      EXPECT_EQ(Load(*memory, page * kPageBytes), image.InitialByte(page))
          << "page " << page << " of lease " << i;
    }
    EXPECT_TRUE(
        TrapOf([&] { Load(*memory, kPages * kPageBytes); }).has_value());
    Store(*memory, kPage * kPageBytes, 98);
    memory->Release().IgnoreError();
    // Smaller than the page is far, in turns.
    absl::StatusOr<Memory> smaller =
        service_->Acquire({.size_bytes = kPage * kPageBytes});
    if (!smaller.ok()) continue;
    EXPECT_TRUE(
        TrapOf([&] { Load(*smaller, kPage * kPageBytes); }).has_value());
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, ImageRotationTest, AllWays(), WayName);

}  // namespace
}  // namespace firsttouch
