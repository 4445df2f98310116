#include "firsttouch/service/uffd_bind.h"

#include <errno.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/scripted_uffd_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class UffdBindTest : public ScriptedUffdSlotTest {
 protected:
  // As the caller of BindImage() does.
  void Bind(const ImageRef& image) {
    const absl::Status status = BindImage(context_, slot_, image);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(slot_.image, image);
    slot_.remap_wanted = false;
  }
};

// ---- BindImage -------------------------------------------------------------

TEST_F(UffdBindTest, TheSameImageTakesNoCall) {
  const ImageRef image = ImageOf(20);
  Bind(nullptr);
  EXPECT_THAT(TakeCalls(), IsEmpty());
  Bind(image);
  TakeCalls();
  Bind(image);
  EXPECT_THAT(TakeCalls(), IsEmpty());
  EXPECT_EQ(slot_.counters.binds, 1u);
}

TEST_F(UffdBindTest, ASharedImageIsMapped) {
  const ImageRef image = ImageOf(20);
  Put(3, 2, PageState::kRetained);
  slot_.pages.group(0).previous |= 1 << 3;
  slot_.demotion.cold_pages = {1 << 3};
  Bind(image);
  const std::vector<std::string> calls = TakeCalls();
  ASSERT_GE(calls.size(), 2u);
  EXPECT_EQ(calls[0], "mmap 0+20 fd");
  EXPECT_EQ(calls[1], "REGISTER 0+20 on uffd MISSING WP MINOR");
  EXPECT_EQ(calls.back(), "mprotect 0+20 RW");
  EXPECT_TRUE(slot_.image_mapped);
  EXPECT_EQ(slot_.image_pages, 20u);
  EXPECT_TRUE(slot_.prefill_wanted);
  EXPECT_NE(slot_.policy, nullptr);
  EXPECT_EQ(slot_.tracking, Tracking::kSignal);
  // What was known of another image's pages is forgotten.
  EXPECT_EQ(States(3, 2), "..");
  EXPECT_FALSE(IsIn(&PageGroup::previous, 3));
  EXPECT_THAT(slot_.demotion.cold_pages, IsEmpty());
}

TEST_F(UffdBindTest, WhereTheOldImageWasLargerTheRestIsMadeZeroes) {
  Bind(ImageOf(30));
  TakeCalls();
  Bind(ImageOf(20));
  std::vector<std::string> calls = TakeCalls();
  EXPECT_EQ(calls[0], "mmap 0+20 fd");
  EXPECT_THAT(calls, Contains("mmap 20+10 anonymous"));
  Bind(nullptr);
  calls = TakeCalls();
  EXPECT_EQ(calls[0], "mmap 0+20 anonymous");
  EXPECT_FALSE(slot_.image_mapped);
  EXPECT_FALSE(slot_.prefill_wanted);
  EXPECT_EQ(slot_.policy, nullptr);
}

TEST_F(UffdBindTest, ACopiedImageTakesOneDropOfAllThatEitherImageCouldHave) {
  fault_pool_.backing = Backing::kCopied;
  Bind(ImageOf(20));
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 0+20 DONTNEED"));
  EXPECT_FALSE(slot_.image_mapped);
  Bind(ImageOf(10));
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 0+20 DONTNEED"));
}

TEST_F(UffdBindTest, AnImageOfWhichFewPagesAreOnlyReadIsNotMapped) {
  const ImageRef image = ImageOf(20);
  image->working_set().LearnWritten(WorkingSet::Words{0b1111});
  image->working_set().LearnRead(WorkingSet::Words{0b111111});
  Bind(image);
  EXPECT_FALSE(slot_.image_mapped);
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 0+20 DONTNEED"));
  const ImageRef other = ImageOf(20);
  other->working_set().LearnWritten(WorkingSet::Words{0b1111});
  other->working_set().LearnRead(WorkingSet::Words{0b1110000});
  Bind(other);
  EXPECT_TRUE(slot_.image_mapped);
}

