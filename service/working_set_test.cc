// What guests of an image teach its working set, and what the next process
// learns from it.

#include "firsttouch/init/working_set.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_store.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint64_t kImagePages = 200;
constexpr uint64_t kMemoryPages = 300;
// A page that PatternImage does not store.
constexpr uint64_t kHole = 150;

ImageRef TestImage() { return PatternImage("guest", kImagePages, {kHole}); }

// What every guest does: it reads and writes, in the image and behind it.
uint64_t Request(const Memory& memory) {
  uint64_t sum = 0;
  for (uint64_t page : {1, 2, 40, 41, 100, 190, 250}) {
    sum += Load(memory, page * kPageBytes);
  }
  sum += Load(memory, kHole * kPageBytes);
  for (uint64_t page : {3, 60, 199, 270}) {
    Store(memory, page * kPageBytes + 8, 7);
  }
  return sum;
}

uint64_t KernelFaults() {
  rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return static_cast<uint64_t>(usage.ru_minflt + usage.ru_majflt);
}

bool IsIn(const WorkingSet::Words& words, uint64_t page) {
  return page / 64 < words.size() && (words[page / 64] >> (page % 64) & 1) != 0;
}

class WorkingSetTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
  }

  absl::StatusOr<std::unique_ptr<Service>> MakeService() {
    ServiceOptions options;
    options.name = "working-set";
    options.layout = {.instances = 2,
                      .max_memory_bytes = kMemoryPages * kPageBytes,
                      .guard_after_bytes = 1 << 20};
    options.supply = Asking(GetParam());
    return Service::Create(options);
  }

  // The number of faults, however they are resolved, that the first request of
  // a new pool takes.
  uint64_t FaultsOfFirstRequest(const ImageRef& image) {
    absl::StatusOr<std::unique_ptr<Service>> service = MakeService();
    EXPECT_TRUE(service.ok()) << service.status();
    absl::StatusOr<Memory> memory = (*service)->Acquire(
        {.image = image, .size_bytes = kMemoryPages * kPageBytes});
    EXPECT_TRUE(memory.ok()) << memory.status();
    const uint64_t ours = (*service)->Stats().faults();
    const uint64_t kernels = KernelFaults();
    Request(*memory);
    return (*service)->Stats().faults() - ours + KernelFaults() - kernels;
  }

  // Runs some guests, one after the other.
  void Run(const ImageRef& image, int guests) {
    absl::StatusOr<std::unique_ptr<Service>> service = MakeService();
    ASSERT_TRUE(service.ok()) << service.status();
    for (int i = 0; i < guests; ++i) {
      absl::StatusOr<Memory> memory = (*service)->Acquire(
          {.image = image, .size_bytes = kMemoryPages * kPageBytes});
      ASSERT_TRUE(memory.ok()) << memory.status();
      Request(*memory);
      ASSERT_TRUE(memory->Release().ok());
    }
  }

  // The image as another process would have it: through a file.
  ImageRef Reopened(const ImageRef& image) { return FromFile(image); }

  bool learns() const {
    return GetParam().supply != Supply::kMappingsDrop &&
           GetParam().tracking != Tracking::kAsync;
  }
};

INSTANTIATE_TEST_SUITE_P(AllWays, WorkingSetTest, AllWays(), WayName);

TEST_P(WorkingSetTest, TheFirstRequestAfterAStartIsAsGoodAsTheThousandth) {
  if (!learns()) GTEST_SKIP() << "nothing is learned here";
  const ImageRef image = TestImage();
  // Runs once beforehand, so that only the memory faults below.
  FaultsOfFirstRequest(Reopened(image));

  const uint64_t without = FaultsOfFirstRequest(Reopened(image));
  EXPECT_GT(without, 5u);
  Run(image, 3);
  EXPECT_EQ(FaultsOfFirstRequest(Reopened(image)), 0u);
  // In this process a slot that was never leased behaves the same.
  EXPECT_EQ(FaultsOfFirstRequest(image), 0u);
}

TEST_P(WorkingSetTest, WhatIsReadAndWhatIsWrittenAreLearnedApart) {
  if (!learns()) GTEST_SKIP() << "nothing is learned here";
  const ImageRef image = TestImage();
  Run(image, 3);
  const WorkingSet::Words written = image->working_set().written();
  const WorkingSet::Words read = image->working_set().read();
  for (uint64_t page : {3, 60, 199, 270}) EXPECT_TRUE(IsIn(written, page));
  for (uint64_t page : {1, 2, 40, 41, 100, 190, 250, int{kHole}}) {
    EXPECT_TRUE(IsIn(read, page)) << page;
  }
  // No guest touched pages near these.
  EXPECT_FALSE(IsIn(read, 130));
  EXPECT_FALSE(IsIn(written, 130));
  EXPECT_FALSE(IsIn(read, 290));
}

