// What the fault path asks of the kernel, and what it notes, fault by fault.

#include "firsttouch/service/filler.h"

#include <errno.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_fetch.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/scripted_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Kind = FaultResult::Kind;
using testing::ElementsAre;
using testing::IsEmpty;

class FillerTest : public ScriptedSlotTest {
 protected:
  FaultResult Resolve(uint64_t page, Access access, bool protection = false) {
    return ResolveFault(fault_pool_, {.slot = 0,
                                      .offset_bytes = page * kPageBytes,
                                      .access = access,
                                      .protection = protection});
  }
  FaultResult Read(uint64_t page) { return Resolve(page, Access::kRead); }
  FaultResult Write(uint64_t page) { return Resolve(page, Access::kWrite); }
  FaultResult WriteProtected(uint64_t page) {
    return Resolve(page, Access::kWrite, /*protection=*/true);
  }
  std::vector<std::string> CallsOfRead(uint64_t page) {
    EXPECT_EQ(Read(page).kind, Kind::kResolved) << page;
    return TakeCalls();
  }
  std::vector<std::string> CallsOfWrite(uint64_t page) {
    EXPECT_EQ(Write(page).kind, Kind::kResolved) << page;
    return TakeCalls();
  }
  // The groups that a release looks at.
  std::vector<uint64_t> NotedGroups() const {
    std::vector<uint64_t> groups;
    slot_.pages.ForEachGroup(
        [&](uint64_t index, PageGroup&) { groups.push_back(index); });
    return groups;
  }
};

// ---- Reads of image pages ----------------------------------------------

TEST_F(FillerTest, AReadMapsTheFaultAroundRangeOfAMappedImageProtected) {
  UseImage(ImageOf(100), /*mapped=*/true);
  EXPECT_THAT(CallsOfRead(20), ElementsAre("CONTINUE 16+16 WP"));
  EXPECT_EQ(States(15, 18), ".cccccccccccccccc.");
  EXPECT_EQ(slot_.counters.minor_faults, 1u);
  EXPECT_EQ(slot_.counters.pages_mapped, 16u);
  EXPECT_EQ(slot_.counters.kernel_calls, 1u);
  EXPECT_TRUE(slot_.filled);
  EXPECT_TRUE(slot_.reads_to_teach);
  EXPECT_FALSE(slot_.any_untracked);
}

TEST_F(FillerTest, AReadOfAnImagePageLeavesZeroPagesAlone) {
  UseImage(ImageOf(100, {18, 25}), /*mapped=*/true);
  EXPECT_THAT(
      CallsOfRead(20),
      ElementsAre("CONTINUE 16+2 WP", "CONTINUE 19+6 WP", "CONTINUE 26+6 WP"));
  EXPECT_EQ(States(16, 16), "cc.cccccc.cccccc");
}

TEST_F(FillerTest, APageThatReadersWriteToAfterwardsIsPrivateFromTheRead) {
  UseImage(ImageOf(100), /*mapped=*/true);
  std::atomic<uint64_t> written[2] = {uint64_t{1} << 20 | uint64_t{1} << 23, 0};
  slot_.read_then_written = written;
  EXPECT_THAT(CallsOfRead(20), ElementsAre("COPY 20+1 from image 20"));
  EXPECT_EQ(States(19, 3), ".d.");
  EXPECT_EQ(slot_.counters.missing_read_faults, 1u);
  EXPECT_EQ(slot_.counters.minor_faults, 0u);
  // Others are mapped around it, and without it.
  EXPECT_THAT(
      CallsOfRead(22),
      ElementsAre("CONTINUE 16+4 WP", "CONTINUE 21+2 WP", "CONTINUE 24+8 WP"));
}

TEST_F(FillerTest,
       WhereAReadFindsNoRoomForAPrivatePageTheImagesIsNotProtected) {
  UseImage(ImageOf(100), /*mapped=*/true);
  std::atomic<uint64_t> written[2] = {uint64_t{1} << 20, 0};
  slot_.read_then_written = written;
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, ENOMEM});
  EXPECT_THAT(CallsOfRead(20),
              ElementsAre("COPY 20+1 from image 20", "CONTINUE 20+1 WP",
                          "WRITEPROTECT 20+1 off"));
  EXPECT_EQ(States(19, 3), ".d.");
}