TEST_F(UffdBindTest, AnImageThatWasFoundToBeReadMoreIsMappedAfterAll) {
  const ImageRef image = ImageOf(20);
  image->working_set().LearnWritten(WorkingSet::Words{0b1111});
  Bind(image);
  ASSERT_FALSE(slot_.image_mapped);
  slot_.mapping_wanted = true;
  Bind(image);
  EXPECT_TRUE(slot_.image_mapped);
  EXPECT_FALSE(slot_.mapping_wanted);
}

TEST_F(UffdBindTest, AnImageOfWhichNothingIsKnownIsLeftToTheKernelOnce) {
  context_.profile_unknown_images = true;
  const ImageRef image = ImageOf(20);
  Bind(image);
  EXPECT_EQ(slot_.tracking, Tracking::kProfiling);
  EXPECT_EQ(slot_.kernel_pages, 20u);
  EXPECT_EQ(slot_.counters.untracked_leases, 1u);
  EXPECT_THAT(TakeCalls(), Each(Not(HasSubstr("REGISTER"))));
}

TEST_F(UffdBindTest, AnImageOfWhichSomethingIsKnownIsNot) {
  context_.profile_unknown_images = true;
  const ImageRef image = ImageOf(20);
  image->working_set().LearnWritten(WorkingSet::Words{0xff});
  Bind(image);
  EXPECT_EQ(slot_.tracking, Tracking::kSignal);
  EXPECT_EQ(slot_.kernel_pages, 0u);
}

TEST_F(UffdBindTest, PagesThatTheKernelTrackedAreTakenFromItFirst) {
  TrackAsync(20);
  Bind(ImageOf(10));
  const std::vector<std::string> calls = TakeCalls();
  ASSERT_GE(calls.size(), 4u);
  EXPECT_EQ(calls[0], "madvise 0+20 DONTNEED");
  EXPECT_EQ(calls[1], "UNREGISTER 0+20 on async");
  EXPECT_EQ(calls[2], "REGISTER 0+20 on uffd MISSING WP");
  EXPECT_EQ(calls[3], "mmap 0+10 fd");
}

TEST_F(UffdBindTest, AStepThatFailedHalfWayWantsAllToBeMappedAnew) {
  kernel_.Fail(Op::kRegister, 1, CallResult{0, EBUSY});
  const absl::Status status = BindImage(context_, slot_, ImageOf(20));
  EXPECT_THAT(std::string(status.message()), HasSubstr("UFFDIO_REGISTER of"));
  EXPECT_TRUE(slot_.remap_wanted);
  EXPECT_EQ(slot_.image, nullptr);
}

TEST_F(UffdBindTest, ADropThatFailsWantsAllToBeMappedAnew) {
  fault_pool_.backing = Backing::kCopied;
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  const absl::Status status = BindImage(context_, slot_, ImageOf(20));
  EXPECT_THAT(std::string(status.message()), HasSubstr("MADV_DONTNEED of"));
  EXPECT_TRUE(slot_.remap_wanted);
}

// ---- FillWorkingSet -----------------------------------------------------

class FillWorkingSetTest : public UffdBindTest {
 protected:
  // Pages 2, 3 and 40 are written; 4 to 7 and 41 only read.
  void UseKnownImage(bool mapped) {
    const ImageRef image = ImageOf(60);
    image->working_set().LearnWritten(
        WorkingSet::Words{0b1100 | uint64_t{1} << 40});
    image->working_set().LearnRead(
        WorkingSet::Words{0b11111100 | uint64_t{0b11} << 40});
    UseImage(image, mapped);
    slot_.prefill_wanted = true;
  }
};

TEST_F(FillWorkingSetTest, WrittenPagesBecomePrivateAndReadOnesClean) {
  UseKnownImage(/*mapped=*/true);
  FillWorkingSet(context_, slot_, 100, 100);
  EXPECT_THAT(TakeCalls(),
              ElementsAre("COPY 2+2 from image 2", "COPY 40+1 from image 40",
                          "CONTINUE 4+4 WP", "CONTINUE 41+1 WP"));
  EXPECT_EQ(States(1, 8) + States(39, 4), ".rrcccc..rc.");
  EXPECT_TRUE(IsIn(&PageGroup::previous, 2));
  EXPECT_EQ(slot_.counters.pages_prefilled, 3u);
  EXPECT_FALSE(slot_.prefill_wanted);
}

