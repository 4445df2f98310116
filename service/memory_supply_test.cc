// What every supply owes to a Service, as memory_supply.h says it, asked of
// each through that interface.

#include "firsttouch/service/memory_supply.h"

#include <errno.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/accessible.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/supplied_pool.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;
using Op = FakeKernel::Op;

class MemorySupplyTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    pool_.emplace(Asking(GetParam()), kernel_);
    const SupplyOpener open = GetParam().open_supply;
    const absl::Status status =
        pool_->Start(open == nullptr ? &OpenSupply : open);
    ASSERT_TRUE(status.ok()) << status;
  }

  MemorySupply& supply() { return pool_->supply(); }
  SlotState& slot() { return pool_->slot(); }

  void Lease(const ImageRef& image, uint64_t pages) {
    const absl::Status status = pool_->Lease(image, pages);
    ASSERT_TRUE(status.ok()) << status;
  }
  void Grow(uint64_t pages) {
    const absl::Status status = pool_->Grow(pages);
    ASSERT_TRUE(status.ok()) << status;
  }
  void Release(uint64_t most_private_pages = 128) {
    const absl::Status status = pool_->Release(most_private_pages);
    ASSERT_TRUE(status.ok()) << status;
  }

  uint8_t Read(uint64_t page, uint64_t offset = 0) {
    return static_cast<uint8_t>(*pool_->Byte(page, offset));
  }
  void Write(uint64_t page, uint8_t value = 0xee) {
    *pool_->Byte(page, 100) = std::byte{value};
  }
  bool Traps(uint64_t page) {
    volatile std::byte* const byte = pool_->Byte(page);
    return TrapOf([&] { static_cast<void>(*byte); }).has_value();
  }
  bool Accessible(uint64_t page, Access access) {
    return IsAccessible(AddressOf(slot(), page), access);
  }

  // Reads every page below `pages`: those of `image`, and zeroes.
  void ExpectInitialBytes(const ImageRef& image, uint64_t pages) {
    const std::vector<uint8_t> expected =
        InitialBytes(image, pages * kPageBytes);
    for (uint64_t i = 0; i < expected.size(); i += 50) {
      ASSERT_EQ(Read(i / kPageBytes, i % kPageBytes), expected[i])
          << "page " << i / kPageBytes << ", byte " << i % kPageBytes;
    }
  }

  FakeKernel kernel_;
  std::optional<SuppliedPoolForTest> pool_;
  const ImageRef image_ = PatternImage("supplied", 20, {7});
};

TEST_P(MemorySupplyTest, AttachSaysWhatASignalInBoundsComesTo) {
  EXPECT_NE(pool_->fault_pool().resolve_signal, nullptr);
  EXPECT_EQ(pool_->fault_pool().resolve, GetParam().resolve);
  const SupplyTraits traits = supply().traits();
  EXPECT_EQ(traits.kind, GetParam().supply);
  const std::string description = supply().Describe();
  EXPECT_EQ(description.find("supply: "), 0u);
  EXPECT_EQ(description.back(), '\n');
}

TEST_P(MemorySupplyTest, ALeaseHasTheImagesBytesAndZeroesBehind) {
  Lease(image_, 30);
  ExpectInitialBytes(image_, 30);
}

TEST_P(MemorySupplyTest, NoPageBehindTheSizeCanBeTouched) {
  Lease(image_, 30);
  EXPECT_FALSE(Traps(29));
  EXPECT_TRUE(Traps(30));
  EXPECT_TRUE(Traps(127));
  Release();
  // Nor one that the lease before could touch.
  Lease(image_, 25);
  EXPECT_FALSE(Traps(24));
  EXPECT_TRUE(Traps(25));
  EXPECT_TRUE(Traps(29));
}

TEST_P(MemorySupplyTest, ARestoredSlotHasItsInitialBytes) {
  Lease(image_, 30);
  for (int lease = 0; lease < 4; ++lease) {
    for (const uint64_t page : {0, 3, 7, 19, 20, 29}) Write(page);
    Release();
    Lease(image_, 30);
    ExpectInitialBytes(image_, 30);
  }
}

TEST_P(MemorySupplyTest, NoByteOfOneImageIsSeenWithAnother) {
  const ImageRef longer = PatternImage("another one", 28);
  for (const ImageRef& image :
       {image_, longer, image_, ImageRef(), longer, ImageRef(), image_}) {
    Lease(image, 30);
    for (const uint64_t page : {3, 29}) Write(page);
    Release();
    Lease(image, 30);
    ExpectInitialBytes(image, 30);
    Release();
  }
}

TEST_P(MemorySupplyTest, GrowthOpensZeroesAndARestoreTakesThemBack) {
  Lease(image_, 30);
  Grow(50);
  EXPECT_FALSE(Traps(49));
  EXPECT_TRUE(Traps(50));
  EXPECT_EQ(Read(45, 100), 0);
  for (const uint64_t page : {30, 45, 49}) Write(page);
  Release();
  Lease(image_, 30);
  EXPECT_TRUE(Traps(30));
  EXPECT_TRUE(Traps(45));
  Grow(50);
  for (const uint64_t page : {30, 45, 49}) {
    EXPECT_EQ(Read(page, 100), 0) << page;
  }
}

