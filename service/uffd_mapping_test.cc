#include "firsttouch/service/uffd_mapping.h"

#include <errno.h>

#include <string>

#include "absl/status/status.h"
#include "firsttouch/service/scripted_uffd_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

class UffdMappingTest : public ScriptedUffdSlotTest {
 protected:
  static constexpr int kFile = 30;

  absl::Status MapFile(uint64_t first, uint64_t pages, bool profiling = false) {
    return MapAnew(context_, slot_, first, pages, kFile, profiling);
  }
};

TEST_F(UffdMappingTest, NoPagesTakeNoCall) {
  EXPECT_TRUE(Register(context_, slot_, kUffd, kUffdRegisterWp, 3, 0).ok());
  EXPECT_TRUE(Unregister(context_, slot_, kUffd, 3, 0).ok());
  EXPECT_TRUE(RegisterForSignals(context_, slot_, 3, 3).ok());
  EXPECT_TRUE(MapFile(3, 0).ok());
  EXPECT_THAT(TakeCalls(), IsEmpty());
  EXPECT_EQ(slot_.counters.kernel_calls, 0u);
}

TEST_F(UffdMappingTest, AnErrorNamesTheCallTheRangeTheSlotAndThePool) {
  const absl::Status status =
      CallFailed(context_, slots_[1], EBUSY, "UFFDIO_REGISTER", 2, 4);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("UFFDIO_REGISTER of 16384 bytes at offset 8192 of slot "
                        "1 in pool \"scripted\""));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("mappings")));
}

TEST_F(UffdMappingTest, AnErrorForWantOfMemoryTellsOfTheMappings) {
  const absl::Status status = CallFailed(context_, slot_, ENOMEM, "mmap", 0, 1);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("(a slot with an image needs two mappings)"));
}

TEST_F(UffdMappingTest, ARangeIsRegisteredAndUnregisteredWithItsUserfaultfd) {
  EXPECT_TRUE(
      Register(context_, slot_, kAsyncUffd, kUffdRegisterWp, 4, 8).ok());
  EXPECT_TRUE(Unregister(context_, slot_, kUffd, 4, 8).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("REGISTER 4+8 on async WP",
                                       "UNREGISTER 4+8 on uffd"));
  EXPECT_EQ(slot_.counters.kernel_calls, 2u);
}

TEST_F(UffdMappingTest, WhatCouldNotBeRegisteredIsMadeInaccessible) {
  kernel_.Fail(Op::kRegister, 1, CallResult{0, EBUSY});
  const absl::Status status =
      Register(context_, slot_, kUffd, kUffdRegisterMissing, 4, 8);
  EXPECT_THAT(std::string(status.message()), HasSubstr("UFFDIO_REGISTER of"));
  EXPECT_THAT(TakeCalls(),
              ElementsAre("REGISTER 4+8 on uffd MISSING", "mprotect 4+8 NONE"));
}

TEST_F(UffdMappingTest, WhatCouldNotBeUnregisteredIsMadeInaccessible) {
  kernel_.Fail(Op::kUnregister, 1, CallResult{0, ENOMEM});
  const absl::Status status = Unregister(context_, slot_, kUffd, 4, 8);
  EXPECT_THAT(std::string(status.message()), HasSubstr("UFFDIO_UNREGISTER of"));
  EXPECT_THAT(TakeCalls(),
              ElementsAre("UNREGISTER 4+8 on uffd", "mprotect 4+8 NONE"));
}

TEST_F(UffdMappingTest, MinorFaultsAreRegisteredWhereAnImageIsMapped) {
  UseImage(ImageOf(20), /*mapped=*/true);
  EXPECT_TRUE(RegisterForSignals(context_, slot_, 10, 30).ok());
  EXPECT_THAT(TakeCalls(),
              ElementsAre("REGISTER 10+10 on uffd MISSING WP MINOR",
                          "REGISTER 20+10 on uffd MISSING WP"));
  EXPECT_TRUE(RegisterForSignals(context_, slot_, 25, 30).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("REGISTER 25+5 on uffd MISSING WP"));
  slot_.image_mapped = false;
  EXPECT_TRUE(RegisterForSignals(context_, slot_, 0, 30).ok());
  EXPECT_THAT(TakeCalls(), ElementsAre("REGISTER 0+30 on uffd MISSING WP"));
}

