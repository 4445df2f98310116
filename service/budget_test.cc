// What idle slots keep, and how they give it back.

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;

constexpr uint64_t kPages = 64;
constexpr uint64_t kSize = kPages * kPageBytes;
constexpr uint32_t kSlots = 16;

// Private bytes of the mappings in [first, first + bytes), as smaps reports
// them.
uint64_t PrivateBytes(uintptr_t first, uint64_t bytes) {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  uint64_t sum = 0;
  while (std::getline(smaps, line)) {
    uintptr_t from = 0;
    uintptr_t to = 0;
    char dash = 0;
    std::istringstream words(line);
    if (words >> std::hex >> from >> dash >> to && dash == '-') {
      inside = from >= first && to <= first + bytes;
      continue;
    }
    uint64_t kib = 0;
    std::string name;
    std::istringstream field(line);
    // Not the bytes of an image, which do not belong to one slot.
    if (inside && field >> name >> kib &&
        (name == "Anonymous:" || name == "Swap:")) {
      sum += kib * 1024;
    }
  }
  return sum;
}

// Whether any page of a slot is present, private or not.
bool AnyPresent(uintptr_t slot) {
  const UniqueFd pagemap(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  uint64_t entries[kPages];
  EXPECT_EQ(pread(pagemap.get(), entries, sizeof(entries),
                  static_cast<off_t>(slot / kPageBytes * sizeof(uint64_t))),
            static_cast<ssize_t>(sizeof(entries)));
  constexpr uint64_t kPresent = uint64_t{1} << 63;
  return std::any_of(std::begin(entries), std::end(entries),
                     [](uint64_t entry) { return (entry & kPresent) != 0; });
}

class BudgetTest : public testing::TestWithParam<Way> {
 protected:
  void Make(std::optional<uint64_t> budget, Kernel* kernel = nullptr,
            std::optional<uint64_t> retained_pages_limit = std::nullopt) {
    ServiceOptions options;
    options.name = "budget";
    options.layout = {.instances = slots_,
                      .max_memory_bytes = kSize,
                      .guard_after_bytes = 65536};
    options.supply = Asking(GetParam());
    options.trap_callback = JumpOutOfTrap;
    options.resident_budget_bytes = budget;
    options.retained_pages_limit = retained_pages_limit;
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    absl::StatusOr<std::unique_ptr<Service>> service =
        kernel == nullptr ? Service::Create(options)
                          : CreateService(options, *kernel);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  Memory Acquire() {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image_, .size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  // Holds all slots at once, changes some pages of each, and releases them in
  // the order of their numbers.
  void UseAll() {
    std::vector<Memory> held;
    for (uint32_t i = 0; i < slots_; ++i) {
      held.push_back(Acquire());
      ASSERT_EQ(FirstDifference(held[i], InitialBytes(image_, kSize)),
                std::nullopt);
      for (uint64_t page : {1, 2, 20}) Store(held[i], page * kPageBytes, 1);
    }
    for (Memory& memory : held) ASSERT_EQ(memory.Release(), absl::OkStatus());
  }

  uint64_t InSmaps() const {
    return PrivateBytes(service_->base(),
                        service_->layout().reservation_bytes());
  }

  const ImageRef image_ = PatternImage("budget", 16);
  uint32_t slots_ = kSlots;
  FakeKernel kernel_;
  std::unique_ptr<Service> service_;
};

INSTANTIATE_TEST_SUITE_P(AllWays, BudgetTest, AllWays(), WayName);

TEST_P(BudgetTest, TrimGivesBackAllThatIdleSlotsHave) {
  Make(std::nullopt);
  if (service_ == nullptr) return;
  for (int i = 0; i < 4; ++i) UseAll();
  Memory held = Acquire();
  Store(held, 3 * kPageBytes, 0x77);
  const uint64_t idle = service_->Stats().idle_private_bytes;
  absl::StatusOr<uint64_t> bytes = service_->Trim();
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, idle);
  EXPECT_EQ(service_->Stats().idle_private_bytes, 0u);
  EXPECT_EQ(service_->Stats().pages_trimmed, idle / kPageBytes);
  // A memory that is held is left alone; it has one slot's pages and no more.
  EXPECT_EQ(Load(held, 3 * kPageBytes), 0x77);
  EXPECT_LE(InSmaps(), kSize);
  EXPECT_EQ(held.Release(), absl::OkStatus());
  UseAll();
}

TEST_P(BudgetTest, WhatIdleSlotsKeepIsWhatSmapsSays) {
  Make(std::nullopt);
  if (service_ == nullptr) return;
  for (int i = 0; i < 3; ++i) UseAll();
  EXPECT_EQ(service_->Stats().idle_private_bytes, InSmaps());
}

TEST_P(BudgetTest, ABudgetOfZeroDropsAtRelease) {
  Make(0);
  if (service_ == nullptr) return;
  for (int i = 0; i < 3; ++i) {
    UseAll();
    EXPECT_EQ(InSmaps(), 0u);
    EXPECT_EQ(service_->Stats().idle_private_bytes, 0u);
  }
}

// Where image pages are copied, those that were only read are private to the
// slot.
TEST_P(BudgetTest, ABudgetOfZeroDropsWhatWasOnlyRead) {
  Make(0);
  if (service_ == nullptr) return;
  for (int i = 0; i < 3; ++i) {
    Memory memory = Acquire();
    ASSERT_EQ(FirstDifference(memory, InitialBytes(image_, kSize)),
              std::nullopt);
    ASSERT_EQ(memory.Release(), absl::OkStatus());
    EXPECT_EQ(InSmaps(), 0u);
    EXPECT_EQ(service_->Stats().idle_private_bytes, 0u);
  }
}

// The same holds for the steady cycle: the last lease after many equal ones
// reads what none of them has read.
TEST_P(BudgetTest, WhatASteadySlotKeepsIsWhatSmapsSaysOnceMoreIsRead) {
  Make(std::nullopt);
  if (service_ == nullptr) return;
  const ImageRef image = PatternImage("two fault-arounds", kPages);
  for (int i = 0; i < 8; ++i) {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image, .size_bytes = kSize});
    ASSERT_TRUE(memory.ok()) << memory.status();
    Store(*memory, kPageBytes, 1);
    // The last round reads something new.
    EXPECT_NE(Load(*memory, (i == 7 ? 20 : 3) * kPageBytes), 0);
    ASSERT_EQ(memory->Release(), absl::OkStatus());
    EXPECT_EQ(service_->Stats().idle_private_bytes, InSmaps()) << i;
  }
}

