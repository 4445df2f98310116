#include "firsttouch/service/uffd_tracking.h"

#include <errno.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/scripted_uffd_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kWritten = kPageIsWritten | kPageIsPresent;

class UffdTrackingTest : public ScriptedUffdSlotTest {
 protected:
  // The policy of the slot's image asks for `tracking`.
  // For the image that is mapped.
  void AskFor(Tracking tracking) {
    slot_.image_mapped = true;
    slot_.policy =
        std::make_shared<TrackingPolicy>(tracking, /*async_works=*/true);
  }
};

// ---- FindKernelWrites ----------------------------------------------------

TEST_F(UffdTrackingTest, WhatTheKernelDoesNotTrackIsNotScanned) {
  EXPECT_TRUE(FindKernelWrites(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(UffdTrackingTest, WrittenPagesAreFoundByOneScan) {
  TrackAsync(100);
  kernel_.SetPagemap({Pages(3, 2, kWritten), Pages(7, 1, kPageIsPresent),
                      Pages(9, 1, kPageIsWritten | kPageIsSwapped),
                      Pages(60, 8, kWritten)});
  EXPECT_TRUE(FindKernelWrites(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+100"));
  EXPECT_EQ(States(0, 12), "...dd....d..");
  EXPECT_EQ(States(59, 10), ".dddddddd.");
  EXPECT_EQ(slot_.counters.pages_found, 11u);
}

TEST_F(UffdTrackingTest, APageOfWhichThereIsNothingIsNotWritten) {
  TrackAsync(100);
  kernel_.SetPagemap({Pages(3, 2, kPageIsWritten)});
  EXPECT_TRUE(FindKernelWrites(context_, slot_).ok());
  EXPECT_EQ(States(3, 2), "..");
}

TEST_F(UffdTrackingTest, AScanThatFailsIsAnErrorAndNeverNothingChanged) {
  TrackAsync(100);
  for (const bool all_marked : {false, true}) {
    slot_.async.all_marked = all_marked;
    kernel_.Fail(Op::kPagemapScan, 1, CallResult{0, EPERM});
    EXPECT_THAT(
        std::string(FindKernelWrites(context_, slot_).message()),
        HasSubstr("PAGEMAP_SCAN of 409600 bytes at offset 0 of slot 0"));
  }
}

TEST_F(UffdTrackingTest, WhereAllIsMarkedTheQuickScanWillDo) {
  TrackAsync(100);
  slot_.async.all_marked = true;
  // The quick scan does not ask whether there is a page.
  kernel_.SetPagemap({Pages(3, 31, kPageIsWritten)});
  EXPECT_TRUE(FindKernelWrites(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+100"));
  EXPECT_EQ(States(2, 3), ".dd");
  EXPECT_TRUE(slot_.async.all_marked);
  EXPECT_EQ(slot_.counters.pages_found, 31u);
}

TEST_F(UffdTrackingTest, ManyPagesAtOnceMayBeNothingAndAreLookedAtAgain) {
  TrackAsync(100);
  slot_.async.all_marked = true;
  kernel_.SetPagemap({Pages(3, 32, kPageIsWritten), Pages(50, 1, kWritten)});
  EXPECT_TRUE(FindKernelWrites(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+100", "SCAN 0+100"));
  EXPECT_EQ(States(2, 34), std::string(34, '.'));
  EXPECT_EQ(States(50, 1), "d");
  EXPECT_FALSE(slot_.async.all_marked);
}

TEST_F(UffdTrackingTest, ManyPagesThatWereDirtyBeforeAreNothingNew) {
  TrackAsync(100);
  slot_.async.all_marked = true;
  Put(3, 1, PageState::kDirty);
  kernel_.SetPagemap({Pages(3, 32, kPageIsWritten)});
  EXPECT_TRUE(FindKernelWrites(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+100"));
  EXPECT_TRUE(slot_.async.all_marked);
}

TEST_F(UffdTrackingTest, AProfilingLeaseTellsTheImagesPagesFromWrittenOnes) {
  slot_.tracking = Tracking::kProfiling;
  slot_.kernel_pages = 100;
  kernel_.SetPagemap({Pages(3, 2, kPageIsPresent | kPageIsFile),
                      Pages(6, 1, kPageIsPresent | kPageIsPfnZero),
                      Pages(8, 2, kPageIsPresent),
                      Pages(12, 1, kPageIsSwapped)});
  EXPECT_TRUE(FindKernelWrites(context_, slot_).ok());
  EXPECT_EQ(States(3, 10), "cc.c.dd..d");
  EXPECT_EQ(slot_.counters.pages_found, 3u);
}

// ---- ProtectAll ----------------------------------------------------------

TEST_F(UffdTrackingTest, ProtectedPagesNeedNotBeRestoredAnyLonger) {
  TrackAsync(100);
  slot_.async.wasted_ns = 5;
  Put(3, 2, PageState::kRetained);
  Put(99, 2, PageState::kRetained);
  ProtectAll(context_, slot_);
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+100 and protect"));
  EXPECT_TRUE(slot_.async.all_marked);
  EXPECT_EQ(slot_.async.wasted_ns, 0u);
  EXPECT_EQ(States(3, 2) + States(99, 2), "...r");
}

TEST_F(UffdTrackingTest, WherePagesCannotBeProtectedTheyAreRestored) {
  TrackAsync(100);
  Put(3, 2, PageState::kRetained);
  kernel_.Fail(Op::kPagemapScan, 1, CallResult{0, EPERM});
  ProtectAll(context_, slot_);
  EXPECT_FALSE(slot_.async.all_marked);
  EXPECT_EQ(States(3, 2), "rr");
}

// ---- Entering and leaving ------------------------------------------------

TEST_F(UffdTrackingTest, PagesChangeFromTheOneUserfaultfdToTheOther) {
  EXPECT_TRUE(EnterAsync(context_, slot_, 20).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("UNREGISTER 0+20 on uffd",
                                       "REGISTER 0+20 on async WP",
                                       "SCAN 0+20 and protect"));
  EXPECT_EQ(slot_.tracking, Tracking::kAsync);
  EXPECT_EQ(slot_.kernel_pages, 20u);
  EXPECT_EQ(slot_.counters.tracking_changes, 1u);
  EXPECT_TRUE(slot_.idle.keeps_fewer);
  // More of them later.
  EXPECT_TRUE(EnterAsync(context_, slot_, 30).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("UNREGISTER 20+10 on uffd",
                                       "REGISTER 20+10 on async WP",
                                       "SCAN 0+30 and protect"));
  EXPECT_EQ(slot_.counters.tracking_changes, 1u);
}

TEST_F(UffdTrackingTest, AStepThatFailsEndsTheChange) {
  kernel_.Fail(Op::kUnregister, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(std::string(EnterAsync(context_, slot_, 20).message()),
              HasSubstr("UFFDIO_UNREGISTER of"));
  kernel_.Fail(Op::kRegister, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(std::string(EnterAsync(context_, slot_, 20).message()),
              HasSubstr("UFFDIO_REGISTER of"));
  EXPECT_EQ(slot_.tracking, Tracking::kSignal);
  EXPECT_EQ(slot_.kernel_pages, 0u);
}

TEST_F(UffdTrackingTest, PagesThatTheKernelTracksNoMoreAreDroppedFirst) {
  UseImage(ImageOf(20), /*mapped=*/true);
  TrackAsync(20);
  Put(3, 2, PageState::kRetained);
  EXPECT_TRUE(LeaveKernelTracking(context_, slot_, 0).ok());
  EXPECT_THAT(TakeCalls(),
              ElementsAre("madvise 0+20 DONTNEED", "UNREGISTER 0+20 on async",
                          "REGISTER 0+20 on uffd MISSING WP MINOR"));
  EXPECT_EQ(States(3, 2), "..");
  EXPECT_EQ(slot_.tracking, Tracking::kSignal);
  EXPECT_EQ(slot_.kernel_pages, 0u);
  EXPECT_TRUE(slot_.prefill_wanted);
  EXPECT_EQ(slot_.counters.tracking_changes, 1u);
}

TEST_F(UffdTrackingTest, WhereAPartIsLeftItStaysAsynchronous) {
  UseImage(ImageOf(20), /*mapped=*/true);
  TrackAsync(20);
  EXPECT_TRUE(LeaveKernelTracking(context_, slot_, 12).ok());
  EXPECT_THAT(TakeCalls(),
              ElementsAre("madvise 12+8 DONTNEED", "UNREGISTER 12+8 on async",
                          "REGISTER 12+8 on uffd MISSING WP MINOR"));
  EXPECT_EQ(slot_.tracking, Tracking::kAsync);
  EXPECT_EQ(slot_.kernel_pages, 12u);
  EXPECT_TRUE(LeaveKernelTracking(context_, slot_, 12).ok());
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(UffdTrackingTest, PagesThatCannotBeDroppedStayWithTheKernel) {
  TrackAsync(20);
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  EXPECT_FALSE(LeaveKernelTracking(context_, slot_, 0).ok());
  EXPECT_EQ(slot_.kernel_pages, 20u);
  EXPECT_EQ(slot_.tracking, Tracking::kAsync);
}

// ---- AdjustTracking -----------------------------------------------------

TEST_F(UffdTrackingTest, WhereThePolicyAsksForNothingElseThereIsNoCall) {
  EXPECT_TRUE(AdjustTracking(context_, slot_, 100).ok());
  AskFor(Tracking::kSignal);
  EXPECT_TRUE(AdjustTracking(context_, slot_, 100).ok());
  AskFor(Tracking::kAsync);
  TrackAsync(20);
  EXPECT_TRUE(AdjustTracking(context_, slot_, 100).ok());
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(UffdTrackingTest, AnImageThatIsNotMappedIsNotLeftToTheKernel) {
  UseImage(ImageOf(20), /*mapped=*/true);
  AskFor(Tracking::kAsync);
  slot_.image_mapped = false;
  EXPECT_TRUE(AdjustTracking(context_, slot_, 100).ok());
  EXPECT_EQ(slot_.kernel_pages, 0u);
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(UffdTrackingTest, AProfilingLeaseIsLeftAlone) {
  AskFor(Tracking::kAsync);
  slot_.tracking = Tracking::kProfiling;
  slot_.kernel_pages = 20;
  EXPECT_TRUE(AdjustTracking(context_, slot_, 10).ok());
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(UffdTrackingTest, PagesOutsideTheNewBoundsAreLeft) {
  AskFor(Tracking::kAsync);
  TrackAsync(20);
  EXPECT_TRUE(AdjustTracking(context_, slot_, 15).ok());
  EXPECT_EQ(slot_.kernel_pages, 15u);
}

TEST_F(UffdTrackingTest, TheKernelIsToTrackTheImage) {
  UseImage(ImageOf(20), /*mapped=*/true);
  AskFor(Tracking::kAsync);
  EXPECT_TRUE(AdjustTracking(context_, slot_, 100).ok());
  EXPECT_EQ(slot_.kernel_pages, 20u);
  AskFor(Tracking::kSignal);
  EXPECT_TRUE(AdjustTracking(context_, slot_, 100).ok());
  EXPECT_EQ(slot_.kernel_pages, 0u);
}

TEST_F(UffdTrackingTest, TheKernelIsToTrackNoMoreOfTheImageThanTheSize) {
  UseImage(ImageOf(20), /*mapped=*/true);
  AskFor(Tracking::kAsync);
  EXPECT_TRUE(AdjustTracking(context_, slot_, 12).ok());
  EXPECT_EQ(slot_.kernel_pages, 12u);
}

TEST_F(UffdTrackingTest, TheKernelIsToTrackAllWhereGuestsWriteBehindTheImage) {
  const ImageRef image = ImageOf(20);
  image->working_set().LearnWritten(WorkingSet::Words{uint64_t{1} << 25});
  UseImage(image, /*mapped=*/true);
  AskFor(Tracking::kAsync);
  EXPECT_TRUE(AdjustTracking(context_, slot_, 100).ok());
  EXPECT_EQ(slot_.kernel_pages, 100u);
}

TEST_F(UffdTrackingTest, ASlotsOwnPagesTellHowFarItsGuestsWrite) {
  UseImage(ImageOf(20), /*mapped=*/true);
  Put(5, 1, PageState::kDirty);
  Put(30, 1, PageState::kClean);
  EXPECT_EQ(WrittenEnd(slot_, 100), 20u);
  EXPECT_EQ(WrittenEnd(slot_, 10), 10u);
  slot_.pages.group(0).previous |= uint64_t{1} << 30;
  EXPECT_EQ(WrittenEnd(slot_, 100), 100u);
  EXPECT_EQ(WrittenEnd(slot_, 30), 20u);
}

// ---- SettleUntracked ------------------------------------------------------

TEST_F(UffdTrackingTest, WhereNothingIsUntrackedThereIsNoCall) {
  Put(3, 4, PageState::kClean);
  EXPECT_TRUE(SettleUntracked(context_, slot_, 100).ok());
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(UffdTrackingTest, UntrackedPagesAreFoundChangedOrProtected) {
  Put(3, 4, PageState::kUntracked);
  Put(70, 2, PageState::kUntracked);
  kernel_.SetPagemap({Pages(3, 2, kPageIsPresent | kPageIsPfnZero),
                      Pages(5, 1, kPageIsPresent),
                      Pages(6, 1, kPageIsPresent | kPageIsPfnZero),
                      Pages(70, 2, kPageIsSwapped)});
  EXPECT_TRUE(SettleUntracked(context_, slot_, 100).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 3+69", "WRITEPROTECT 3+2 on",
                                       "WRITEPROTECT 6+1 on"));
  EXPECT_EQ(States(3, 4) + States(70, 2), "ccdcdd");
  EXPECT_FALSE(slot_.any_untracked);
}

TEST_F(UffdTrackingTest, NoCallProtectsAcrossTheEndOfTheImage) {
  UseImage(ImageOf(5, {3, 4}), /*mapped=*/true);
  Put(3, 4, PageState::kUntracked);
  EXPECT_TRUE(SettleUntracked(context_, slot_, 100).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 3+4", "WRITEPROTECT 3+2 on",
                                       "WRITEPROTECT 5+2 on"));
}

TEST_F(UffdTrackingTest, WithoutAScanUntrackedPagesAreDropped) {
  context_.pagemap_fd = -1;
  Put(3, 4, PageState::kUntracked);
  EXPECT_TRUE(SettleUntracked(context_, slot_, 100).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 3+4 DONTNEED"));
  EXPECT_EQ(States(3, 4), "....");
}

TEST_F(UffdTrackingTest, WhereTheScanFailsUntrackedPagesAreDropped) {
  kernel_.Fail(Op::kPagemapScan, 1, CallResult{0, ENOTTY});
  Put(3, 4, PageState::kUntracked);
  EXPECT_TRUE(SettleUntracked(context_, slot_, 100).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 3+4", "madvise 3+4 DONTNEED"));
  EXPECT_EQ(States(3, 4), "....");
}

TEST_F(UffdTrackingTest, WhatCannotBeProtectedIsDropped) {
  kernel_.Fail(Op::kWriteProtect, 1, RangeResult{0, ENOENT});
  kernel_.Fail(Op::kWriteProtect, 2, RangeResult{0, ENOENT});
  Put(3, 4, PageState::kUntracked);
  EXPECT_TRUE(SettleUntracked(context_, slot_, 100).ok());
  EXPECT_EQ(States(3, 4), "....");
}

TEST_F(UffdTrackingTest, APageThatIsNotKnownToBeThereIsDropped) {
  Put(3, 2, PageState::kUntracked);
  slot_.pages.group(0).present = 1 << 4;
  EXPECT_TRUE(SettleUntracked(context_, slot_, 100).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 3+1 DONTNEED", "SCAN 4+1",
                                       "WRITEPROTECT 4+1 on"));
  EXPECT_EQ(States(3, 2), ".c");
}

TEST_F(UffdTrackingTest, APageThatWasWrittenElsewhereIsNotProtected) {
  Put(3, 2, PageState::kUntracked);
  Put(3, 1, PageState::kDirty);
  kernel_.SetPagemap({Pages(3, 2, kPageIsPresent | kPageIsPfnZero)});
  EXPECT_TRUE(SettleUntracked(context_, slot_, 100).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 3+2", "WRITEPROTECT 4+1 on"));
  EXPECT_EQ(States(3, 2), "dc");
  EXPECT_FALSE(IsIn(&PageGroup::untracked, 3));
}

TEST_F(UffdTrackingTest, AfterAnErrorWhatWasNotReachedIsUntrackedStill) {
  context_.pagemap_fd = -1;
  Put(3, 1, PageState::kUntracked);
  Put(70, 2, PageState::kUntracked);
  kernel_.Fail(Op::kMadvise, 2, CallResult{0, ENOMEM});
  EXPECT_THAT(std::string(SettleUntracked(context_, slot_, 100).message()),
              HasSubstr("MADV_DONTNEED of"));
  EXPECT_EQ(States(3, 1) + States(70, 2), ".uu");
  EXPECT_TRUE(slot_.any_untracked);
}

}  // namespace
}  // namespace firsttouch
