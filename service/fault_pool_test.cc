// What the fault path decides, with a kernel that does nothing.

#include "firsttouch/service/fault_pool.h"

#include <errno.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "firsttouch/service/filler.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

constexpr PageCount kPages(64);

class FaultPoolTest : public testing::Test {
 protected:
  FaultPoolTest() {
    memory_ = static_cast<std::byte*>(
        std::aligned_alloc(64, PageStates::BytesFor(kPages)));
    memset(memory_, 0, PageStates::BytesFor(kPages));
    slot_.pages = PageStates(memory_, kPages);
    slot_.base = uintptr_t{1} << 40;
    slot_.size_bytes = kPages.bytes();
    fault_pool_.kernel = &kernel_;
    fault_pool_.slots = &slot_;
  }
  ~FaultPoolTest() override { std::free(memory_); }

  FaultResult Touch(uint64_t page) {
    return ResolveFault(fault_pool_, {.slot = 0,
                                      .offset_bytes = page * kPageBytes,
                                      .access = Access::kWrite});
  }

  FakeKernel kernel_{FakeKernel::kScripted};
  std::byte* memory_ = nullptr;
  SlotState slot_;
  FaultPool fault_pool_;
};

TEST_F(FaultPoolTest, AFaultThatIsResolvedForNothingEndsInAnError) {
  // The page is there, and the fault comes again all the same.
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EEXIST});
  for (uint32_t i = 0; i <= kMaxSamePageFaults; ++i) {
    ASSERT_EQ(Touch(3).kind, FaultResult::Kind::kResolved) << i;
  }
  const FaultResult last = Touch(3);
  EXPECT_EQ(last.kind, FaultResult::Kind::kFailed);
  EXPECT_EQ(last.error, ELOOP);
}

TEST_F(FaultPoolTest, TrapsOfOnePageMayBeCaughtWithoutEnd) {
  fault_pool_.zero_source = 1;
  const uint64_t stored = 1 << 3;
  slot_.image_pages = 64;
  slot_.image_stored = &stored;
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EFAULT});
  for (uint32_t i = 0; i <= kMaxSamePageFaults + 2; ++i) {
    const FaultResult result = Touch(3);
    ASSERT_EQ(result.kind, FaultResult::Kind::kNoContents) << i;
    ASSERT_EQ(result.error, EFAULT) << i;
  }
}

TEST_F(FaultPoolTest, APageMayBeTakenAwayAndFilledWithoutEnd) {
  for (uint32_t i = 0; i <= kMaxSamePageFaults + 2; ++i) {
    ASSERT_EQ(Touch(3).kind, FaultResult::Kind::kResolved) << i;
  }
}

}  // namespace
}  // namespace firsttouch