TEST_F(FillerTest, AWriteToAPageThatWasMappedForAReadIsRemembered) {
  UseImage(ImageOf(100), /*mapped=*/true);
  std::atomic<uint64_t> written[2] = {};
  slot_.read_then_written = written;
  Put(70, 1, PageState::kClean);
  Put(120, 1, PageState::kClean);
  EXPECT_EQ(WriteProtected(70).kind, Kind::kResolved);
  EXPECT_EQ(written[1], uint64_t{1} << 6);
  // Behind the image no page is mapped for reads.
  EXPECT_EQ(WriteProtected(120).kind, Kind::kResolved);
  EXPECT_EQ(written[1], uint64_t{1} << 6);
}

TEST_F(FillerTest, AReadMapsNothingBehindTheImagesEnd) {
  UseImage(ImageOf(20), /*mapped=*/true);
  EXPECT_THAT(CallsOfRead(17), ElementsAre("CONTINUE 16+4 WP"));
}

TEST_F(FillerTest, AReadMapsNothingBehindTheSize) {
  UseImage(ImageOf(100), /*mapped=*/true);
  slot_.size_bytes = 18 * kPageBytes;
  EXPECT_THAT(CallsOfRead(17), ElementsAre("CONTINUE 16+2 WP"));
}

TEST_F(FillerTest, ThePageThatTheSizeEndsInIsMapped) {
  UseImage(ImageOf(100), /*mapped=*/true);
  slot_.size_bytes = 18 * kPageBytes + 1;
  EXPECT_THAT(CallsOfRead(17), ElementsAre("CONTINUE 16+3 WP"));
}

TEST_F(FillerTest, AReadAsksForPagesThatAreThereOnlyWhereTheyAreTouched) {
  UseImage(ImageOf(100), /*mapped=*/true);
  Put(16, 6, PageState::kClean);
  slot_.pages.group(0).dirty |= 0b1111 << 28;
  EXPECT_THAT(CallsOfRead(18),
              ElementsAre("CONTINUE 18+1 WP", "CONTINUE 22+6 WP"));
}

TEST_F(FillerTest, AGuestThatReadsUpwardsGetsTwiceAsMuchEachTimeUpTo1MiB) {
  UseImage(ImageOf(1024), /*mapped=*/true);
  CallsOfRead(0);
  EXPECT_THAT(CallsOfRead(16), ElementsAre("CONTINUE 16+32 WP"));
  EXPECT_THAT(CallsOfRead(48),
              ElementsAre("CONTINUE 48+16 WP", "CONTINUE 64+48 WP"));
  EXPECT_THAT(CallsOfRead(112),
              ElementsAre("CONTINUE 112+16 WP", "CONTINUE 128+64 WP",
                          "CONTINUE 192+48 WP"));
  EXPECT_THAT(CallsOfRead(240),
              ElementsAre("CONTINUE 240+16 WP", "CONTINUE 256+64 WP",
                          "CONTINUE 320+64 WP", "CONTINUE 384+64 WP",
                          "CONTINUE 448+48 WP"));
  EXPECT_THAT(CallsOfRead(496),
              ElementsAre("CONTINUE 496+16 WP", "CONTINUE 512+64 WP",
                          "CONTINUE 576+64 WP", "CONTINUE 640+64 WP",
                          "CONTINUE 704+48 WP"));
}

TEST_F(FillerTest, AGuestThatReadsHereAndThereGetsTheFaultAroundRange) {
  UseImage(ImageOf(200), /*mapped=*/true);
  CallsOfRead(0);
  EXPECT_THAT(CallsOfRead(64), ElementsAre("CONTINUE 64+16 WP"));
  EXPECT_THAT(CallsOfRead(32), ElementsAre("CONTINUE 32+16 WP"));
}

