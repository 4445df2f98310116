// Pages that have stopped changing are given back, those of several slots with
// one call, and never those of a leased slot.

#include <cerrno>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

constexpr uint64_t kPages = 64;
constexpr uint64_t kSize = kPages * kPageBytes;
// A sampling window has two cycles.
constexpr uint32_t kRetainedCycles = 4;
constexpr int kWindow = 2;
// The pages that slot 0 and slot 1 write at first: too few to be worth a call,
// and enough.
const std::vector<uint64_t> kFew = {1, 3, 5};
const std::vector<uint64_t> kMany = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18};
const std::vector<uint64_t> kAlways = {40};

class DemotionTest : public testing::Test {
 protected:
  void SetUp() override {
    ServiceOptions options;
    options.name = "demotion";
    options.layout = {
        .instances = 2, .max_memory_bytes = kSize, .guard_after_bytes = 65536};
    options.supply = AnySupply{{.tracking = Tracking::kSignal}};
    options.retained_cycles = kRetainedCycles;
    options.trap_callback = JumpOutOfTrap;
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(options, kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
    if (service_->Describe().find("userfaultfd:") == std::string::npos) {
      GTEST_SKIP() << "nothing is learned without userfaultfd";
    }
  }

  Memory Acquire() {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image_, .size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  // Holds both slots at once; each guest writes the pages of its slot. Slot 0
  // is released first.
  void Cycle(const std::vector<uint64_t>& of_slot_0,
             const std::vector<uint64_t>& of_slot_1) {
    Memory first = Acquire();
    Memory second = Acquire();
    if (first.instance() != 0) std::swap(first, second);
    Use(first, of_slot_0);
    Use(second, of_slot_1);
    EXPECT_EQ(first.Release(), absl::OkStatus());
    static_cast<void>(second.Release());
  }

  void Use(const Memory& memory, const std::vector<uint64_t>& pages) {
    EXPECT_EQ(FirstDifference(memory, InitialBytes(image_, kSize)),
              std::nullopt);
    for (const uint64_t page : pages) Store(memory, page * kPageBytes, 1);
    for (const uint64_t page : kAlways) Store(memory, page * kPageBytes, 1);
  }

  uint64_t Demoted() const { return service_->Stats().pages_demoted; }

  FakeKernel kernel_;
  const ImageRef image_ = PatternImage("demotion", 32);
  std::unique_ptr<Service> service_;
};

TEST_F(DemotionTest, AnIdleSlotsFewPagesGoAlongWithAnothersMany) {
  for (int i = 0; i < 2 * kWindow; ++i) Cycle(kFew, kMany);
  kernel_.ResetCalls();
  for (int i = 0; i < 4 * kWindow && Demoted() == 0; ++i) Cycle({}, {});
  EXPECT_EQ(Demoted(), kFew.size() + kMany.size());
  EXPECT_EQ(kernel_.Calls(Op::kProcessMadvise), 1);
  // Pages that were dropped come back with their initial bytes, and are learned
  // again.
  for (int i = 0; i < 2 * kWindow; ++i) Cycle(kFew, kMany);
}

TEST_F(DemotionTest, FewPagesOfOneSlotGoByThemselvesInTheEnd) {
  for (int i = 0; i < 2 * kWindow; ++i) Cycle(kFew, {});
  for (int i = 0; i < 4 * kWindow; ++i) Cycle({}, {});
  EXPECT_EQ(Demoted(), 0);
  for (int i = 0; i < 10 * kWindow; ++i) Cycle({}, {});
  EXPECT_EQ(Demoted(), kFew.size());
}

TEST_F(DemotionTest, PagesOfASlotThatSomebodyHasStay) {
  for (int i = 0; i < 2 * kWindow; ++i) Cycle(kFew, kMany);
  // Slot 0 is ahead: it puts off its cold pages.
  for (int i = 0; i < 3 * kWindow; ++i) Cycle({}, kMany);
  ASSERT_EQ(Demoted(), 0);
  Memory held = Acquire();
  Memory other = Acquire();
  if (held.instance() != 0) std::swap(held, other);
  for (const uint64_t page : kFew) Store(held, page * kPageBytes, 77);
  EXPECT_EQ(other.Release(), absl::OkStatus());
  for (int i = 0; i < 5 * kWindow && Demoted() == 0; ++i) {
    Memory memory = Acquire();
    Use(memory, {});
  }
  EXPECT_EQ(Demoted(), kMany.size());
  for (const uint64_t page : kFew) {
    EXPECT_EQ(Load(held, page * kPageBytes), 77) << page;
  }
}

TEST_F(DemotionTest, PagesThatChangeAgainMeanwhileStay) {
  for (int i = 0; i < 2 * kWindow; ++i) Cycle(kFew, kMany);
  for (int i = 0; i < 3 * kWindow; ++i) Cycle({}, kMany);
  ASSERT_EQ(Demoted(), 0);
  // Slot 1 gives up its pages while slot 0 writes one of its own again, in the
  // same sampling window.
  for (int i = 0; i < 4 * kWindow && Demoted() == 0; ++i) Cycle({kFew[1]}, {});
  EXPECT_EQ(Demoted(), kMany.size() + kFew.size() - 1);
}

TEST_F(DemotionTest, AFailureQuarantinesTheSlotsWhosePagesMayStillBeThere) {
  if (!HasPagemapScan()) {
    GTEST_SKIP() << "without PAGEMAP_SCAN (Linux 6.7) each release drops pages";
  }
  for (int i = 0; i < 2 * kWindow; ++i) Cycle(kFew, kMany);
  kernel_.Fail(Op::kProcessMadvise, FakeKernel::kEvery, CallResult{0, EINVAL});
  kernel_.Fail(Op::kMadvise, FakeKernel::kEvery, CallResult{0, ENOMEM});
  for (int i = 0; i < 4 * kWindow && service_->Stats().slots_quarantined == 0;
       ++i) {
    Cycle({}, {});
  }
  // A quarantined free slot is taken out when an acquire would get it.
  EXPECT_FALSE(service_->Acquire({.image = image_, .size_bytes = kSize}).ok());
  EXPECT_EQ(service_->Stats().slots_quarantined, 2);
  EXPECT_EQ(Demoted(), 0);
}

}  // namespace
}  // namespace firsttouch