TEST_P(BudgetTest, TheSlotsReleasedLongestAgoGiveTheirPagesBack) {
  constexpr uint64_t kBudget = 10 * kPageBytes;
  Make(kBudget);
  if (service_ == nullptr) return;
  for (int i = 0; i < 3; ++i) UseAll();
  // Background reclaim may or may not have run already.
  ASSERT_TRUE(service_->Trim().ok());
  EXPECT_LE(service_->Stats().idle_private_bytes, kBudget);
  EXPECT_LE(InSmaps(), kBudget);
  UseAll();
}

// The kernel delays the pool's own thread while it gives pages back: Trim()
// includes the slots that this thread has taken on.
TEST_P(BudgetTest, TrimEndsWhenThePoolsOwnThreadHasGivenItsPagesBack) {
  if (GetParam().supply == Supply::kMappingsDrop) {
    GTEST_SKIP() << "nothing is kept that could be trimmed";
  }
  constexpr uint64_t kBudget = 10 * kPageBytes;
  std::atomic<bool> held_up = false;
  absl::Notification dropping;
  absl::Notification trimming;
  const auto hold_up = [&](const FakeKernel::Call&) {
    // Do not delay the handler threads: this thread waits for them.
    char name[16] = {};
    pthread_getname_np(pthread_self(), name, sizeof(name));
    if (!absl::StartsWith(name, "ft-trim:")) return;
    if (!held_up.exchange(true)) dropping.Notify();
    // The wait has a limit: a release that parks its slot may wait for the slot
    // that it replaces.
    trimming.WaitForNotificationWithTimeout(absl::Milliseconds(100));
    // Long enough for a Trim() that does not wait to end.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  Make(kBudget, &kernel_);
  if (service_ == nullptr) return;
  kernel_.Hook(FakeKernel::Op::kMadvise, hold_up);
  kernel_.Hook(FakeKernel::Op::kProcessMadvise, hold_up);
  UseAll();
  dropping.WaitForNotification();
  trimming.Notify();
  ASSERT_TRUE(service_->Trim().ok());
  EXPECT_LE(service_->Stats().idle_private_bytes, kBudget);
  EXPECT_LE(InSmaps(), kBudget);
  service_.reset();  // Its thread calls the hook.
}

// The test calls no Trim(): it ends when the pool's own thread has run.
TEST_P(BudgetTest, BackgroundReclaimKeepsTheBudgetByItself) {
  constexpr uint64_t kBudget = 50 * kPageBytes;
  slots_ = 64;
  Make(kBudget);
  if (service_ == nullptr) return;
  for (int i = 0; i < 2; ++i) {
    UseAll();
    while (service_->Stats().idle_private_bytes > kBudget) {
      std::this_thread::yield();
    }
    EXPECT_LE(InSmaps(), kBudget);
  }
  if (GetParam().supply != Supply::kMappingsDrop) {
    EXPECT_GT(service_->Stats().pages_trimmed, 0u);
  }
  EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
}

// As above, with guests that do the same in each cycle: no slot keeps more than
// before, so that only their releases show that it is too much.
TEST_P(BudgetTest, BackgroundReclaimKeepsTheBudgetWhereNothingGrows) {
  // The budget is enough for either of two slots.
  const bool copied =
      !GetParam().by_mappings() && GetParam().backing == Backing::kCopied;
  const uint64_t budget = (copied ? 18 : 4) * kPageBytes;
  Make(budget);
  if (service_ == nullptr) return;
  for (int i = 0; i < 6; ++i) {
    Memory first = Acquire();
    Memory second = Acquire();
    for (uint64_t page : {1, 2, 20}) {
      Store(first, page * kPageBytes, 1);
      Store(second, page * kPageBytes, 1);
    }
    ASSERT_EQ(first.Release(), absl::OkStatus());
    ASSERT_EQ(second.Release(), absl::OkStatus());
    while (service_->Stats().idle_private_bytes > budget) {
      std::this_thread::yield();
    }
  }
  EXPECT_LE(InSmaps(), budget);
}

TEST_P(BudgetTest, KeepsTheSlotsThatWereReleasedLast) {
  // A slot keeps three pages or, where they are copied, one fault-around range
  // for each page that is written.
  const bool copied =
      !GetParam().by_mappings() && GetParam().backing == Backing::kCopied;
  // About five of 16 slots fit.
  Make((copied ? 5 * 18 : 5 * 3) * kPageBytes);
  if (service_ == nullptr) return;
  for (int i = 0; i < 3; ++i) UseAll();
  std::vector<Memory> held;
  std::vector<uintptr_t> bases;
  for (uint32_t i = 0; i < kSlots; ++i) {
    held.push_back(Acquire());
    for (uint64_t page : {1, 2, 20}) Store(held[i], page * kPageBytes, 1);
  }
  // Releases the slots out of the order of their numbers.
  for (const uint32_t i :
       {3, 15, 0, 7, 10, 8, 1, 2, 14, 9, 4, 13, 5, 12, 6, 11}) {
    bases.push_back(reinterpret_cast<uintptr_t>(held[i].base()));
    ASSERT_EQ(held[i].Release(), absl::OkStatus());
  }
  ASSERT_TRUE(service_->Trim().ok());
  if (GetParam().supply == Supply::kMappingsDrop) {
    EXPECT_EQ(InSmaps(), 0u);
    return;
  }
  EXPECT_TRUE(AnyPresent(bases.back()));
  EXPECT_FALSE(AnyPresent(bases.front()));
  for (size_t i = 1; i < bases.size(); ++i) {
    EXPECT_TRUE(AnyPresent(bases[i]) || !AnyPresent(bases[i - 1]))
        << "release " << i - 1 << " still has pages, " << i << " has none";
  }
}

// Slots that are emptied at release because they keep too much, or that were
// trimmed, report what they really keep.
TEST_P(BudgetTest, WhatEmptiedSlotsKeepIsWhatSmapsSays) {
  Make(std::nullopt, nullptr, 40);
  if (service_ == nullptr) return;
  for (int i = 0; i < 3; ++i) UseAll();
  ASSERT_TRUE(service_->Trim().ok());
  EXPECT_EQ(InSmaps(), 0u);
  for (int i = 0; i < 3; ++i) {
    UseAll();
    EXPECT_EQ(service_->Stats().idle_private_bytes, InSmaps()) << i;
  }
  for (int i = 0; i < 3; ++i) {
    Memory memory = Acquire();
    // The second round is over the limit.
    for (uint64_t page = 0; page < (i == 1 ? 48 : 3); ++page) {
      Store(memory, page * kPageBytes, 1);
    }
    ASSERT_EQ(memory.Release(), absl::OkStatus());
    EXPECT_EQ(service_->Stats().idle_private_bytes, InSmaps()) << i;
  }
}

TEST_P(BudgetTest, TrimsManySlotsWithFewCalls) {
  Make(std::nullopt, &kernel_);
  if (service_ == nullptr) return;
  for (int i = 0; i < 3; ++i) UseAll();
  const uint64_t idle = service_->Stats().idle_private_bytes;
  if (idle == 0) GTEST_SKIP() << "keeps nothing";
  kernel_.ResetCalls();
  const uint64_t before = service_->Stats().kernel_calls;
  EXPECT_EQ(service_->Trim().value(), idle);
  EXPECT_EQ(service_->Stats().kernel_calls - before, kernel_.TotalCalls());
  if (kernel_.Calls(FakeKernel::Op::kMadvise) > 1) {
    GTEST_SKIP() << "no process_madvise(MADV_DONTNEED) on oneself: Linux 6.13";
  }
  EXPECT_EQ(kernel_.TotalCalls(), 1u);
  EXPECT_EQ(kernel_.Calls(FakeKernel::Op::kProcessMadvise), 1u);
}

// Kernels before 6.13 take no batch.
TEST_P(BudgetTest, TrimsOneByOneWhereTheKernelTakesNoBatch) {
  Make(std::nullopt, &kernel_);
  if (service_ == nullptr) return;
  kernel_.Fail(FakeKernel::Op::kProcessMadvise, FakeKernel::kEvery,
               CallResult{0, EINVAL});
  for (int i = 0; i < 3; ++i) UseAll();
  const uint64_t idle = service_->Stats().idle_private_bytes;
  EXPECT_EQ(service_->Trim().value(), idle);
  EXPECT_EQ(InSmaps(), 0u);
  UseAll();
}

TEST_P(BudgetTest, AFailedTrimQuarantinesTheSlotAndTrimsTheOthers) {
  Make(std::nullopt, &kernel_);
  if (service_ == nullptr) return;
  for (int i = 0; i < 3; ++i) UseAll();
  if (service_->Stats().idle_private_bytes == 0) {
    GTEST_SKIP() << "keeps nothing";
  }
  // The kernel stops at the first slot, and says why.
  kernel_.Fail(FakeKernel::Op::kProcessMadvise, 1, CallResult{0, ENOMEM});
  kernel_.Fail(FakeKernel::Op::kMadvise, 1, CallResult{0, ENOMEM});
  absl::StatusOr<uint64_t> bytes = service_->Trim();
  EXPECT_THAT(std::string(bytes.status().message()),
              HasSubstr("MADV_DONTNEED of"));
  kernel_.Clear(FakeKernel::Op::kMadvise);
  EXPECT_EQ(service_->Stats().idle_private_bytes, 0u);
  // One slot fewer, and all others are as they should be.
  std::vector<Memory> held;
  for (uint32_t i = 0; i + 1 < kSlots; ++i) {
    held.push_back(Acquire());
    ASSERT_EQ(FirstDifference(held[i], InitialBytes(image_, kSize)),
              std::nullopt);
  }
  EXPECT_FALSE(service_->Acquire({.image = image_, .size_bytes = kSize}).ok());
  EXPECT_EQ(service_->Stats().slots_quarantined, 1u);
}

TEST_P(BudgetTest, GuestsNeverSeeTheTrimmingOfOthers) {
  Make(5 * kPageBytes);
  if (service_ == nullptr) return;
  std::atomic<bool> stop{false};
  std::thread trimmer([&] {
    while (!stop) {
      EXPECT_TRUE(service_->Trim().ok());
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> guests;
  const std::vector<uint8_t> initial = InitialBytes(image_, kSize);
  for (int t = 0; t < 2; ++t) {
    guests.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        Memory first = Acquire();
        Memory second = Acquire();
        EXPECT_EQ(FirstDifference(first, initial), std::nullopt);
        EXPECT_EQ(FirstDifference(second, initial), std::nullopt);
        for (uint64_t page : {1, 7, 20}) {
          Store(first, page * kPageBytes, 1);
          Store(second, page * kPageBytes, 2);
        }
      }
    });
  }
  for (std::thread& guest : guests) guest.join();
  stop = true;
  trimmer.join();
  EXPECT_EQ(service_->Stats().slots_in_use, 0u);
  EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
}

}  // namespace
}  // namespace firsttouch
