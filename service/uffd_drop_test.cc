#include "firsttouch/service/uffd_drop.h"

#include <errno.h>

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/scripted_uffd_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/batch_drop.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class UffdDropTest : public ScriptedUffdSlotTest {
 protected:
  // Notes pages outside the bounds as made to trap, or as many of them as there
  // is room for.
  void Poison(uint64_t first, uint32_t pages) {
    slot_.has_poisoned_pages = true;
    slot_.poisoned_pages.count = pages;
    for (uint32_t i = 0; i < std::min(pages, PoisonedPages::kCapacity); ++i) {
      slot_.poisoned_pages.page[i] = slot_.base + (first + i) * kPageBytes;
    }
  }
};

// ---- What is resident --------------------------------------------------

TEST_F(UffdDropTest, NothingIsResidentWhereNothingIsKnown) {
  EXPECT_TRUE(ResidentSpan(slot_, 0, 1024).empty());
  Put(10, 1, PageState::kClean);
  EXPECT_TRUE(ResidentSpan(slot_, 11, 1024).empty());
  EXPECT_TRUE(ResidentSpan(slot_, 0, 10).empty());
}

TEST_F(UffdDropTest, TheSpanGoesFromTheFirstResidentPageToTheLast) {
  Put(10, 1, PageState::kClean);
  Put(70, 2, PageState::kUntracked);
  Put(200, 1, PageState::kDirty);
  const PageSpan all = ResidentSpan(slot_, 0, 1024);
  EXPECT_EQ(all.first_page, 10u);
  EXPECT_EQ(all.end_page, 201u);
  EXPECT_EQ(all.known_pages, 4u);
  const PageSpan part = ResidentSpan(slot_, 11, 72);
  EXPECT_EQ(part.first_page, 70u);
  EXPECT_EQ(part.end_page, 72u);
  EXPECT_EQ(part.known_pages, 2u);
}

TEST_F(UffdDropTest, AFillThatCameToNoEndMayBeResident) {
  slot_.pages.group(0).untracked |= 1 << 5;
  slot_.pages.group(0).dirty |= 1 << 7;
  slot_.pages.NoteGroup(0);
  const PageSpan span = ResidentSpan(slot_, 0, 64);
  EXPECT_EQ(span.first_page, 5u);
  EXPECT_EQ(span.end_page, 8u);
}

TEST_F(UffdDropTest, WhatTheKernelPlacesMayAllBeResident) {
  TrackAsync(20);
  const PageSpan span = ResidentSpan(slot_, 4, 1024);
  EXPECT_EQ(span.first_page, 4u);
  EXPECT_EQ(span.end_page, 20u);
  EXPECT_EQ(span.known_pages, 0u);
  EXPECT_TRUE(ResidentSpan(slot_, 20, 1024).empty());
}

// ---- Drops -------------------------------------------------------------

TEST_F(UffdDropTest, WherePagesAreMissingThereIsNoCall) {
  EXPECT_TRUE(DropPages(context_, slot_, 0, 1024).ok());
  EXPECT_TRUE(DropRange(context_, slot_, 0, 0).ok());
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(UffdDropTest, PagesAreDroppedByOneCallAndForgotten) {
  Put(10, 1, PageState::kClean);
  Put(70, 2, PageState::kRetained);
  slot_.pages.group(1).recent |= 1 << 6;
  EXPECT_TRUE(DropPages(context_, slot_, 5, 1024).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 10+62 DONTNEED"));
  EXPECT_EQ(States(10, 1) + States(70, 2), "...");
  EXPECT_EQ(slot_.counters.pages_dropped, 3u);
  EXPECT_EQ(slot_.counters.kernel_calls, 1u);
  // When they changed is not.
  EXPECT_TRUE(IsIn(&PageGroup::recent, 70));
}

TEST_F(UffdDropTest, ADropThatFailsIsNamedAndForgetsNothing) {
  Put(10, 2, PageState::kDirty);
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  const absl::Status status = DropPages(context_, slot_, 0, 64);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("MADV_DONTNEED of 8192 bytes at offset 40960 of slot 0 "
                        "in pool \"scripted\""));
  EXPECT_EQ(States(10, 2), "dd");
  EXPECT_EQ(slot_.counters.pages_dropped, 0u);
}

TEST_F(UffdDropTest, LockedPagesAreDroppedAllTheSame) {
  Put(10, 2, PageState::kDirty);
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, EINVAL});
  EXPECT_TRUE(DropPages(context_, slot_, 0, 64).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 10+2 DONTNEED",
                                       "madvise 10+2 DONTNEED_LOCKED"));
  EXPECT_EQ(States(10, 2), "..");
}