TEST_F(FillWorkingSetTest, NothingIsFilledBehindTheSize) {
  UseKnownImage(/*mapped=*/true);
  FillWorkingSet(context_, slot_, 6, 100);
  EXPECT_THAT(TakeCalls(),
              ElementsAre("COPY 2+2 from image 2", "CONTINUE 4+2 WP"));
}

TEST_F(FillWorkingSetTest, NothingIsFilledTwice) {
  UseKnownImage(/*mapped=*/true);
  slot_.prefill_wanted = false;
  FillWorkingSet(context_, slot_, 100, 100);
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(FillWorkingSetTest, WhatTheKernelTracksIsLeftToIt) {
  UseKnownImage(/*mapped=*/true);
  TrackAsync(20);
  FillWorkingSet(context_, slot_, 100, 100);
  EXPECT_THAT(TakeCalls(), IsEmpty());
  EXPECT_FALSE(slot_.prefill_wanted);
}

TEST_F(FillWorkingSetTest, MorePagesThanMayBePrivateAreLeftToTheirTouch) {
  UseKnownImage(/*mapped=*/true);
  FillWorkingSet(context_, slot_, 100, 2);
  EXPECT_THAT(TakeCalls(), ElementsAre("CONTINUE 2+6 WP", "CONTINUE 40+2 WP"));
  EXPECT_EQ(slot_.counters.pages_prefilled, 0u);
}

TEST_F(FillWorkingSetTest, CopiesForReadsArePrivateTooAndCount) {
  UseKnownImage(/*mapped=*/false);
  FillWorkingSet(context_, slot_, 100, 5);
  // Two of the limit are left, which the walk spends on pages that are there.
  EXPECT_THAT(TakeCalls(),
              ElementsAre("COPY 2+2 from image 2", "COPY 40+1 from image 40"));
}

TEST_F(FillWorkingSetTest, WhatCouldNotBeFilledIsNotCountedAsRetained) {
  UseKnownImage(/*mapped=*/true);
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, ENOMEM});
  FillWorkingSet(context_, slot_, 100, 100);
  // Open without being present, so that a release drops them.
  EXPECT_EQ(States(2, 2), "RR");
}

// ---- MapAllAnew -------------------------------------------------------------

TEST_F(UffdBindTest, AnAbandonedSlotIsMappedAnewAsAWhole) {
  slot_.image_id = SlotState::kAbandoned;
  EXPECT_TRUE(MapAllAnew(context_, slot_).ok());
  const std::vector<std::string> calls = TakeCalls();
  EXPECT_EQ(calls[0], "mmap 0+1024 anonymous");
  EXPECT_EQ(calls[1], "REGISTER 0+1024 on uffd MISSING WP");
  EXPECT_EQ(slot_.image_id, 0u);
}

TEST_F(UffdBindTest, WithCopiedBackingAnAbandonedSlotIsOpenedAndDropped) {
  fault_pool_.backing = Backing::kCopied;
  slot_.image_id = SlotState::kAbandoned;
  EXPECT_TRUE(MapAllAnew(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(),
              ElementsAre("mprotect 0+1024 RW", "madvise 0+1024 DONTNEED"));
  EXPECT_EQ(slot_.image_id, 0u);
}

TEST_F(UffdBindTest, ASlotThatCouldNotBeMappedAnewStaysAbandoned) {
  slot_.image_id = SlotState::kAbandoned;
  kernel_.Fail(Op::kMadvise, FakeKernel::kEvery, CallResult{0, ENOMEM});
  EXPECT_FALSE(MapAllAnew(context_, slot_).ok());
  fault_pool_.backing = Backing::kCopied;
  EXPECT_FALSE(MapAllAnew(context_, slot_).ok());
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(std::string(MapAllAnew(context_, slot_).message()),
              HasSubstr("mprotect of"));
  EXPECT_EQ(slot_.image_id, SlotState::kAbandoned);
}

}  // namespace
}  // namespace firsttouch
