#include "firsttouch/service/uffd_restore.h"

#include <errno.h>

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/page_costs.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/retention.h"
#include "firsttouch/service/scripted_uffd_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr PageCosts kCosts;

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class UffdRestoreTest : public ScriptedUffdSlotTest {
 protected:
  static constexpr uint64_t kKept = 100;

  UffdRestoreTest() { UseRealMemory(); }

  absl::Status Restore(uint64_t size_pages = kKept, uint64_t limit = 1000) {
    return RestorePages(context_, slot_, kKept, size_pages, limit);
  }

  // As a guest does that writes to a page which is there.
  void Change(uint64_t page) { PagePointer(page)[5] = std::byte{0xff}; }
  // Puts pages that have the initial bytes into the slot.
  void PutUnchanged(uint64_t first, uint64_t pages, PageState state) {
    Put(first, pages, state);
    for (uint64_t page = first; page < first + pages; ++page) {
      memcpy(PagePointer(page), InitialPage(slot_, page), kPageBytes);
    }
  }
  bool HasInitialBytes(uint64_t page) {
    return memcmp(PagePointer(page), InitialPage(slot_, page), kPageBytes) == 0;
  }
};

TEST_F(UffdRestoreTest, ChangedPagesAreRestoredInPlaceWithoutACall) {
  UseImage(ImageOf(20), /*mapped=*/true);
  Put(3, 2, PageState::kDirty);
  Put(30, 1, PageState::kDirty);
  PutUnchanged(7, 1, PageState::kClean);
  Change(3);
  Change(30);
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(TakeCalls(), IsEmpty());
  EXPECT_TRUE(HasInitialBytes(3));
  EXPECT_TRUE(HasInitialBytes(4));
  EXPECT_TRUE(HasInitialBytes(30));
  EXPECT_EQ(States(3, 5) + States(30, 1), "rr..cr");
  EXPECT_EQ(slot_.counters.pages_restored, 3u);
  EXPECT_FALSE(slot_.filled);
}

TEST_F(UffdRestoreTest, ARetainedPageCountsAsChangedOnlyWhereItsBytesWere) {
  PutUnchanged(3, 2, PageState::kRetained);
  Change(4);
  EXPECT_TRUE(Restore().ok());
  EXPECT_FALSE(IsIn(&PageGroup::recent, 3));
  EXPECT_TRUE(IsIn(&PageGroup::recent, 4));
  EXPECT_TRUE(IsIn(&PageGroup::last, 4));
  EXPECT_EQ(slot_.window_changed, 1u);
  // In the next cycle nothing changed.
  EXPECT_TRUE(Restore().ok());
  EXPECT_TRUE(IsIn(&PageGroup::recent, 4));
  EXPECT_FALSE(IsIn(&PageGroup::last, 4));
  EXPECT_EQ(slot_.window_changed, 1u);
  EXPECT_EQ(slot_.window_cycles, 2u);
}

TEST_F(UffdRestoreTest, AFirstWriteCountsAsAChangeWhateverTheBytes) {
  PutUnchanged(3, 1, PageState::kDirty);
  EXPECT_TRUE(Restore().ok());
  EXPECT_TRUE(IsIn(&PageGroup::recent, 3));
  EXPECT_EQ(slot_.window.faulted, 1u);
}

TEST_F(UffdRestoreTest, WhatIsDirtyAndNotKnownToBeThereIsDropped) {
  Put(3, 2, PageState::kDirty);
  slot_.pages.group(0).present = 1 << 4;
  Change(4);
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 3+1 DONTNEED"));
  EXPECT_EQ(States(3, 2), ".r");
  EXPECT_TRUE(HasInitialBytes(4));
}

