#include "firsttouch/integrations/wasm2c/plain_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "firsttouch/init/image_builder.h"
#include "firsttouch/integrations/wasm2c/runtime.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::wasm2c {
namespace {

constexpr uint64_t kMaxBytes = 1 << 20;

class PlainMemoryTest : public testing::TestWithParam<PlainMethod> {
 protected:
  void SetUp() override {
    auto source = PlainMemorySource::Create(
        {.slots = 1, .max_memory_bytes = kMaxBytes, .method = GetParam()});
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
  }

  std::unique_ptr<GuestMemory> Acquire(ImageRef image, uint64_t size_bytes) {
    std::vector<MemoryRequest> requests = {
        {.image = std::move(image), .size_bytes = size_bytes}};
    auto memories = source_->Acquire(requests);
    EXPECT_TRUE(memories.ok()) << memories.status();
    return std::move(memories->front());
  }

  // An image of `size_bytes`, all of that byte.
  static ImageRef Filled(uint64_t size_bytes, uint8_t byte) {
    const std::vector<std::byte> bytes(size_bytes, std::byte{byte});
    return *ImageFromBytes({.name = "filled", .size_bytes = size_bytes}, bytes);
  }

  // Whether all of [from, to) is that byte.
  static bool AllAre(const GuestMemory& memory, uint64_t from, uint64_t to,
                     uint8_t byte) {
    return std::all_of(memory.base() + from, memory.base() + to,
                       [&](std::byte b) { return b == std::byte{byte}; });
  }

  std::unique_ptr<PlainMemorySource> source_;
};

INSTANTIATE_TEST_SUITE_P(Methods, PlainMemoryTest,
                         testing::Values(PlainMethod::kPrivateMapping,
                                         PlainMethod::kEagerCopy));

TEST_P(PlainMemoryTest, EachHolderFindsItsImageAndZeroes) {
  const ImageRef small = Filled(40960, 1), large = Filled(400000, 2);
  // Every order of two images and none, with sizes that shrink and grow.
  for (int round = 0; round < 27; ++round) {
    const int kind = round % 3 == 0 ? 0 : round / 3 % 3;
    const ImageRef image = kind == 0 ? nullptr : kind == 1 ? small : large;
    const uint64_t image_bytes = image == nullptr ? 0 : image->size_bytes();
    const uint64_t size = 450560 + round % 5 * 65536;
    std::unique_ptr<GuestMemory> memory = Acquire(image, size);
    ASSERT_EQ(memory->size_bytes(), size);
    ASSERT_TRUE(AllAre(*memory, 0, image_bytes, kind)) << round;
    ASSERT_TRUE(AllAre(*memory, image_bytes, size, 0)) << round;
    ASSERT_TRUE(memory->Grow(kMaxBytes).ok());
    ASSERT_TRUE(AllAre(*memory, size, kMaxBytes, 0)) << round;
    std::fill(memory->base(), memory->base() + kMaxBytes, std::byte{0xee});
    if (round % 2 == 0) {
      ASSERT_TRUE(memory->Reset().ok());
      ASSERT_EQ(memory->size_bytes(), size);
      ASSERT_TRUE(AllAre(*memory, 0, image_bytes, kind)) << round;
      ASSERT_TRUE(AllAre(*memory, image_bytes, size, 0)) << round;
    }
  }
  EXPECT_GT(source_->kernel_calls(), 27u);
}

TEST_P(PlainMemoryTest, TouchesOutsideAreTraps) {
  std::unique_ptr<GuestMemory> memory = Acquire(Filled(8192, 3), 65536);
  volatile std::byte* base = memory->base();
  for (uint64_t offset : {uint64_t{65536}, kMaxBytes, kReachBytes - 1}) {
    Trap trap;
    absl::Status error;
    EXPECT_EQ(RunGuarded([&] { (void)base[offset]; }, {}, &trap, &error),
              RunEnd::kTrapped);
    EXPECT_EQ(trap.code, WASM_RT_TRAP_OOB);
    EXPECT_EQ(trap.touch.offset_bytes, static_cast<int64_t>(offset));
    EXPECT_EQ(trap.touch.size_bytes, 65536u);
    EXPECT_FALSE(trap.touch.write);
    EXPECT_EQ(
        RunGuarded([&] { base[offset] = std::byte{1}; }, {}, &trap, &error),
        RunEnd::kTrapped);
    EXPECT_TRUE(trap.touch.write);
  }
}

TEST_P(PlainMemoryTest, SnapshotsKeepTheContents) {
  std::unique_ptr<GuestMemory> memory = Acquire(Filled(8192, 3), 65536);
  memory->base()[60000] = std::byte{9};
  absl::StatusOr<ImageRef> image = memory->Snapshot("now");
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->size_bytes(), 65536u);
  EXPECT_EQ((*image)->stored_pages(), 3u);
  memory.reset();
  memory = Acquire(*image, 65536);
  EXPECT_EQ(memory->base()[60000], std::byte{9});
  EXPECT_EQ(memory->base()[8191], std::byte{3});
}

TEST_P(PlainMemoryTest, ErrorsNameTheValueAndTheRule) {
  std::unique_ptr<GuestMemory> memory = Acquire(nullptr, 65536);
  EXPECT_EQ(memory->Grow(kMaxBytes + 1).message(),
            "new size 1048577 bytes exceeds max_memory_bytes 1048576");
  std::vector<MemoryRequest> requests = {{.size_bytes = 65536}};
  EXPECT_EQ(source_->Acquire(requests).status().message(),
            "all 1 slots are in use");
  requests[0].size_bytes = kMaxBytes + 1;
  EXPECT_EQ(source_->Acquire(requests).status().message(),
            "size_bytes 1048577 exceeds max_memory_bytes 1048576");
}

TEST(PlainMemorySourceTest, RefusesBadOptions) {
  EXPECT_EQ(PlainMemorySource::Create({.slots = 0, .max_memory_bytes = 4096})
                .status()
                .message(),
            "slots is 0: at least 1 is needed");
  EXPECT_EQ(PlainMemorySource::Create({.slots = 1, .max_memory_bytes = 4097})
                .status()
                .message(),
            "max_memory_bytes 4097 is not a multiple of the page size 4096 "
            "from 4096 to 4294901760");
  EXPECT_THAT(
      std::string(PlainMemorySource::Create(
                      {.slots = 1'000'000, .max_memory_bytes = 4096})
                      .status()
                      .message()),
      testing::MatchesRegex("mmap of 8590000128000000 bytes for 1000000 slots "
                            "failed: Cannot allocate memory .errno 12."));
}

TEST(PlainMemorySourceDeathTest, ForeignFaultsAreNotOurs) {
  auto source =
      PlainMemorySource::Create({.slots = 1, .max_memory_bytes = 4096});
  ASSERT_TRUE(source.ok()) << source.status();
  void* forbidden =
      mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(forbidden, MAP_FAILED);
  EXPECT_EXIT(*static_cast<volatile char*>(forbidden) = 1,
              testing::KilledBySignal(SIGSEGV), "");
}

}  // namespace
}  // namespace firsttouch::wasm2c