TEST_F(FillerTest, AnImageThatIsNotMappedIsCopiedProtectedAndWantsToBeMapped) {
  UseImage(ImageOf(20), /*mapped=*/false);
  EXPECT_THAT(CallsOfRead(17), ElementsAre("COPY 16+4 from image 16 WP"));
  EXPECT_EQ(States(16, 5), "cccc.");
  EXPECT_EQ(slot_.counters.missing_read_faults, 1u);
  EXPECT_EQ(slot_.counters.pages_copied, 4u);
  EXPECT_TRUE(slot_.mapping_wanted);
}

TEST_F(FillerTest, WithCopiedBackingNobodyAsksForAMapping) {
  fault_pool_.backing = Backing::kCopied;
  UseImage(ImageOf(20), /*mapped=*/false);
  EXPECT_THAT(CallsOfRead(17), ElementsAre("COPY 16+4 from image 16 WP"));
  EXPECT_THAT(CallsOfWrite(2), ElementsAre("COPY 0+16 from image 0"));
  EXPECT_FALSE(slot_.mapping_wanted);
}

// ---- Reads of zero pages --------------------------------------------------

TEST_F(FillerTest, AReadOfZeroesMapsTheZeroPageUntracked) {
  EXPECT_THAT(CallsOfRead(20), ElementsAre("ZEROPAGE 16+16"));
  EXPECT_EQ(States(15, 18), ".uuuuuuuuuuuuuuuu.");
  EXPECT_TRUE(slot_.any_untracked);
  EXPECT_EQ(slot_.counters.missing_read_faults, 1u);
  EXPECT_EQ(slot_.counters.pages_zeroed, 16u);
}

TEST_F(FillerTest, AReadOfZeroesFillsOnlyTheMissingRunAroundThePage) {
  slot_.pages.group(0).dirty |= 1 << 18;  // Somebody is about to fill it.
  Put(27, 1, PageState::kClean);
  EXPECT_THAT(CallsOfRead(20), ElementsAre("ZEROPAGE 19+8"));
}

TEST_F(FillerTest, AReadOfZeroesStopsAtTheSize) {
  slot_.size_bytes = 21 * kPageBytes;
  EXPECT_THAT(CallsOfRead(20), ElementsAre("ZEROPAGE 16+5"));
}

TEST_F(FillerTest, NoFillOfZeroesCrossesTheEndOfAMappedImage) {
  UseImage(ImageOf(20, {19}), /*mapped=*/true);
  EXPECT_THAT(CallsOfRead(22), ElementsAre("ZEROPAGE 20+12"));
  EXPECT_THAT(CallsOfRead(19), ElementsAre("ZEROPAGE 19+1"));
}

TEST_F(FillerTest, AnImageThatIsNotMappedEndsNoMapping) {
  UseImage(ImageOf(20, {19}), /*mapped=*/false);
  EXPECT_THAT(CallsOfRead(19), ElementsAre("ZEROPAGE 19+13"));
}

TEST_F(FillerTest, NoFillOfZeroesReachesIntoWhatTheKernelResolves) {
  UseImage(ImageOf(20), /*mapped=*/true);
  slot_.kernel_pages = 40;
  EXPECT_THAT(CallsOfRead(45), ElementsAre("ZEROPAGE 40+8"));
}

TEST_F(FillerTest, APageThatMayOnlyBeAMarkIsCopiedToAfterZeropage) {
  kernel_.Fail(Op::kZeroPage, 1, RangeResult{0, EEXIST});
  EXPECT_THAT(CallsOfRead(0), ElementsAre("ZEROPAGE 0+16", "ZEROPAGE 1+15",
                                          "COPY 0+16 from zeroes"));
  EXPECT_EQ(States(0, 17), "uuuuuuuuuuuuuuuu.");
}

// ---- Writes ---------------------------------------------------------------

TEST_F(FillerTest, AWriteToAnImagePageCopiesItAlone) {
  UseImage(ImageOf(100), /*mapped=*/true);
  EXPECT_THAT(CallsOfWrite(20), ElementsAre("COPY 20+1 from image 20"));
  EXPECT_EQ(States(19, 3), ".d.");
  EXPECT_EQ(slot_.counters.missing_write_faults, 1u);
  EXPECT_EQ(slot_.counters.pages_copied, 1u);
  EXPECT_TRUE(slot_.filled);
  EXPECT_FALSE(slot_.reads_to_teach);
}