TEST_F(UffdRestoreTest, WhatWasGrownIntoIsDroppedFirst) {
  Put(3, 1, PageState::kDirty);
  Put(100, 5, PageState::kDirty);
  Change(3);
  EXPECT_TRUE(Restore(/*size_pages=*/200).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 100+5 DONTNEED"));
  EXPECT_EQ(States(3, 1) + States(100, 5), "r.....");
  EXPECT_EQ(slot_.growth.pages, 5u);
  EXPECT_TRUE(Restore(/*size_pages=*/200).ok());
  EXPECT_EQ(slot_.growth.pages, 0u);
  EXPECT_EQ(slot_.growth.pages_before, 5u);
}

TEST_F(UffdRestoreTest, GrowthCountsUpToTheFirstPageThatWasNotTouched) {
  Put(100, 50, PageState::kDirty);
  Put(151, 5, PageState::kDirty);
  EXPECT_TRUE(Restore(/*size_pages=*/200).ok());
  EXPECT_EQ(slot_.growth.pages, 50u);
}

TEST_F(UffdRestoreTest, MorePagesThanMayStayAreDroppedAndFilledAnew) {
  UseImage(ImageOf(20), /*mapped=*/true);
  Put(3, 4, PageState::kDirty);
  EXPECT_TRUE(Restore(kKept, /*limit=*/3).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 3+4 DONTNEED"));
  EXPECT_EQ(States(3, 4), "....");
  EXPECT_TRUE(slot_.prefill_wanted);
}

TEST_F(UffdRestoreTest, AsManyPagesAsMayStayAreRestored) {
  Put(3, 4, PageState::kDirty);
  EXPECT_TRUE(Restore(kKept, /*limit=*/4).ok());
  EXPECT_EQ(States(3, 4), "rrrr");
}

TEST_F(UffdRestoreTest, UntrackedPagesAreSettledBeforeTheRestore) {
  Put(3, 2, PageState::kUntracked);
  Change(3);
  kernel_.SetPagemap({Pages(3, 1, kPageIsPresent),
                      Pages(4, 1, kPageIsPresent | kPageIsPfnZero)});
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 3+2", "WRITEPROTECT 4+1 on"));
  EXPECT_EQ(States(3, 2), "rc");
  EXPECT_TRUE(HasInitialBytes(3));
}

// ---- What is learned -----------------------------------------------------

TEST_F(UffdRestoreTest, TheFirstLeaseOfAnImageTeachesWhatItWrote) {
  const ImageRef image = ImageOf(20);
  UseImage(image, /*mapped=*/true);
  Put(3, 2, PageState::kDirty);
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(image->working_set().written(), ElementsAre(0b11000));
}

TEST_F(UffdRestoreTest, PagesThatWereReadAreTaughtOnce) {
  const ImageRef image = ImageOf(20);
  UseImage(image, /*mapped=*/true);
  Put(3, 2, PageState::kClean);
  Put(99, 2, PageState::kDirty);
  slot_.reads_to_teach = true;
  EXPECT_TRUE(Restore(/*size_pages=*/200).ok());
  // Not what lies behind the kept pages.
  EXPECT_THAT(image->working_set().read(),
              ElementsAre(0b11000, uint64_t{1} << (99 - 64)));
  EXPECT_FALSE(slot_.reads_to_teach);
}

TEST_F(UffdRestoreTest, PagesThatAreWrittenAgainAndAgainAreTaughtLater) {
  const ImageRef image = ImageOf(20);
  image->working_set().LearnWritten(WorkingSet::Words{});
  UseImage(image, /*mapped=*/true);
  context_.window_cycles = 1;
  PutUnchanged(3, 1, PageState::kDirty);
  PutUnchanged(4, 1, PageState::kDirty);
  EXPECT_TRUE(Restore().ok());  // Windows to teach: two.
  EXPECT_THAT(image->working_set().written(), IsEmpty());
  Change(4);
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(image->working_set().written(), ElementsAre(0b10000));
}

TEST_F(UffdRestoreTest, AProfilingLeaseLeavesWhatItShowedAndNothingElse) {
  const ImageRef image = ImageOf(20);
  UseImage(image, /*mapped=*/true);
  slot_.tracking = Tracking::kProfiling;
  slot_.kernel_pages = 20;
  kernel_.SetPagemap(
      {Pages(3, 2, kPageIsPresent), Pages(8, 1, kPageIsPresent | kPageIsFile)});
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(TakeCalls(),
              ElementsAre("SCAN 0+20", "madvise 0+20 DONTNEED",
                          "REGISTER 0+20 on uffd MISSING WP MINOR"));
  EXPECT_THAT(image->working_set().written(), ElementsAre(0b11000));
  EXPECT_THAT(image->working_set().read(), ElementsAre(0b100011000));
  EXPECT_EQ(States(0, 20), std::string(20, '.'));
  EXPECT_EQ(slot_.tracking, Tracking::kSignal);
  EXPECT_EQ(slot_.kernel_pages, 0u);
  EXPECT_TRUE(slot_.prefill_wanted);
}

TEST_F(UffdRestoreTest, AProfilingLeaseOfWhichNoScanTellsTeachesNothing) {
  const ImageRef image = ImageOf(20);
  UseImage(image, /*mapped=*/true);
  slot_.tracking = Tracking::kProfiling;
  slot_.kernel_pages = 20;
  kernel_.Fail(Op::kPagemapScan, 1, CallResult{0, EPERM});
  EXPECT_TRUE(Restore().ok());
  EXPECT_FALSE(image->working_set().known());
  EXPECT_EQ(slot_.tracking, Tracking::kSignal);
}

TEST_F(UffdRestoreTest, AProfilingLeaseOfLockedMemoryTeachesNothing) {
  const ImageRef image = ImageOf(20);
  UseImage(image, /*mapped=*/true);
  slot_.tracking = Tracking::kProfiling;
  slot_.kernel_pages = 20;
  kernel_.SetPagemap({Pages(0, 20, kPageIsPresent)});
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, EINVAL});
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(TakeCalls(),
              ElementsAre("SCAN 0+20", "madvise 0+20 DONTNEED", "munlock 0+20",
                          "madvise 0+20 DONTNEED",
                          "REGISTER 0+20 on uffd MISSING WP MINOR"));
  EXPECT_FALSE(image->working_set().known());
  EXPECT_EQ(States(0, 20), std::string(20, '.'));
}

