// Which supply is opened, and what keeps one from being opened.

#include "firsttouch/service/open_supply.h"

#include <errno.h>
#include <stdlib.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/supplied_pool.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/service/supply_kinds.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;
using Op = FakeKernel::Op;

class OpenSupplyTest : public testing::Test {
 protected:
  OpenSupplyTest() { unsetenv(kSupplyVariable); }
  ~OpenSupplyTest() override { unsetenv(kSupplyVariable); }

  // "" where it was opened.
  std::string ErrorOf(SupplyChoice choice) {
    SuppliedPoolForTest pool(std::move(choice), kernel_);
    return std::string(OpenSupply(pool.Supplied()).status().message());
  }
  // What opening it and making the pool ready for it gives.
  std::string AttachErrorOf(SupplyChoice choice) {
    SuppliedPoolForTest pool(std::move(choice), kernel_);
    return std::string(pool.Attach().message());
  }
  Supply KindOf(SupplyChoice choice) {
    SuppliedPoolForTest pool(std::move(choice), kernel_);
    const absl::Status status = pool.Attach();
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return Supply::kUserfaultfd;
    description_ = pool.supply().Describe();
    return pool.supply().traits().kind;
  }
  void Refuse(int error) {
    for (const Op op :
         {Op::kOpenUserfaultfdSyscall, Op::kOpenUserfaultfdDevice}) {
      kernel_.Fail(op, FakeKernel::kEvery, CallResult{0, error});
    }
  }
  void WithoutScan() {
    kernel_.Fail(Op::kPagemapScan, FakeKernel::kEvery, CallResult{0, ENOTTY});
  }

  FakeKernel kernel_;
  std::string description_;
};

TEST_F(OpenSupplyTest, MappingsThatAreAskedForAreOpened) {
  EXPECT_EQ(KindOf(MappingOptions{.scan = false}), Supply::kMappingsDrop);
  EXPECT_THAT(description_, HasSubstr("supply: mappings-drop (asked for by "
                                      "ServiceOptions::supply)\n"));
  EXPECT_THAT(description_, HasSubstr("dropped at release, by MADV_DONTNEED"));
}

TEST_F(OpenSupplyTest, AScanIsTakenWhereItIsToBeHad) {
  if (!HasPagemapScan()) GTEST_SKIP() << "PAGEMAP_SCAN (Linux 6.7)";
  EXPECT_EQ(KindOf(MappingOptions{}), Supply::kMappingsScan);
  EXPECT_THAT(description_, HasSubstr("found by one PAGEMAP_SCAN at release"));
}

TEST_F(OpenSupplyTest, WithoutAScanMappingsDrop) {
  WithoutScan();
  EXPECT_EQ(KindOf(MappingOptions{}), Supply::kMappingsDrop);
  EXPECT_THAT(description_, HasSubstr("mappings-scan is not possible: "));
}

TEST_F(OpenSupplyTest, AScanThatIsAskedForAndCannotBeHadIsAnError) {
  WithoutScan();
  const std::string error = ErrorOf(MappingOptions{.scan = true});
  EXPECT_THAT(error, HasSubstr("needs PAGEMAP_SCAN (Linux 6.7)"));
  EXPECT_THAT(error, HasSubstr("take scan = false (mappings-drop)"));
}

TEST_F(OpenSupplyTest, AFullTableOfDescriptorsIsNoReasonToDrop) {
  kernel_.Fail(Op::kOpenPagemap, FakeKernel::kEvery, CallResult{0, EMFILE});
  EXPECT_NE(ErrorOf(MappingOptions{}), "");
}

TEST_F(OpenSupplyTest, WhereUserfaultfdIsRefusedMappingsServeUnlessAskedFor) {
  Refuse(EPERM);
  EXPECT_TRUE(IsMappings(KindOf(AnySupply{})));
  EXPECT_THAT(description_, HasSubstr("userfaultfd is refused: "));
  EXPECT_NE(ErrorOf(UserfaultfdOptions{}), "");
}

TEST_F(OpenSupplyTest, WhereDescriptorsAreUsedUpNothingElseIsChosen) {
  Refuse(EMFILE);
  EXPECT_NE(ErrorOf(AnySupply{}), "");
}