TEST_F(FillerTest, AWriteToAZeroPageCopiesZeroesAlone) {
  UseImage(ImageOf(100, {20}), /*mapped=*/true);
  EXPECT_THAT(CallsOfWrite(20), ElementsAre("COPY 20+1 from zeroes"));
  EXPECT_THAT(CallsOfWrite(200), ElementsAre("COPY 200+1 from zeroes"));
}

TEST_F(FillerTest, AGuestThatWritesAnImageUpwardsGetsTwiceAsManyUpTo16) {
  fault_pool_.fault_around_pages = 64;
  UseImage(ImageOf(200), /*mapped=*/true);
  CallsOfWrite(20);
  EXPECT_THAT(CallsOfWrite(21), ElementsAre("COPY 21+2 from image 21"));
  EXPECT_THAT(CallsOfWrite(23), ElementsAre("COPY 23+4 from image 23"));
  EXPECT_THAT(CallsOfWrite(27), ElementsAre("COPY 27+8 from image 27"));
  EXPECT_THAT(CallsOfWrite(35), ElementsAre("COPY 35+16 from image 35"));
  // Not across the end of a group.
  EXPECT_THAT(CallsOfWrite(51), ElementsAre("COPY 51+13 from image 51"));
  EXPECT_THAT(CallsOfWrite(64), ElementsAre("COPY 64+16 from image 64"));
}

TEST_F(FillerTest, AGuestThatWritesZeroesUpwardsGetsTwiceAsManyUpTo16) {
  fault_pool_.fault_around_pages = 64;
  for (const char* call :
       {"COPY 0+1 from zeroes", "COPY 1+2 from zeroes", "COPY 3+4 from zeroes",
        "COPY 7+8 from zeroes", "COPY 15+16 from zeroes",
        "COPY 31+16 from zeroes"}) {
    const uint64_t page = slot_.zero_run.end;
    EXPECT_THAT(CallsOfWrite(page), ElementsAre(call));
  }
}

TEST_F(FillerTest, ARunOfWritesStopsAtTheSizeAndAtTheFaultAroundSize) {
  slot_.size_bytes = 10 * kPageBytes;
  for (const uint64_t page : {0, 1, 3}) CallsOfWrite(page);
  EXPECT_THAT(CallsOfWrite(7), ElementsAre("COPY 7+3 from zeroes"));
  slot_.size_bytes = kPages.bytes();
  fault_pool_.fault_around_pages = 4;
  EXPECT_THAT(CallsOfWrite(10), ElementsAre("COPY 10+4 from zeroes"));
}

TEST_F(FillerTest, ARunOfWritesStopsAtAPageThatIsThereOrOfAnotherKind) {
  UseImage(ImageOf(30, {29}), /*mapped=*/true);
  for (const uint64_t page : {20, 21, 23}) CallsOfWrite(page);
  EXPECT_THAT(CallsOfWrite(27), ElementsAre("COPY 27+2 from image 27"));
  for (const uint64_t page : {100, 101}) CallsOfWrite(page);
  Put(105, 1, PageState::kUntracked);
  EXPECT_THAT(CallsOfWrite(103), ElementsAre("COPY 103+2 from zeroes"));
}

TEST_F(FillerTest, WithCopiedBackingAWriteCopiesTheWholeMissingRun) {
  fault_pool_.backing = Backing::kCopied;
  UseImage(ImageOf(100, {18}), /*mapped=*/false);
  EXPECT_THAT(CallsOfWrite(20), ElementsAre("COPY 19+13 from image 19"));
  EXPECT_EQ(States(16, 17), "...ddddddddddddd.");
}

TEST_F(FillerTest, AWriteToACleanPageLiftsItsProtection) {
  UseImage(ImageOf(100), /*mapped=*/true);
  Put(16, 16, PageState::kClean);
  EXPECT_EQ(WriteProtected(20).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("WRITEPROTECT 20+1 off"));
  EXPECT_EQ(States(19, 3), "cdc");
  EXPECT_EQ(slot_.counters.write_protect_faults, 1u);
  EXPECT_EQ(slot_.counters.missing_write_faults, 0u);
}