// ---- Sampling windows ------------------------------------------------------

TEST_F(UffdRestoreTest, PagesOfTwoWindowsWithoutAChangeAreCold) {
  context_.window_cycles = 2;
  PutUnchanged(3, 8, PageState::kDirty);  // A first write is a change.
  for (int cycle = 0; cycle < 4; ++cycle) {
    EXPECT_THAT(slot_.demotion.cold_pages, IsEmpty()) << cycle;
    EXPECT_FALSE(slot_.demotion.due);
    Change(10);
    EXPECT_TRUE(Restore().ok());
  }
  Change(10);
  EXPECT_TRUE(Restore().ok());
  Change(10);
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(slot_.demotion.cold_pages, ElementsAre(0b1111111 << 3));
  // Seven are too few to be worth a call at once.
  EXPECT_FALSE(slot_.demotion.due);
}

TEST_F(UffdRestoreTest, FewColdPagesAreDroppedAfterEightWindows) {
  context_.window_cycles = 1;
  PutUnchanged(3, 7, PageState::kRetained);
  for (int window = 1; window < 8; ++window) {
    EXPECT_TRUE(Restore().ok());
    EXPECT_FALSE(slot_.demotion.due) << window;
  }
  EXPECT_TRUE(Restore().ok());
  EXPECT_TRUE(slot_.demotion.due);
}

TEST_F(UffdRestoreTest, ManyColdPagesAreDroppedAtOnce) {
  context_.window_cycles = 1;
  PutUnchanged(3, 8, PageState::kRetained);
  EXPECT_TRUE(Restore().ok());
  EXPECT_TRUE(slot_.demotion.due);
}

TEST_F(UffdRestoreTest, AWindowThatEndsBeginsAnother) {
  context_.window_cycles = 2;
  PutUnchanged(3, 1, PageState::kDirty);
  EXPECT_TRUE(Restore().ok());
  EXPECT_EQ(slot_.window_cycles, 1u);
  EXPECT_TRUE(IsIn(&PageGroup::recent, 3));
  EXPECT_TRUE(Restore().ok());
  EXPECT_EQ(slot_.window_cycles, 0u);
  EXPECT_EQ(slot_.window_changed, 0u);
  EXPECT_FALSE(IsIn(&PageGroup::recent, 3));
  EXPECT_TRUE(IsIn(&PageGroup::previous, 3));
}

TEST_F(UffdRestoreTest, ASmallImageThatStaysIsMappedAfterAWindow) {
  UseImage(ImageOf(16), /*mapped=*/false);
  context_.window_cycles = 2;
  slot_.image_copied = true;
  EXPECT_TRUE(Restore().ok());
  EXPECT_FALSE(slot_.mapping_wanted);
  EXPECT_TRUE(Restore().ok());
  EXPECT_TRUE(slot_.mapping_wanted);
}

TEST_F(UffdRestoreTest, ASmallImageThatMayNotKeepItsPagesIsMapped) {
  UseImage(ImageOf(16), /*mapped=*/false);
  slot_.image_copied = true;
  Put(0, 16, PageState::kDirty);
  EXPECT_TRUE(Restore(kKept, /*limit=*/10).ok());
  EXPECT_TRUE(slot_.mapping_wanted);
}

TEST_F(UffdRestoreTest, ChurnIsVotedForTheKernelsTracking) {
  UseImage(ImageOf(100), /*mapped=*/true);
  slot_.policy = std::make_shared<TrackingPolicy>(std::nullopt, true);
  context_.window_cycles = 4;
  // Other pages each time.
  uint64_t page = 0;
  for (uint32_t cycle = 0; cycle < 4 * TrackingPolicy::kVotes + 4; ++cycle) {
    PutUnchanged(page, 4, PageState::kDirty);
    page = (page + 4) % 100;
    EXPECT_TRUE(Restore().ok());
  }
  EXPECT_EQ(slot_.policy->tracking(), Tracking::kAsync);
}

