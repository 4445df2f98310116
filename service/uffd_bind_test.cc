#include "firsttouch/service/uffd_bind.h"

#include <errno.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/service/filler.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/scripted_uffd_slot.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/tracking_policy.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
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
  EXPECT_THAT(TakeCalls(), IsEmpty());
  EXPECT_FALSE(slot_.image_mapped);
  Put(3, 1, PageState::kClean);
  Bind(ImageOf(10));
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 0+20 DONTNEED"));
}

TEST_F(UffdBindTest, AnImageOfWhichFewPagesAreOnlyReadIsNotMapped) {
  const ImageRef image = ImageOf(20);
  image->working_set().LearnWritten(WorkingSet::Words{0b1111});
  image->working_set().LearnRead(WorkingSet::Words{0b111111});
  Bind(image);
  EXPECT_FALSE(slot_.image_mapped);
  EXPECT_THAT(TakeCalls(), IsEmpty());
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
  slot_.has_clean_copies = true;
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  const absl::Status status = BindImage(context_, slot_, ImageOf(20));
  EXPECT_THAT(std::string(status.message()), HasSubstr("MADV_DONTNEED of"));
  EXPECT_TRUE(slot_.remap_wanted);
}

// ---- The first memory of an image file
// ---------------------------------------

class FirstOfFileTest : public UffdBindTest {
 protected:
  // Pages 2, 3 and 9 are written; 4 to 7 and 30 only read.
  static ImageRef OpenKnown() {
    const ImageRef image = ImageOf(40);
    image->working_set().LearnWritten(WorkingSet::Words{0b1000001100});
    image->working_set().LearnRead(
        WorkingSet::Words{0b1011111100 | uint64_t{1} << 30});
    return Reopened(image);
  }
  static ImageRef Reopened(const ImageRef& image) {
    const std::string file = testing::TempDir() + "/uffd_bind_test.ftimg";
    const auto written = WriteImageFile(*image, file);
    EXPECT_TRUE(written.ok()) << written.status();
    const absl::StatusOr<ImageRef> opened = OpenImageFile(file);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? *opened : nullptr;
  }
};

TEST_F(FirstOfFileTest, CopiesTheWorkingSetIntoTheSlotAlone) {
  const ImageRef image = OpenKnown();
  Bind(image);
  EXPECT_FALSE(slot_.image_mapped);
  FillWorkingSet(context_, slot_, 100, 100);
  EXPECT_THAT(
      TakeCalls(),
      ElementsAre("COPY 2+2 from image 2", "COPY 9+1 from image 9",
                  "COPY 4+4 from image 4 WP", "COPY 30+1 from image 30 WP"));
  EXPECT_EQ(image->MemfdBytes(), 0u);
  EXPECT_FALSE(image->has_memfd());
}

TEST_F(FirstOfFileTest, TheNextLeaseSharesTheMemfd) {
  const ImageRef image = OpenKnown();
  Bind(image);
  FillWorkingSet(context_, slot_, 100, 100);
  TakeCalls();
  Bind(image);
  EXPECT_TRUE(slot_.image_mapped);
  EXPECT_THAT(TakeCalls(), Contains("REGISTER 0+40 on uffd MISSING WP MINOR"));
  EXPECT_EQ(States(0, 12), std::string(12, '.'));
  EXPECT_FALSE(slot_.has_clean_copies);
}

TEST_F(FirstOfFileTest, AFileOfWhichFewPagesWillDoStaysAsItIs) {
  const ImageRef built = ImageOf(40);
  built->working_set().LearnWritten(WorkingSet::Words{0b1100});
  const ImageRef image = Reopened(built);
  Bind(image);
  TakeCalls();
  Bind(image);
  EXPECT_FALSE(slot_.image_mapped);
  EXPECT_THAT(TakeCalls(), IsEmpty());
}

TEST_F(FirstOfFileTest, OnceTheMemfdIsThereItIsMappedAtOnce) {
  const ImageRef image = OpenKnown();
  ASSERT_TRUE(image->OnDemandMemfd().ok());
  Bind(image);
  EXPECT_TRUE(slot_.image_mapped);
}

TEST_F(FirstOfFileTest, AFileOfWhichNothingIsKnownIsMappedAtOnce) {
  Bind(Reopened(ImageOf(40)));
  EXPECT_TRUE(slot_.image_mapped);
}

// ---- Pages that are given another image's contents
// ---------------------------

class RewriteTest : public UffdBindTest {
 protected:
  RewriteTest() { UseRealMemory(); }

  // Binds the slot to a small image that is not mapped, with retained pages.
  void BindFirst(uint64_t first_retained, uint64_t retained) {
    Bind(OfFewPages(16));
    ASSERT_FALSE(slot_.image_mapped);
    Put(first_retained, retained, PageState::kRetained);
    for (uint64_t page = first_retained; page < first_retained + retained;
         ++page) {
      memcpy(PagePointer(page), InitialPage(slot_, page), kPageBytes);
    }
    TakeCalls();
  }

  static ImageRef OfFewPages(uint64_t pages,
                             const std::vector<uint64_t>& holes = {}) {
    ImageRef image = ImageOf(pages, holes);
    image->working_set().LearnWritten(WorkingSet::Words{0b1});
    return image;
  }