TEST_F(UffdMappingTest, AMappingIsOpenedOnlyWhenItIsRegisteredAndEmpty) {
  EXPECT_TRUE(MapFile(2, 20).ok());
  EXPECT_THAT(
      TakeCalls(),
      ElementsAre("mmap 2+20 fd", "REGISTER 2+20 on uffd MISSING WP MINOR",
                  "madvise 2+20 DONTFORK", "madvise 2+20 DONTDUMP",
                  "madvise 2+20 NOHUGEPAGE", "madvise 2+20 DONTNEED",
                  "mprotect 2+20 RW"));
}

TEST_F(UffdMappingTest, AnonymousMemoryHasNoMinorFaults) {
  EXPECT_TRUE(MapAnew(context_, slot_, 2, 20, -1).ok());
  const std::vector<std::string> calls = TakeCalls();
  ASSERT_GE(calls.size(), 2u);
  EXPECT_EQ(calls[0], "mmap 2+20 anonymous");
  EXPECT_EQ(calls[1], "REGISTER 2+20 on uffd MISSING WP");
}

TEST_F(UffdMappingTest, WhatAProfilingLeaseDoesWithoutIsNotAskedFor) {
  EXPECT_TRUE(MapFile(2, 20, /*profiling=*/true).ok());
  EXPECT_THAT(TakeCalls(),
              ElementsAre("mmap 2+20 fd", "madvise 2+20 DONTFORK",
                          "madvise 2+20 DONTDUMP", "madvise 2+20 NOHUGEPAGE"));
}

TEST_F(UffdMappingTest, WhereMmapItselfForbidsHugePagesThereIsNoSecondCall) {
  context_.no_huge_pages_by_mmap = true;
  EXPECT_TRUE(MapFile(2, 20).ok());
  EXPECT_THAT(
      TakeCalls(),
      ElementsAre("mmap 2+20 fd", "REGISTER 2+20 on uffd MISSING WP MINOR",
                  "madvise 2+20 DONTFORK", "madvise 2+20 DONTDUMP",
                  "madvise 2+20 DONTNEED", "mprotect 2+20 RW"));
}

TEST_F(UffdMappingTest, AMappingIsInCoreDumpsWhereThatIsAskedFor) {
  UffdContext context = context_;
  context.include_in_core_dump = true;
  EXPECT_TRUE(MapAnew(context, slot_, 2, 20, kFile).ok());
  EXPECT_THAT(TakeCalls(), testing::Each(Not(HasSubstr("DONTDUMP"))));
}

TEST_F(UffdMappingTest, WhereMmapFailsThePlaceIsAskedFor) {
  kernel_.Fail(Op::kMmap, 1, CallResult{0, ENOMEM});
  const absl::Status status = MapFile(2, 20);
  EXPECT_THAT(std::string(status.message()), HasSubstr("mmap of 81920 bytes"));
  EXPECT_FALSE(slot_.place_lost);
  EXPECT_THAT(TakeCalls(), ElementsAre("mmap 2+20 fd", "madvise 2+1 WILLNEED"));
}

TEST_F(UffdMappingTest, APlaceThatMmapHasUnmappedAndIsGoneIsNoted) {
  kernel_.Fail(Op::kMmap, FakeKernel::kEvery, CallResult{0, ENOMEM});
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  EXPECT_FALSE(MapFile(2, 20).ok());
  EXPECT_TRUE(slot_.place_lost);
}

TEST_F(UffdMappingTest, WhatIsNotRegisteredIsNeverOpened) {
  kernel_.Fail(Op::kRegister, 1, CallResult{0, EINVAL});
  EXPECT_FALSE(MapFile(2, 20).ok());
  EXPECT_THAT(TakeCalls(), testing::Each(Not(HasSubstr("RW"))));
}

TEST_F(UffdMappingTest, WhatLacksAPropertyIsNeverOpened) {
  kernel_.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  const absl::Status status = MapFile(2, 20);
  EXPECT_THAT(std::string(status.message()), HasSubstr("MADV_DONTFORK of"));
  EXPECT_THAT(TakeCalls(), testing::Each(Not(HasSubstr("RW"))));
}

TEST_F(UffdMappingTest, WhereTheLastStepFailsItIsNamed) {
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(std::string(MapFile(2, 20).message()), HasSubstr("mprotect of"));
}

}  // namespace
}  // namespace firsttouch