TEST_F(FillerTest, APageThatIsThereWhenItIsCopiedIsUnprotectedInstead) {
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, EEXIST});
  EXPECT_THAT(CallsOfWrite(20),
              ElementsAre("COPY 20+1 from zeroes", "WRITEPROTECT 20+1 off"));
  EXPECT_EQ(States(20, 1), "d");
  EXPECT_EQ(slot_.counters.pages_copied, 0u);
}

TEST_F(FillerTest, APageThatStaysProtectedIsNotRestoredInPlace) {
  Put(20, 1, PageState::kClean);
  kernel_.Fail(Op::kWriteProtect, 1, RangeResult{0, ENOMEM});
  const FaultResult result = WriteProtected(20);
  EXPECT_EQ(result.kind, Kind::kFailed);
  EXPECT_EQ(result.error, ENOMEM);
  EXPECT_STREQ(result.call, "UFFDIO_WRITEPROTECT");
  EXPECT_EQ(States(20, 1), "D");
}

TEST_F(FillerTest, AReadOfAPageThatIsBeingWrittenHelpsTheWriter) {
  UseImage(ImageOf(100), /*mapped=*/true);
  slot_.pages.GroupOf(20).dirty |= uint64_t{1} << 20;
  EXPECT_THAT(CallsOfRead(20), ElementsAre("COPY 20+1 from image 20"));
  EXPECT_EQ(States(20, 1), "d");
}

// ---- The order of the steps ----------------------------------------------

TEST_F(FillerTest, APageIsDirtyBeforeItCanBeWrittenAndPresentAfterIt) {
  UseImage(ImageOf(100), /*mapped=*/true);
  Put(30, 1, PageState::kClean);
  std::string at_calls;
  on_call_ = [&](const FakeKernel::Call& call) {
    at_calls += States((call.start - slot_.base) / kPageBytes, 1);
  };
  Write(20);           // image page
  Write(200);          // zero page
  WriteProtected(30);  // clean page
  EXPECT_EQ(at_calls, "DDd");
}

TEST_F(FillerTest, AZeroPageIsUntrackedBeforeItIsMapped) {
  uint64_t untracked = 0;
  bool any = false;
  on_call_ = [&](const FakeKernel::Call&) {
    untracked = slot_.pages.group(0).untracked;
    any = slot_.any_untracked;
  };
  Read(20);
  EXPECT_EQ(untracked, uint64_t{0xffff} << 16);
  EXPECT_TRUE(any);
}

TEST_F(FillerTest, CleanPagesAreNotNotedBeforeTheyAreThere) {
  UseImage(ImageOf(100), /*mapped=*/true);
  std::string at_call;
  on_call_ = [&](const FakeKernel::Call&) { at_call = States(16, 16); };
  Read(20);
  EXPECT_EQ(at_call, std::string(16, '.'));
}

TEST_F(FillerTest, TheReleaseFindsEveryGroupThatAFaultHasMarked) {
  Write(70);
  Read(200);
  EXPECT_THAT(NotedGroups(), ElementsAre(1, 3));
}

// ---- Failures ---------------------------------------------------------------

TEST_F(FillerTest, AFaultOutOfBoundsTouchesNothing) {
  slot_.size_bytes = 20 * kPageBytes;
  EXPECT_EQ(Write(20).kind, Kind::kOutOfBounds);
  EXPECT_EQ(Read(20).kind, Kind::kOutOfBounds);
  EXPECT_THAT(TakeCalls(), IsEmpty());
  EXPECT_FALSE(slot_.filled);
}

TEST_F(FillerTest, AProcessThatEndsIsNoFailure) {
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, ESRCH});
  EXPECT_EQ(Write(20).kind, Kind::kGone);
}