// ---- What memory is worth ------------------------------------------------

class MemoryPriceTest : public UffdRestoreTest {
 protected:
  MemoryPriceTest() {
    UseImage(ImageOf(100), /*mapped=*/true);
    slot_.policy = std::make_shared<TrackingPolicy>(Tracking::kSignal, true,
                                                    /*image_pages=*/100);
    // A page costs 1 us of each cycle.
    context_.retained_bytes_per_us = kPageBytes;
    fault_pool_.keeping_slots = 1;
    context_.costs = {.signal_ns = 6400,
                      .restore_ns = 120,
                      .drop_ns = 4000,
                      .drop_page_ns = 200};
  }

  // Leases of other slots, all of which changed page 3.
  void Learn(uint32_t leases = kLeasesCounted) {
    const uint64_t pages = uint64_t{1} << 3;
    for (uint32_t i = 0; i < leases; ++i)
      slot_.policy->rates().Add({&pages, 1}, 12);
  }
};

TEST_F(MemoryPriceTest, PagesThatFewLeasesChangeGoOnceTheyHaveCostAsMuch) {
  Learn();
  PutUnchanged(3, 1, PageState::kDirty);
  PutUnchanged(10, 2, PageState::kDirty);
  // Two pages cost 2 x 1.12 us in each cycle; giving them back 4.4 us.
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(slot_.demotion.cold_pages, ElementsAre(0b11 << 10));
  EXPECT_FALSE(slot_.demotion.due);
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(slot_.demotion.cold_pages, ElementsAre(0b11 << 10));
  EXPECT_TRUE(slot_.demotion.due);
}

TEST_F(MemoryPriceTest, SteadyCyclesArePaidForAtTheNextLookAtThePages) {
  Learn();
  PutUnchanged(10, 1, PageState::kRetained);
  slot_.window_cycles = 2;
  EXPECT_TRUE(Restore().ok());
  EXPECT_FALSE(slot_.demotion.due);
  slot_.window_cycles = 9;
  EXPECT_TRUE(Restore().ok());
  EXPECT_TRUE(slot_.demotion.due);
}

TEST_F(MemoryPriceTest, ThePagesOfTwoLeasesInARowStay) {
  Learn();
  for (int i = 0; i < 10; ++i) {
    PutUnchanged(10, 2, PageState::kDirty);
    Change(10);
    slot_.pages.group(0).retained = 0;
    EXPECT_TRUE(Restore().ok());
    if (i == 0) continue;
    EXPECT_THAT(slot_.demotion.cold_pages, IsEmpty()) << i;
  }
}

TEST_F(MemoryPriceTest, NothingGoesBeforeItIsKnownWhatIsWorthKeeping) {
  Learn(kLeasesCounted - 2);
  PutUnchanged(10, 20, PageState::kDirty);
  EXPECT_TRUE(Restore().ok());
  EXPECT_EQ(slot_.policy->rates().version(), 0u);
  EXPECT_THAT(slot_.demotion.cold_pages, IsEmpty());
  // This lease is the last of those that are counted.
  EXPECT_TRUE(Restore().ok());
  EXPECT_EQ(slot_.policy->rates().version(), 1u);
}

TEST_F(MemoryPriceTest, GuestsThatTakeTurnsAreAllCounted) {
  Learn();
  PutUnchanged(3, 1, PageState::kRetained);
  PutUnchanged(10, 1, PageState::kRetained);
  for (int i = 0; i < 600; ++i) {
    Change(i % 2 == 0 ? 3 : 10);
    EXPECT_TRUE(Restore().ok());
  }
  EXPECT_THAT(slot_.policy->rates().Regular(), ElementsAre(1 << 3 | 1 << 10));
}

TEST_F(MemoryPriceTest, WhereMemoryIsNextToFreeNoLeaseIsCounted) {
  context_.retained_bytes_per_us = 1 << 20;
  Learn(kLeasesCounted - 1);
  PutUnchanged(10, 20, PageState::kDirty);
  EXPECT_TRUE(Restore().ok());
  EXPECT_EQ(slot_.policy->rates().version(), 0u);
  EXPECT_EQ(slot_.read_then_written, nullptr);
}