TEST_F(UffdDropTest, ARangeIsDroppedAlsoWhereNothingIsKnownOfIt) {
  Put(11, 1, PageState::kDirty);
  EXPECT_TRUE(DropRange(context_, slot_, 10, 4).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 10+4 DONTNEED"));
  EXPECT_EQ(States(11, 1), ".");
}

TEST_F(UffdDropTest, WhatIsDroppedLosesTheKernelsMark) {
  TrackAsync(20);
  slot_.async.all_marked = true;
  EXPECT_TRUE(DropRange(context_, slot_, 20, 4).ok());
  EXPECT_TRUE(slot_.async.all_marked);
  EXPECT_TRUE(DropRange(context_, slot_, 19, 4).ok());
  EXPECT_FALSE(slot_.async.all_marked);
  slot_.async.all_marked = true;
  EXPECT_TRUE(NoteDropped(context_, slot_, {0, 4, 2}, 0).ok());
  EXPECT_FALSE(slot_.async.all_marked);
}

TEST_F(UffdDropTest, AnIdleSlotKeepsFewerOnceItsOwnPagesWereDropped) {
  slot_.kept_pages = 20;
  EXPECT_TRUE(NoteDropped(context_, slot_, {20, 24, 2}, 0).ok());
  EXPECT_FALSE(slot_.idle.keeps_fewer);
  EXPECT_TRUE(NoteDropped(context_, slot_, {19, 24, 2}, 0).ok());
  EXPECT_TRUE(slot_.idle.keeps_fewer);
  EXPECT_EQ(slot_.counters.pages_dropped, 4u);
}

TEST_F(UffdDropTest, DroppingEveryPageHasTheNextLeaseFilledAgain) {
  UseImage(ImageOf(20), /*mapped=*/true);
  Put(3, 2, PageState::kRetained);
  slot_.demotion.cold_pages = {1 << 3};
  slot_.demotion.due = true;
  EXPECT_TRUE(DropEveryPage(context_, slot_, 30).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 0+30 DONTNEED"));
  EXPECT_EQ(States(3, 2), "..");
  EXPECT_TRUE(slot_.prefill_wanted);
  EXPECT_TRUE(slot_.idle.keeps_fewer);
  EXPECT_FALSE(slot_.demotion.due);
  EXPECT_THAT(slot_.demotion.cold_pages, IsEmpty());
}

TEST_F(UffdDropTest, WithoutAnImageThereIsNothingToFill) {
  EXPECT_TRUE(DropEveryPage(context_, slot_, 30).ok());
  EXPECT_FALSE(slot_.prefill_wanted);
}

// ---- Pages that were made to trap ---------------------------------------

TEST_F(UffdDropTest, NothingIsUndoneWhereNothingTraps) {
  EXPECT_TRUE(UnpoisonAtRelease(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(UffdDropTest, InaccessiblePagesAreMadeAccessibleOneByOne) {
  Poison(30, 2);
  EXPECT_TRUE(UnpoisonAtRelease(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("mprotect 30+1 RW", "mprotect 31+1 RW"));
  EXPECT_FALSE(slot_.has_poisoned_pages);
  EXPECT_EQ(slot_.poisoned_pages.count, 0u);
  EXPECT_EQ(slot_.poisoned_pages.page[0], 0u);
}

TEST_F(UffdDropTest, PoisonIsDroppedWithWhatIsKnownOfThePages) {
  fault_pool_.poison = true;
  Poison(30, 2);
  Put(30, 1, PageState::kDirty);
  EXPECT_TRUE(UnpoisonAtRelease(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(),
              ElementsAre("madvise 30+1 DONTNEED", "madvise 31+1 DONTNEED"));
  EXPECT_EQ(States(30, 1), ".");
}

TEST_F(UffdDropTest, WhereMorePagesTrapThanAreNotedAllBehindTheKeptOnesGo) {
  fault_pool_.poison = true;
  slot_.kept_pages = 20;
  Poison(30, PoisonedPages::kCapacity + 1);
  EXPECT_TRUE(UnpoisonAtRelease(context_, slot_).ok());
  const std::vector<std::string> calls = TakeCalls();
  ASSERT_EQ(calls.size(), PoisonedPages::kCapacity + 2u);
  EXPECT_EQ(calls[PoisonedPages::kCapacity],
            "madvise 20+1068 DONTNEED");  // Up to the next slot.
  // The first memory's, also in the guard before it.
  EXPECT_EQ(calls[PoisonedPages::kCapacity + 1], "madvise -64+64 DONTNEED");
}

TEST_F(UffdDropTest, AnotherThanTheFirstMemoryHasNoGuardBeforeIt) {
  fault_pool_.poison = true;
  SlotState& second = slots_[1];
  second.poisoned_pages.count = PoisonedPages::kCapacity + 1;
  EXPECT_TRUE(UnpoisonAtRelease(context_, second).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 1088+1088 DONTNEED"));
}

TEST_F(UffdDropTest, WhatCouldNotBeTakenBackIsStillNoted) {
  Poison(30, 3);
  kernel_.Fail(Op::kMprotect, 2, CallResult{0, ENOMEM});
  const absl::Status status = UnpoisonAtRelease(context_, slot_);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("taking back 4096 trapping bytes at"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("of slot 0 in pool \"scripted\""));
  EXPECT_EQ(slot_.poisoned_pages.count, 3u);
  EXPECT_TRUE(slot_.has_poisoned_pages);
  TakeCalls();
  EXPECT_TRUE(UnpoisonAtRelease(context_, slot_).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("mprotect 31+1 RW", "mprotect 32+1 RW"));
}

// ---- Demotion ------------------------------------------------------------

TEST_F(UffdDropTest, PagesThatChangedSinceAreNotDemoted) {
  Put(10, 3, PageState::kRetained);
  Put(100, 1, PageState::kRetained);
  slot_.demotion.cold_pages = {0b11110 << 9, uint64_t{1} << (100 - 64)};
  slot_.pages.group(0).recent |= 1 << 11;  // Written again.
  LeaveOutWarmPages(slot_);
  // Page 9 is not dirty, nor is page 13.
  EXPECT_THAT(slot_.demotion.cold_pages,
              ElementsAre(1 << 10 | 1 << 12, uint64_t{1} << 36));
  TrackAsync(11);
  LeaveOutWarmPages(slot_);
  EXPECT_THAT(slot_.demotion.cold_pages,
              ElementsAre(1 << 12, uint64_t{1} << 36));
}

TEST_F(UffdDropTest, PagesOfSeveralGroupsAreDemotedTogether) {
  const ImageRef image = ImageOf(200);
  image->working_set().LearnWritten(
      WorkingSet::Words{0b111 << 10, uint64_t{1} << 36});
  UseImage(image, /*mapped=*/true);
  Put(10, 3, PageState::kRetained);
  Put(100, 1, PageState::kRetained);
  slot_.demotion = {.cold_pages = {0b11 << 10, uint64_t{1} << 36},
                    .due = true,
                    .windows_put_off = 3};
  DropBatch batch;
  AddColdPages(slot_, batch);
  const DropBatch::Result dropped = batch.Drop(kernel_);
  EXPECT_THAT(TakeCalls(), ElementsAre("process_madvise 10+3 DONTNEED"));
  EXPECT_TRUE(NoteDemoted(context_, slot_, dropped).ok());
  EXPECT_EQ(States(10, 3) + States(100, 1), "..r.");
  EXPECT_EQ(slot_.counters.pages_demoted, 3u);
  EXPECT_FALSE(slot_.demotion.due);
  EXPECT_EQ(slot_.demotion.windows_put_off, 0u);
  EXPECT_THAT(slot_.demotion.cold_pages, IsEmpty());
  EXPECT_THAT(image->working_set().written(), ElementsAre(1 << 12));
}

TEST_F(UffdDropTest, PagesThatCouldNotBeDroppedStayRetainedAndAreAnError) {
  Put(10, 2, PageState::kRetained);
  Put(100, 1, PageState::kRetained);
  slot_.demotion.cold_pages = {0b11 << 10, uint64_t{1} << 36};
  DropBatch::Result dropped;
  dropped.failures = {{slot_.base + 10 * kPageBytes, 2 * kPageBytes, ENOMEM}};
  const absl::Status status = NoteDemoted(context_, slot_, dropped);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("MADV_DONTNEED of 8192 bytes at offset 40960"));
  EXPECT_EQ(States(10, 2) + States(100, 1), "rr.");
  EXPECT_EQ(slot_.counters.pages_demoted, 1u);
}

}  // namespace
}  // namespace firsttouch