TEST_F(FillerTest, AFailureNamesTheCallAndTheErrorAndLeavesDirtyNotPresent) {
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, ENOMEM});
  const FaultResult result = Write(20);
  EXPECT_EQ(result.kind, Kind::kFailed);
  EXPECT_EQ(result.error, ENOMEM);
  EXPECT_STREQ(result.call, "UFFDIO_COPY");
  EXPECT_EQ(States(20, 1), "D");
}

TEST_F(FillerTest, AZeropageThatFailsLeavesPagesUntrackedAndNotPresent) {
  kernel_.Fail(Op::kZeroPage, 1, RangeResult{0, ENOMEM});
  const FaultResult result = Read(20);
  EXPECT_EQ(result.kind, Kind::kFailed);
  EXPECT_STREQ(result.call, "UFFDIO_ZEROPAGE");
  EXPECT_EQ(States(20, 1), ".");
  EXPECT_EQ(slot_.pages.group(0).untracked, uint64_t{0xffff} << 16);
  EXPECT_THAT(NotedGroups(), ElementsAre(0));
}

TEST_F(FillerTest, WhatWasMappedBeforeAFailureIsPresentAndNoMore) {
  UseImage(ImageOf(100), /*mapped=*/true);
  kernel_.Shorten(Op::kContinue, 1, 4 * kPageBytes, ENOMEM);
  const FaultResult result = Read(20);
  EXPECT_EQ(result.kind, Kind::kFailed);
  EXPECT_STREQ(result.call, "UFFDIO_CONTINUE");
  EXPECT_EQ(States(16, 5), "cccc.");
  EXPECT_EQ(slot_.counters.pages_mapped, 4u);
}

TEST_F(FillerTest, AFillThatFailsEndsTheRunsThatFollow) {
  UseImage(ImageOf(100, {18}), /*mapped=*/true);
  kernel_.Fail(Op::kContinue, 1, RangeResult{0, ENOMEM});
  EXPECT_EQ(Read(20).kind, Kind::kFailed);
  EXPECT_THAT(TakeCalls(), ElementsAre("CONTINUE 16+2 WP"));
}

TEST_F(FillerTest, ARangeOfSeveralMappingsIsFilledPageByPage) {
  UseImage(ImageOf(18), /*mapped=*/true);
  kernel_.Fail(Op::kContinue, 1, RangeResult{0, ENOENT});
  EXPECT_THAT(
      CallsOfRead(16),
      ElementsAre("CONTINUE 16+2 WP", "CONTINUE 16+1 WP", "CONTINUE 17+1 WP"));
}

TEST_F(FillerTest, APageThatIsNotRegisteredFails) {
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, ENOENT});
  const FaultResult result = Write(20);
  EXPECT_EQ(result.kind, Kind::kFailed);
  EXPECT_EQ(result.error, ENOENT);
}

TEST_F(FillerTest, NeighboursThatCannotBeReadDoNotCostTheTouchedPage) {
  UseImage(ImageOf(20), /*mapped=*/false);
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, EFAULT});
  EXPECT_THAT(CallsOfRead(17), ElementsAre("COPY 16+4 from image 16 WP",
                                           "COPY 17+1 from image 17 WP"));
  EXPECT_EQ(States(16, 4), ".c..");
}

TEST_F(FillerTest, NeighboursThatCannotBeReadDoNotCostTheWrittenPage) {
  fault_pool_.backing = Backing::kCopied;
  UseImage(ImageOf(20), /*mapped=*/false);
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, EFAULT});
  EXPECT_THAT(CallsOfWrite(17), ElementsAre("COPY 16+4 from image 16",
                                            "COPY 17+1 from image 17"));
}

TEST_F(FillerTest, AnImagePageThatCannotBeReadHasNoContents) {
  UseImage(ImageOf(20), /*mapped=*/false);
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EFAULT});
  for (const Access access : {Access::kRead, Access::kWrite}) {
    const FaultResult result = Resolve(17, access);
    EXPECT_EQ(result.kind, Kind::kNoContents);
    EXPECT_EQ(result.error, EFAULT);
    EXPECT_STREQ(result.call, "UFFDIO_COPY");
  }
}

TEST_F(FillerTest, ZeroesThatCannotBeReadAreAFailureOfTheKernel) {
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EFAULT});
  EXPECT_EQ(Write(17).kind, Kind::kFailed);
}