  bool Shows(const ImageRef& image, uint64_t page) {
    const std::vector<std::byte> zeroes(kPageBytes);
    return memcmp(PagePointer(page),
                  page < image->pages().value()
                      ? image->PageBytes(PageIndex(page))
                      : zeroes.data(),
                  kPageBytes) == 0;
  }
};

TEST_F(RewriteTest, PagesThatAreThereGetTheNewContentsWithoutACall) {
  BindFirst(2, 6);
  const ImageRef other = OfFewPages(6, /*holes=*/{3});
  Bind(other);
  EXPECT_THAT(TakeCalls(), IsEmpty());
  for (uint64_t page = 2; page < 8; ++page) EXPECT_TRUE(Shows(other, page));
  EXPECT_EQ(States(1, 8), ".rrrrrr.");
  EXPECT_TRUE(slot_.prefill_wanted);
  EXPECT_EQ(slot_.size_bytes, 0u);
  FillWorkingSet(context_, slot_, 100, 100);
  EXPECT_THAT(TakeCalls(), ElementsAre("COPY 0+1 from image 0"));
  EXPECT_EQ(slot_.counters.pages_prefilled, 1u);
  EXPECT_EQ(slot_.counters.pages_restored, 6u);
}

TEST_F(RewriteTest, ASlotWithoutAnImageBecomesZeroes) {
  BindFirst(2, 2);
  Bind(nullptr);
  EXPECT_THAT(TakeCalls(), IsEmpty());
  EXPECT_EQ(PagePointer(2)[0], std::byte{0});
  EXPECT_EQ(PagePointer(3)[0], std::byte{0});
}

TEST_F(RewriteTest, AnUnknownSmallImageIsNeitherMappedNorProfiled) {
  context_.profile_unknown_images = true;
  BindFirst(2, 1);
  Bind(ImageOf(16));
  EXPECT_THAT(TakeCalls(), IsEmpty());
  EXPECT_EQ(slot_.tracking, Tracking::kSignal);
  EXPECT_TRUE(slot_.image_copied);
}

TEST_F(RewriteTest, AnUnknownLargerImageIsMapped) {
  BindFirst(2, 1);
  Bind(ImageOf(17));
  EXPECT_TRUE(slot_.image_mapped);
  EXPECT_FALSE(slot_.image_copied);
  EXPECT_EQ(States(2, 1), ".");
}

TEST_F(RewriteTest, ASmallImageTakesTheMappingOfTheLastOneAway) {
  Bind(ImageOf(30));
  ASSERT_TRUE(slot_.image_mapped);
  TakeCalls();
  Bind(ImageOf(16));
  EXPECT_FALSE(slot_.image_mapped);
  EXPECT_EQ(TakeCalls()[0], "mmap 0+30 anonymous");
}

TEST_F(RewriteTest, APageThatCannotBeWrittenHasAllOfThemDropped) {
  for (const PageState state : {PageState::kClean, PageState::kUntracked}) {
    BindFirst(2, 2);
    Put(9, 1, state);
    Bind(OfFewPages(16));
    EXPECT_THAT(TakeCalls(), ElementsAre("madvise 0+16 DONTNEED"));
    EXPECT_EQ(States(0, 16), std::string(16, '.'));
    slot_.any_untracked = false;
  }
}

TEST_F(RewriteTest, APageWhoseFillWasNotCompletedHasAllOfThemDropped) {
  BindFirst(2, 2);
  slot_.pages.Mark(&PageGroup::dirty, 9, 1);
  Bind(OfFewPages(16));
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 0+16 DONTNEED"));
}

TEST_F(RewriteTest, ACleanCopyThatWasNeverNotedHasAllOfThemDropped) {
  BindFirst(2, 2);
  slot_.has_clean_copies = true;
  Bind(OfFewPages(16));
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 0+16 DONTNEED"));
  EXPECT_FALSE(slot_.has_clean_copies);
}

TEST_F(RewriteTest, ManyPagesThatTheNextGuestsDoNotWriteAreDropped) {
  const ImageRef first = OfFewPages(40);
  Bind(first);
  Put(2, 17, PageState::kRetained);
  TakeCalls();
  Bind(OfFewPages(40));
  EXPECT_THAT(TakeCalls(), ElementsAre("madvise 0+40 DONTNEED"));
}

TEST_F(RewriteTest, AFirstTouchOfASmallImageCopiesItsMissingRunForWriting) {
  BindFirst(2, 2);
  Bind(ImageOf(16));
  FillWorkingSet(context_, slot_, 100, 100);
  TakeCalls();
  slot_.size_bytes = 16 * kPageBytes;
  EXPECT_EQ(ResolveFault(fault_pool_, {.slot = 0,
                                       .offset_bytes = 7 * kPageBytes,
                                       .access = Access::kRead})
                .kind,
            FaultResult::Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("COPY 4+12 from image 4"));
  EXPECT_EQ(States(0, 16), "..rrdddddddddddd");
  EXPECT_FALSE(slot_.mapping_wanted);
  EXPECT_FALSE(slot_.reads_to_teach);
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