TEST_P(MemorySupplyTest, GrowthToWhatIsThereChangesNothing) {
  Lease(image_, 30);
  Write(29);
  EXPECT_TRUE(supply().Open(slot(), 20).ok());
  EXPECT_EQ(Read(29, 100), 0xee);
}

TEST_P(MemorySupplyTest, WithNoPrivatePageAllowedNoneIsKept) {
  Lease(image_, 30);
  for (const uint64_t page : {3, 25}) Write(page);
  Release(/*most_private_pages=*/0);
  EXPECT_EQ(supply().KeptPages(slot()), 0u);
  Lease(image_, 30);
  ExpectInitialBytes(image_, 30);
}

TEST_P(MemorySupplyTest, WhatMustNotBeRestoredInPlaceIsDropped) {
  Lease(image_, 30);
  for (const uint64_t page : {3, 25}) Write(page);
  slot().exceptions |= kSlotDropped;
  // As the service asks for it.
  Release(/*most_private_pages=*/0);
  EXPECT_EQ(supply().KeptPages(slot()), 0u);
  Lease(image_, 30);
  ExpectInitialBytes(image_, 30);
}

TEST_P(MemorySupplyTest, ATrimmedSlotKeepsNothingAndLosesNothing) {
  Lease(image_, 30);
  for (const uint64_t page : {3, 25}) Write(page);
  Release();
  EXPECT_TRUE(pool_->Trim().ok());
  EXPECT_EQ(supply().KeptPages(slot()), 0u);
  EXPECT_TRUE(pool_->Trim().ok());  // Again, of nothing.
  Lease(image_, 30);
  ExpectInitialBytes(image_, 30);
}

TEST_P(MemorySupplyTest, PrefillClearsTheWishAndChangesNoByte) {
  image_->working_set().LearnWritten(WorkingSet::Words{0b1010});
  image_->working_set().LearnRead(WorkingSet::Words{0b111111});
  ASSERT_TRUE(supply().Bind(slot(), image_, 30).ok());
  slot().prefill_wanted = true;
  slot().kept_pages = 30;
  slot().size_bytes = 30 * kPageBytes;
  supply().Prefill(slot(), 30, 100);
  EXPECT_FALSE(slot().prefill_wanted);
  ExpectInitialBytes(image_, 30);
}

TEST_P(MemorySupplyTest, AnAbandonedSlotIsOneThatWasNeverBoundOnceUnbound) {
  Lease(image_, 30);
  Write(3);
  slot().lifecycle.Move(SlotLifecycle::kReturning);
  slot().size_bytes = 0;
  supply().StopFills(slot());
  Abandon(slot());
  const absl::Status status = supply().Unbind(slot());
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(slot().image_id, 0u);
  slot().remap_wanted = false;
  Lease(nullptr, 30);
  ExpectInitialBytes(nullptr, 30);
  EXPECT_TRUE(Traps(30));
}

TEST_P(MemorySupplyTest, AnAbandonedSlotIsMappedAnewByTheNextBind) {
  Lease(image_, 30);
  Write(3);
  Write(25);
  slot().lifecycle.Move(SlotLifecycle::kReturning);
  slot().size_bytes = 0;
  supply().StopFills(slot());
  Abandon(slot());
  Lease(image_, 30);
  ExpectInitialBytes(image_, 30);
  EXPECT_TRUE(Traps(30));
}

TEST_P(MemorySupplyTest, AMemoryCanBeMadeReadOnlyAndWritableAgain) {
  Lease(image_, 30);
  Write(3);
  ASSERT_TRUE(supply().SetWritable(slot(), false).ok());
  EXPECT_TRUE(Accessible(3, Access::kRead));
  EXPECT_FALSE(Accessible(3, Access::kWrite));
  ASSERT_TRUE(supply().SetWritable(slot(), true).ok());
  EXPECT_TRUE(Accessible(3, Access::kWrite));
  EXPECT_EQ(Read(3, 100), 0xee);
}

TEST_P(MemorySupplyTest, EveryChangedPageIsVisited) {
  Lease(image_, 30);
  for (const uint64_t page : {2, 5, 9, 25}) Read(page);
  for (const uint64_t page : {3, 7, 22}) Write(page);
  ASSERT_TRUE(supply().SetWritable(slot(), false).ok());
  std::vector<bool> visited(30);
  const absl::Status status =
      supply().ForEachChangedPage(slot(), 30, [&](uint64_t page) {
        ASSERT_LT(page, 30u);
        visited[page] = true;
      });
  EXPECT_TRUE(status.ok()) << status;
  ASSERT_TRUE(supply().SetWritable(slot(), true).ok());
  for (const uint64_t page : {3, 7, 22}) EXPECT_TRUE(visited[page]) << page;
}