// ---- Images whose pages are elsewhere yet --------------------------------

TEST_F(FillerTest, APageThatTheMemfdLacksIsFetchedAndMapped) {
  UseImage(ImageOf(20), /*mapped=*/true);
  ImageFetch fetch;  // All pages are there, it says.
  fetch.ready = true;
  slot_.image_fetch = &fetch;
  kernel_.Fail(Op::kContinue, 1, RangeResult{0, EFAULT});
  EXPECT_THAT(CallsOfRead(17),
              ElementsAre("CONTINUE 16+4 WP", "CONTINUE 16+4 WP"));
  EXPECT_EQ(States(16, 4), "cccc");
}

TEST_F(FillerTest, APageThatCannotBeFetchedHasNoContents) {
  UseImage(ImageOf(20), /*mapped=*/true);
  const ImageFetch fetch;  // Has no memfd to bring anything into.
  slot_.image_fetch = &fetch;
  kernel_.Fail(Op::kContinue, FakeKernel::kEvery, RangeResult{0, EFAULT});
  const FaultResult result = Read(17);
  EXPECT_EQ(result.kind, Kind::kNoContents);
  EXPECT_EQ(result.error, EBADF);
  EXPECT_STREQ(result.call, "fetching the image's page");
  // Also not alone.
  EXPECT_THAT(TakeCalls(), ElementsAre("CONTINUE 16+4 WP", "CONTINUE 17+1 WP"));
}

class NoSource final : public PageSource {
 public:
  absl::Status Fetch(PageIndex, std::span<std::byte>) override {
    return absl::UnavailableError("nothing is to be asked for");
  }
};

TEST_F(FillerTest, AFillAsksAPageSourceForNoMoreThanTheChunkOfThePage) {
  absl::StatusOr<ImageRef> image =
      ImageFromSource({.name = "chunks", .size_bytes = 64 * kPageBytes},
                      std::make_shared<NoSource>(), {.chunk_pages = 4});
  ASSERT_TRUE(image.ok()) << image.status();
  UseImage(*image, /*mapped=*/true);
  EXPECT_THAT(CallsOfRead(21), ElementsAre("CONTINUE 20+4 WP"));
  // Nor by the length of a run.
  EXPECT_THAT(CallsOfWrite(32), ElementsAre("COPY 32+1 from image 32"));
  EXPECT_THAT(CallsOfWrite(33), ElementsAre("COPY 33+1 from image 33"));
  EXPECT_THAT(CallsOfWrite(34), ElementsAre("COPY 34+1 from image 34"));
}

// ---- Before the touch
// --------------------------------------------------------

TEST_F(FillerTest, FillPrivateMakesWhatIsMissingPrivate) {
  UseImage(ImageOf(30, {24, 29}), /*mapped=*/true);
  Put(22, 1, PageState::kClean);
  Put(23, 1, PageState::kRetained);
  EXPECT_EQ(FillPrivate(fault_pool_, 0, 20, 20).kind, Kind::kResolved);
  // No call crosses the end of the image.
  EXPECT_THAT(TakeCalls(),
              ElementsAre("COPY 20+2 from image 20", "COPY 25+4 from image 25",
                          "COPY 24+1 from zeroes", "COPY 29+1 from zeroes",
                          "COPY 30+10 from zeroes"));
  EXPECT_EQ(States(19, 22), ".ddcrdddddddddddddddd.");
}

TEST_F(FillerTest, FillPrivateWorksAboveTheSizeAndAcrossGroups) {
  slot_.size_bytes = kPageBytes;
  EXPECT_EQ(FillPrivate(fault_pool_, 0, 60, 10).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(),
              ElementsAre("COPY 60+4 from zeroes", "COPY 64+6 from zeroes"));
}

TEST_F(FillerTest, FillPrivateEndsAtTheFirstFailure) {
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, ENOMEM});
  EXPECT_EQ(FillPrivate(fault_pool_, 0, 60, 10).error, ENOMEM);
  EXPECT_THAT(TakeCalls(), ElementsAre("COPY 60+4 from zeroes"));
  EXPECT_EQ(States(60, 10), "DDDD......");
}