TEST_F(MemoryPriceTest, APageThatWasOnlyReadIsMappedTheNextTime) {
  Learn();
  std::atomic<uint64_t>* const written = slot_.policy->read_then_written();
  ASSERT_NE(written, nullptr);
  written[0] = 0b11 << 10;
  PutUnchanged(10, 2, PageState::kDirty);
  Change(10);
  EXPECT_TRUE(Restore().ok());
  EXPECT_EQ(slot_.read_then_written, written);
  EXPECT_TRUE(Restore().ok());
  PutUnchanged(10, 2, PageState::kDirty);
  slot_.pages.group(0).retained = 0;
  Change(10);
  EXPECT_TRUE(Restore().ok());
  EXPECT_EQ(written[0], uint64_t{1} << 10);
}

TEST_F(MemoryPriceTest, PrivatePagesThatTheKernelTracksGoAtAWindowsEnd) {
  slot_.policy = std::make_shared<TrackingPolicy>(Tracking::kAsync, true, 100);
  TrackAsync(100);
  context_.window_cycles = 1;
  slot_.idle.pages = 40;
  PutUnchanged(3, 1, PageState::kRetained);
  kernel_.SetPagemap(
      {Pages(3, 1, kPageIsPresent), Pages(20, 39, kPageIsPresent)});
  // 39 pages cost 39 us in each cycle; to give them back, and to copy them
  // again, 4 us and 4.7 us a page.
  for (int i = 0; i < 4; ++i) {
    Change(3);
    EXPECT_TRUE(Restore().ok());
    EXPECT_FALSE(slot_.demotion.due) << i;
    EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+100"));
  }
  Change(3);
  EXPECT_TRUE(Restore().ok());
  EXPECT_TRUE(slot_.demotion.due);
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+100", "SCAN 0+100 and protect",
                                       "SCAN 0+100"));
  EXPECT_THAT(slot_.demotion.cold_pages,
              ElementsAre(((uint64_t{1} << 39) - 1) << 20));
}

// ---- The kernel's tracking -------------------------------------------------

TEST_F(UffdRestoreTest, PagesThatAScanFindsAreRestored) {
  UseImage(ImageOf(20), /*mapped=*/true);
  TrackAsync(20);
  slot_.async.all_marked = true;
  kernel_.SetPagemap({Pages(3, 1, kPageIsWritten | kPageIsPresent)});
  Change(3);
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+20"));
  EXPECT_TRUE(HasInitialBytes(3));
  EXPECT_EQ(States(3, 1), "r");
}

TEST_F(UffdRestoreTest, AllIsProtectedAgainOnceTheWastePaysForIt) {
  UseImage(ImageOf(20), /*mapped=*/true);
  TrackAsync(20);
  slot_.async.all_marked = true;
  PutUnchanged(3, 2, PageState::kRetained);
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+20"));
  EXPECT_EQ(slot_.async.wasted_ns,
            static_cast<uint64_t>(2 * kCosts.restore_ns));
  slot_.async.wasted_ns = 1'000'000;
  EXPECT_TRUE(Restore().ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("SCAN 0+20", "SCAN 0+20 and protect"));
  EXPECT_EQ(States(3, 2), "..");
}

TEST_F(UffdRestoreTest, WhereGuestsWriteBehindTheImageTheKernelTracksThatToo) {
  UseImage(ImageOf(20), /*mapped=*/true);
  TrackAsync(20);
  context_.window_cycles = 1;
  PutUnchanged(30, 10, PageState::kDirty);  // Ten signals in one cycle.
  EXPECT_TRUE(Restore().ok());
  EXPECT_EQ(slot_.kernel_pages, kKept);
}

// ---- Failures --------------------------------------------------------------

TEST_F(UffdRestoreTest, AScanThatFailsIsAnError) {
  TrackAsync(20);
  kernel_.Fail(Op::kPagemapScan, 1, CallResult{0, EPERM});
  EXPECT_THAT(std::string(Restore().message()), HasSubstr("PAGEMAP_SCAN of"));
}

TEST_F(UffdRestoreTest, ADropThatFailsIsAnError) {
  Put(3, 1, PageState::kDirty);
  Put(150, 1, PageState::kDirty);
  const std::string error = "MADV_DONTNEED of 4096 bytes at offset ";
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(std::string(Restore(/*size_pages=*/200).message()),
              HasSubstr(error + "614400"));
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(std::string(Restore(kKept, /*limit=*/0).message()),
              HasSubstr(error + "12288"));
  slot_.pages.group(0).present = 0;
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(std::string(Restore().message()), HasSubstr(error + "12288"));
}

}  // namespace
}  // namespace firsttouch