TEST_P(MemorySupplyTest, NoPageBehindTheEndIsVisited) {
  Lease(image_, 30);
  for (const uint64_t page : {3, 22}) Write(page);
  ASSERT_TRUE(supply().SetWritable(slot(), false).ok());
  EXPECT_TRUE(supply()
                  .ForEachChangedPage(
                      slot(), 10, [](uint64_t page) { EXPECT_LT(page, 10u); })
                  .ok());
  ASSERT_TRUE(supply().SetWritable(slot(), true).ok());
}

TEST_P(MemorySupplyTest, WhatWasMadeReadyTheKernelCanTouch) {
  Lease(image_, 30);
  EXPECT_TRUE(
      supply()
          .MakeReady(slot(), 2 * kPageBytes + 5, 2 * kPageBytes, Access::kRead)
          .ok());
  EXPECT_TRUE(
      supply()
          .MakeReady(slot(), 18 * kPageBytes, 3 * kPageBytes, Access::kWrite)
          .ok());
  for (const uint64_t page : {2, 3, 4}) {
    EXPECT_TRUE(Accessible(page, Access::kRead)) << page;
  }
  for (const uint64_t page : {18, 19, 20}) {
    EXPECT_TRUE(Accessible(page, Access::kWrite)) << page;
  }
  ExpectInitialBytes(image_, 30);
}

TEST_P(MemorySupplyTest, ChangedPagesAreCounted) {
  Lease(image_, 30);
  for (const uint64_t page : {3, 7, 22}) Write(page);
  *pool_->Byte(9, 0) = *pool_->Byte(9, 0);  // Written, and not changed.
  const MemoryPages pages = supply().CountPages(slot());
  EXPECT_EQ(pages.changed, 3u);
  EXPECT_GE(pages.writable, 3u);
  EXPECT_GE(pages.touched, pages.writable);
}

// ---- Errors ----------------------------------------------------------------

// The calls that a bind, a release or a growth may make to change what is
// there. One of them fails, then the next, and so on.
constexpr Op kChanges[] = {Op::kMmap, Op::kMprotect, Op::kMadvise,
                           Op::kRegister, Op::kUnregister};

TEST_P(MemorySupplyTest, AfterABindThatFailedTheNextOneMakesItGood) {
  const ImageRef longer = PatternImage("another one", 28);
  int failed = 0;
  for (const Op op : kChanges) {
    for (uint64_t nth = 1; nth <= 4; ++nth) {
      Lease(longer, 30);
      Write(3);
      Write(25);
      Release();
      kernel_.Fail(op, nth, CallResult{0, ENOMEM});
      const absl::Status status = pool_->Lease(image_, 22);
      kernel_.Clear(op);
      if (status.ok()) {
        Release();
        continue;
      }
      ++failed;
      EXPECT_NE(std::string(status.message()), "");
      Lease(image_, 22);
      ExpectInitialBytes(image_, 22);
      EXPECT_TRUE(Traps(22));
      EXPECT_TRUE(Traps(25));
      Release();
    }
  }
  EXPECT_GT(failed, 0);
}

TEST_P(MemorySupplyTest, AfterAnUnbindThatFailedABindMakesItGood) {
  int failed = 0;
  for (const Op op : kChanges) {
    Lease(image_, 30);
    Write(3);
    Write(25);
    slot().lifecycle.Move(SlotLifecycle::kReturning);
    slot().size_bytes = 0;
    supply().StopFills(slot());
    Abandon(slot());
    kernel_.Fail(op, 1, CallResult{0, ENOMEM});
    failed += !supply().Unbind(slot()).ok();
    kernel_.Clear(op);
    Lease(nullptr, 30);
    ExpectInitialBytes(nullptr, 30);
    EXPECT_TRUE(Traps(30));
    Release();
  }
  EXPECT_GT(failed, 0);
}

TEST_P(MemorySupplyTest, AfterAGrowthThatFailedNothingHasChanged) {
  Lease(image_, 30);
  Write(29);
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  const absl::Status status = pool_->Grow(50);
  kernel_.Clear(Op::kMprotect);
  // Where there is something to open.
  if (!status.ok()) {
    EXPECT_TRUE(Traps(30));
    Grow(50);
  }
  EXPECT_EQ(Read(29, 100), 0xee);
  EXPECT_FALSE(Traps(49));
}

TEST_P(MemorySupplyTest, ATrimThatFailedIsAnError) {
  Lease(image_, 30);
  Write(3);
  Release();
  const PageSpan span = supply().KeptSpan(slot());
  if (span.empty()) return;  // It keeps nothing.
  EXPECT_THAT(std::string(supply().NoteDropped(slot(), span, ENOMEM).message()),
              HasSubstr("of slot 0 in pool \"supplied\""));
}

TEST_P(MemorySupplyTest, AMemoryThatCannotBeMadeReadOnlyIsAnError) {
  Lease(image_, 30);
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  EXPECT_FALSE(supply().SetWritable(slot(), false).ok());
}

INSTANTIATE_TEST_SUITE_P(Ways, MemorySupplyTest, AllWays(), WayName);
INSTANTIATE_TEST_SUITE_P(Plain, MemorySupplyTest, testing::Values(kPlainWay),
                         WayName);

}  // namespace
}  // namespace firsttouch