TEST_F(FillerTest, MapCleanMapsWhatIsMissingAsIfItHadBeenRead) {
  UseImage(ImageOf(30, {24}), /*mapped=*/true);
  Put(22, 1, PageState::kDirty);
  EXPECT_EQ(MapClean(fault_pool_, 0, 20, 12).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("CONTINUE 20+2 WP", "CONTINUE 23+1 WP",
                                       "CONTINUE 25+5 WP", "ZEROPAGE 24+1",
                                       "ZEROPAGE 30+2"));
  EXPECT_EQ(States(20, 13), "ccdcucccccuu.");
}

TEST_F(FillerTest, MapCleanCopiesAnImageThatIsNotMapped) {
  UseImage(ImageOf(30), /*mapped=*/false);
  EXPECT_EQ(MapClean(fault_pool_, 0, 20, 4).kind, Kind::kResolved);
  EXPECT_THAT(TakeCalls(), ElementsAre("COPY 20+4 from image 20 WP"));
  EXPECT_EQ(States(20, 4), "cccc");
}

// ---- Faults in a row --------------------------------------------------------

TEST_F(FillerTest, AFaultThatIsResolvedForNothingEndsInAnError) {
  // The page is there, and the fault comes again all the same.
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EEXIST});
  Write(3);
  Write(3);
  EXPECT_EQ(slot_.same_page_faults, 1u);
  slot_.same_page_faults = kMaxSamePageFaults - 1;
  EXPECT_EQ(Write(3).kind, Kind::kResolved);
  const FaultResult last = Write(3);
  EXPECT_EQ(last.kind, Kind::kFailed);
  EXPECT_EQ(last.error, ELOOP);
}

TEST_F(FillerTest, AFaultOfAnotherPageInBetweenStartsTheCountAnew) {
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EEXIST});
  Write(3);
  Write(3);
  slot_.same_page_faults = kMaxSamePageFaults;
  Write(4);
  for (const uint64_t page : {4, 3, 3}) {
    EXPECT_EQ(Write(page).kind, Kind::kResolved);
  }
}

TEST_F(FillerTest, TrapsOfOnePageMayBeCaughtWithoutEnd) {
  UseImage(ImageOf(20), /*mapped=*/false);
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EFAULT});
  Write(3);
  for (int i = 0; i < 3; ++i) {
    slot_.same_page_faults = kMaxSamePageFaults - 1;
    const FaultResult result = Write(3);
    ASSERT_EQ(result.kind, Kind::kNoContents) << i;
    ASSERT_EQ(slot_.same_page_faults, 0u) << i;
  }
}

TEST_F(FillerTest, APageMayBeTakenAwayAndFilledWithoutEnd) {
  Write(3);
  for (int i = 0; i < 3; ++i) {
    slot_.same_page_faults = kMaxSamePageFaults - 1;
    ASSERT_EQ(Write(3).kind, Kind::kResolved) << i;
    ASSERT_EQ(slot_.same_page_faults, 0u) << i;
  }
}

// ---- Handler threads --------------------------------------------------------

TEST_F(FillerTest, WhoResolvesForOthersWakesThemAlsoIfThePageIsThere) {
  fault_pool_.resolve = Resolve::kHandlerThread;
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, EEXIST});
  EXPECT_THAT(CallsOfWrite(20),
              ElementsAre("COPY 20+1 from zeroes", "WAKE 20+1",
                          "WRITEPROTECT 20+1 off"));
}

TEST_F(FillerTest, AFillForOtherHoldsUpTheReleaseOfItsLeaseOnly) {
  slot_.lease = 7;
  {
    const FillForOther fill(slot_, 7);
    EXPECT_TRUE(fill.is_current());
    EXPECT_EQ(slot_.fills_in_flight, 1u);
    const FillForOther late(slot_, 6);
    EXPECT_FALSE(late.is_current());
  }
  EXPECT_EQ(slot_.fills_in_flight, 0u);
}

}  // namespace
}  // namespace firsttouch