TEST_P(WorkingSetTest, WhoOnlyReadsTeachesToo) {
  if (!learns()) GTEST_SKIP() << "nothing is learned here";
  const ImageRef image = TestImage();
  absl::StatusOr<std::unique_ptr<Service>> service = MakeService();
  ASSERT_TRUE(service.ok()) << service.status();
  // The first lease may be profiled, and taught by what the kernel knows.
  for (uint64_t page : {20, 120}) {
    absl::StatusOr<Memory> memory = (*service)->Acquire(
        {.image = image, .size_bytes = kMemoryPages * kPageBytes});
    ASSERT_TRUE(memory.ok()) << memory.status();
    Load(*memory, page * kPageBytes);
    ASSERT_TRUE(memory->Release().ok());
    EXPECT_TRUE(IsIn(image->working_set().read(), page)) << page;
  }
  EXPECT_FALSE(IsIn(image->working_set().read(), 180));
  EXPECT_THAT(image->working_set().written(), IsEmpty());
}

TEST_P(WorkingSetTest, ReplayedPagesTeachNothing) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "nothing is learned here";
  const ImageRef image = TestImage();
  // The set has more pages than guests touch.
  image->working_set().Replace(std::vector<uint64_t>{0b1111'1000},
                               std::vector<uint64_t>{0xffff'ffff});
  const uint64_t version = image->working_set().version();
  absl::StatusOr<std::unique_ptr<Service>> service = MakeService();
  ASSERT_TRUE(service.ok()) << service.status();
  for (int i = 0; i < 5; ++i) {
    absl::StatusOr<Memory> memory = (*service)->Acquire(
        {.image = image, .size_bytes = kMemoryPages * kPageBytes});
    ASSERT_TRUE(memory.ok()) << memory.status();
    Load(*memory, 10 * kPageBytes);
    ASSERT_TRUE(memory->Release().ok());
  }
  EXPECT_EQ(image->working_set().version(), version);
  EXPECT_THAT(image->working_set().read(), ElementsAre(0xffff'ffff));
  EXPECT_THAT(image->working_set().written(), ElementsAre(0b1111'1000));
}

TEST_P(WorkingSetTest, APageThatIsReplayedHasItsInitialBytes) {
  const ImageRef image = TestImage();
  image->working_set().Replace(
      std::vector<uint64_t>{~uint64_t{0}, 5, ~uint64_t{0} << 10},
      std::vector<uint64_t>{~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0},
                            ~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}});
  const std::vector<uint8_t> initial =
      InitialBytes(image, kMemoryPages * kPageBytes);
  for (const ImageRef& one : {image, Reopened(image)}) {
    absl::StatusOr<std::unique_ptr<Service>> service = MakeService();
    ASSERT_TRUE(service.ok()) << service.status();
    for (int i = 0; i < 3; ++i) {
      absl::StatusOr<Memory> memory = (*service)->Acquire(
          {.image = one, .size_bytes = kMemoryPages * kPageBytes});
      ASSERT_TRUE(memory.ok()) << memory.status();
      EXPECT_EQ(FirstDifference(*memory, initial), std::nullopt);
      for (uint64_t page = i; page < kMemoryPages; page += 3) {
        Store(*memory, page * kPageBytes + 1, 99);
      }
      ASSERT_TRUE(memory->Release().ok());
    }
  }
}

TEST_P(WorkingSetTest, AStoreKeepsWhatTenantsTaught) {
  if (!learns()) GTEST_SKIP() << "nothing is learned here";
  std::string directory = testing::TempDir() + "/store.XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  WorkingSet::Words read;
  {
    absl::StatusOr<std::unique_ptr<ImageStore>> store =
        ImageStore::Open({.directory = directory});
    ASSERT_TRUE(store.ok()) << store.status();
    absl::StatusOr<ImageRef> image = (*store)->Put("guest", *TestImage());
    ASSERT_TRUE(image.ok()) << image.status();
    Run(*image, 3);
    read = (*image)->working_set().read();
    EXPECT_TRUE(IsIn(read, 100));
    *image = nullptr;
    ASSERT_TRUE((*store)->Flush().ok());
  }
  absl::StatusOr<std::unique_ptr<ImageStore>> store =
      ImageStore::Open({.directory = directory});
  ASSERT_TRUE(store.ok()) << store.status();
  absl::StatusOr<ImageRef> image = (*store)->Get("guest");
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ((*image)->working_set().read(), read);
  EXPECT_EQ(FaultsOfFirstRequest(*image), 0u);
}

}  // namespace
}  // namespace firsttouch