TEST_F(OpenSupplyTest, TheEnvironmentDecidesForWhoeverTakesAny) {
  setenv(kSupplyVariable, "mappings-drop", 1);
  EXPECT_EQ(KindOf(AnySupply{}), Supply::kMappingsDrop);
  EXPECT_THAT(description_,
              HasSubstr("asked for by the environment: FIRSTTOUCH_SUPPLY"));
  setenv(kSupplyVariable, "nothing", 1);
  EXPECT_THAT(ErrorOf(AnySupply{}), HasSubstr("names no supply"));
  // And for nobody else.
  EXPECT_EQ(KindOf(MappingOptions{.scan = false}), Supply::kMappingsDrop);
}

TEST_F(OpenSupplyTest, WhatTheEnvironmentAsksForAndIsRefusedIsAnError) {
  Refuse(EPERM);
  setenv(kSupplyVariable, "userfaultfd", 1);
  EXPECT_NE(ErrorOf(AnySupply{}), "");
}

TEST_F(OpenSupplyTest, ANumberOfThreadsThatIsNoneIsRefused) {
  for (const uint32_t threads : {0u, 65u}) {
    EXPECT_THAT(ErrorOf(UserfaultfdOptions{
                    .faults = InHandlerThreads{.threads = threads}}),
                HasSubstr(" is not in 1 to 64: with none, nobody would resolve "
                          "a fault"));
  }
}

// ---- With a userfaultfd of less ----------------------------------------

class LesserUserfaultfdTest : public OpenSupplyTest {
 protected:
  void SetUp() override {
    const std::string missing =
        MissingFor({Backing::kShared, Resolve::kInThread});
    if (!missing.empty()) GTEST_SKIP() << "this machine has no " << missing;
  }
  // A kernel that lacks these.
  void Lack(uint64_t features) {
    kernel_.SetApiReply(
        MachineFacts().features & ~features,
        kUffdIoctlRegister | kUffdIoctlUnregister | kUffdIoctlApi);
  }
};

TEST_F(LesserUserfaultfdTest, PagesAreCopiedWhereTheyCannotBeShared) {
  Lack(kUffdFeatureMinorShmem);
  EXPECT_EQ(KindOf(UserfaultfdOptions{}), Supply::kUserfaultfd);
  EXPECT_THAT(description_,
              HasSubstr("backing: copied (this kernel lacks what kShared needs "
                        "(6.4))"));
}

TEST_F(LesserUserfaultfdTest, SharedPagesThatAreAskedForAreAnError) {
  Lack(kUffdFeatureWpUnpopulated);
  const std::string error =
      ErrorOf(UserfaultfdOptions{.backing = Backing::kShared});
  EXPECT_THAT(error, HasSubstr("use kCopied, or leave backing unset"));
  // Also of whoever takes any supply: the other backing helps.
  EXPECT_EQ(ErrorOf(AnySupply{.userfaultfd = {.backing = Backing::kShared}}),
            error);
}

TEST_F(LesserUserfaultfdTest, TrackingThatTheKernelLacksIsAnError) {
  Lack(kUffdFeatureWpAsync);
  EXPECT_THAT(AttachErrorOf(UserfaultfdOptions{.tracking = Tracking::kAsync}),
              HasSubstr("tracking kAsync needs userfaultfd's WP_ASYNC"));
}

TEST_F(LesserUserfaultfdTest, WithoutAScanDescribeSaysWhatBecomesOfPages) {
  WithoutScan();
  EXPECT_EQ(KindOf(UserfaultfdOptions{}), Supply::kUserfaultfd);
  EXPECT_THAT(description_, HasSubstr("untracked pages: dropped at release"));
}

TEST_F(LesserUserfaultfdTest, AReservationThatCannotBeRegisteredIsAnError) {
  kernel_.Fail(Op::kRegister, 1, CallResult{0, EINVAL});
  EXPECT_NE(AttachErrorOf(UserfaultfdOptions{}), "");
  kernel_.Fail(Op::kMmap, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(AttachErrorOf(UserfaultfdOptions{}),
              HasSubstr("mmap of 1048576 bytes"));
}

}  // namespace
}  // namespace firsttouch
