// Pages that leases do not change often enough for what memory is worth are
// given back, in every way of tracking; those that every lease changes never.

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/retention.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/service_with_kernel.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr uint64_t kPages = 128;
constexpr uint64_t kSize = kPages * kPageBytes;
constexpr uint64_t kImagePages = 96;
// Each lease changes these, and so many others, one after the other: each of
// the others in one lease of eleven.
const std::vector<uint64_t> kAlways = {2, 40, 90, 110};
constexpr uint64_t kOthers = 8;
constexpr uint64_t kFirstOther = 3;
constexpr uint64_t kOthersAltogether = 88;
// Until what is worth keeping is known, and was acted upon: where all that
// changes is kept, two leases of thirty are counted.
constexpr int kSettled = 40 * kLeasesCounted;

struct Case {
  const char* name;
  std::optional<Tracking> tracking;
};

class MemoryPriceTest : public testing::TestWithParam<Case> {
 protected:
  void Make(uint64_t retained_bytes_per_us) {
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService({.name = "price",
                       .layout = {.instances = 1,
                                  .max_memory_bytes = kSize,
                                  .guard_after_bytes = 65536},
                       .supply = AnySupply{{.tracking = GetParam().tracking}},
                       .trap_callback = JumpOutOfTrap,
                       .retained_bytes_per_us = retained_bytes_per_us},
                      kernel_);
    if (!service.ok() && GetParam().tracking == Tracking::kAsync) {
      GTEST_SKIP() << "not to be had here: " << service.status();
    }
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
    if (IsMappings(service_->supply())) {
      GTEST_SKIP() << "no userfaultfd here: " << service_->Describe();
    }
  }

  Memory Acquire() {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image_, .size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  // A lease that finds the initial bytes where it writes.
  void Cycle(bool others) {
    const Memory memory = Acquire();
    const auto change = [&](uint64_t page) {
      const uint8_t before = Load(memory, page * kPageBytes + 7);
      EXPECT_EQ(before, Initial(page)) << page;
      Store(memory, page * kPageBytes + 7, before + 1);
    };
    for (const uint64_t page : kAlways) change(page);
    for (uint64_t i = 0; others && i < kOthers; ++i) {
      next_other_ = (next_other_ + 1) % kOthersAltogether;
      const uint64_t page = kFirstOther + next_other_;
      if (page != kAlways[1] && page != kAlways[2]) change(page);
    }
  }

  uint8_t Initial(uint64_t page) const {
    return initial_[page * kPageBytes + 7];
  }
  uint64_t KeptPages() const {
    return service_->Stats().idle_private_bytes / kPageBytes;
  }
  // Fewer pages are known to be kept only if some were given back. With
  // asynchronous tracking they are counted now and then, and then were fewer.
  static uint64_t MostOthers() {
    return kOthersAltogether /
           (GetParam().tracking == Tracking::kAsync ? 3 : 2);
  }

  // Forwards all calls. How fast the machine is decides nothing then
  // (UffdSupply::Costs()).
  FakeKernel kernel_;
  const ImageRef image_ = PatternImage("price", kImagePages);
  const std::vector<uint8_t> initial_ = InitialBytes(image_, kSize);
  std::unique_ptr<Service> service_;
  uint64_t next_other_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Trackings, MemoryPriceTest,
                         testing::Values(Case{"Signal", Tracking::kSignal},
                                         Case{"Async", Tracking::kAsync},
                                         Case{"Chosen", std::nullopt}),
                         [](const auto& info) { return info.param.name; });

TEST_P(MemoryPriceTest, ASlotKeepsWhatEachLeaseChangesAndLittleMore) {
  Make(/*retained_bytes_per_us=*/1024);
  if (IsSkipped()) return;
  for (int i = 0; i < kSettled; ++i) Cycle(/*others=*/true);
  EXPECT_GE(KeptPages(), kAlways.size());
  // With asynchronous tracking pages are given back at the end of a window.
  EXPECT_LE(KeptPages(),
            kAlways.size() + 3 * kOthers +
                (GetParam().tracking == Tracking::kAsync ? kOthersAltogether / 2
                                                         : 0));
  EXPECT_GT(service_->Stats().pages_demoted, 0u);
}

TEST_P(MemoryPriceTest, WhatLeasesHaveStoppedChangingIsGivenBack) {
  Make(/*retained_bytes_per_us=*/64 * 1024);
  if (IsSkipped()) return;
  for (int i = 0; i < 100; ++i) Cycle(/*others=*/true);
  EXPECT_GT(KeptPages(), MostOthers());
  for (int i = 0; i < 1000; ++i) Cycle(/*others=*/false);
  EXPECT_EQ(KeptPages(), kAlways.size());
  const Memory memory = Acquire();
  EXPECT_EQ(FirstDifference(memory, initial_), std::nullopt);
}

TEST_P(MemoryPriceTest, WhatEveryLeaseChangesIsNeverGivenBack) {
  // As dear as memory can be.
  Make(/*retained_bytes_per_us=*/1);
  if (IsSkipped()) return;
  if (GetParam().tracking == Tracking::kAsync) {
    GTEST_SKIP() << "no signals to be counted";
  }
  for (int i = 0; i < kSettled; ++i) Cycle(/*others=*/true);
  const auto faults = [&] {
    const ServiceStats stats = service_->Stats();
    return stats.missing_write_faults + stats.missing_read_faults +
           stats.write_protect_faults + stats.minor_faults;
  };
  const uint64_t before = faults();
  for (int i = 0; i < 100; ++i) Cycle(/*others=*/false);
  EXPECT_EQ(faults(), before);
  EXPECT_EQ(KeptPages(), kAlways.size());
}

TEST_P(MemoryPriceTest, DescribeSaysWhatMemoryIsWorth) {
  Make(/*retained_bytes_per_us=*/1234);
  if (IsSkipped()) return;
  EXPECT_THAT(service_->Describe(),
              testing::HasSubstr("retained pages: at most 1234 bytes for each "
                                 "us that they shorten a cycle "
                                 "(retained_bytes_per_us)\n"));
}

TEST_P(MemoryPriceTest, WhereMemoryIsFreeWhatChangesNowAndThenIsKept) {
  Make(/*retained_bytes_per_us=*/0);
  if (IsSkipped()) return;
  EXPECT_THAT(service_->Describe(),
              testing::HasSubstr("retained pages: memory is free"));
  for (int i = 0; i < kSettled; ++i) Cycle(/*others=*/true);
  EXPECT_GT(KeptPages(), MostOthers());
  EXPECT_EQ(service_->Stats().pages_demoted, 0u);
}

}  // namespace
}  // namespace firsttouch
