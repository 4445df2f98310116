// What a handler thread makes of events, with a descriptor that is none of
// userfaultfd's: it only says that there is something to be read.

#include "firsttouch/service/handler_threads.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <semaphore>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/scripted_slot.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class HandlerThreadsTest : public ScriptedSlotTest {
 protected:
  HandlerThreadsTest() {
    int fds[2];
    EXPECT_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    events_.reset(fds[0]);
    raise_.reset(fds[1]);
    slot_.size_bytes = 20 * kPageBytes;
    fault_pool_.kernel = &machine_;
    fault_pool_.resolve = Resolve::kHandlerThread;
    fault_pool_.uffd = events_.get();
    // The machine is asked for poll(2), an eventfd and the read alone.
    for (const Op op :
         {Op::kCopy, Op::kZeroPage, Op::kWriteProtect, Op::kPoison}) {
      machine_.Fail(op, FakeKernel::kEvery,
                    RangeResult{static_cast<int64_t>(kPageBytes), 0});
    }
    for (const Op op : {Op::kWake, Op::kMprotect, Op::kMadvise}) {
      machine_.Fail(op, FakeKernel::kEvery, CallResult{});
    }
    for (const Op op : {Op::kCopy, Op::kZeroPage, Op::kWriteProtect,
                        Op::kPoison, Op::kWake, Op::kMprotect, Op::kMadvise}) {
      machine_.Hook(op, [this](const FakeKernel::Call& call) {
        const std::lock_guard lock(mutex_);
        calls_.push_back(TextOf(call));
      });
    }
  }

  uffd_msg Event(uint64_t page, uint64_t flags) const {
    uffd_msg message = {};
    message.event = kUffdEventPagefault;
    message.arg.pagefault.address = slot_.base + page * kPageBytes;
    message.arg.pagefault.flags = flags;
    return message;
  }

  // The calls that one thread makes of the events. The last one of them is
  // `last`, and the `nth` of its kind.
  std::vector<std::string> CallsOf(std::vector<uffd_msg> events, Op last,
                                   uint64_t nth = 1) {
    std::binary_semaphore done(0);
    machine_.HookAfter(last, [&](const FakeKernel::Call& call) {
      if (call.nth == nth) done.release();
    });
    machine_.QueueEvents(std::move(events));
    EXPECT_EQ(write(raise_.get(), "", 1), 1);
    absl::StatusOr<std::unique_ptr<HandlerThreads>> threads =
        HandlerThreads::Start(fault_pool_, "scripted", 1);
    EXPECT_TRUE(threads.ok()) << threads.status();
    if (!threads.ok()) return {};
    done.acquire();
    threads->reset();
    return calls_;
  }

  FakeKernel machine_;
  UniqueFd events_;
  UniqueFd raise_;
  std::mutex mutex_;
  std::vector<std::string> calls_;
};

TEST_F(HandlerThreadsTest, AFaultInBoundsIsResolvedAndTimed) {
  EXPECT_THAT(CallsOf({Event(3, kUffdPagefaultWrite)}, Op::kCopy),
              ElementsAre("COPY 3+1 from zeroes"));
  EXPECT_EQ(States(3, 1), "d");
  uint64_t timed = 0;
  for (const auto& bucket : fault_pool_.shards[0].latency.bucket) {
    timed += bucket;
  }
  EXPECT_EQ(timed, 1u);
  EXPECT_EQ(slot_.fills_in_flight, 0u);
}

TEST_F(HandlerThreadsTest, AFaultOnAProtectedPageLiftsTheProtection) {
  Put(3, 1, PageState::kClean);
  EXPECT_THAT(CallsOf({Event(3, kUffdPagefaultWrite | kUffdPagefaultWp)},
                      Op::kWriteProtect),
              ElementsAre("WRITEPROTECT 3+1 off"));
}

TEST_F(HandlerThreadsTest, APageThatTheSizeEndsInIsInBounds) {
  slot_.size_bytes = 20 * kPageBytes + 1;
  uffd_msg behind = Event(20, kUffdPagefaultWrite);
  behind.arg.pagefault.address += 5;  // As userfaultfd says it exactly.
  EXPECT_THAT(CallsOf({behind}, Op::kCopy),
              ElementsAre("COPY 20+1 from zeroes"));
}

TEST_F(HandlerThreadsTest, AFaultOutOfBoundsMakesThePageTrap) {
  EXPECT_THAT(CallsOf({Event(20, 0)}, Op::kWake),
              ElementsAre("mprotect 20+1 NONE", "WAKE 20+1"));
  EXPECT_TRUE(slot_.has_poisoned_pages);
}

TEST_F(HandlerThreadsTest, WithPoisonItIsPoisoned) {
  fault_pool_.poison = true;
  EXPECT_THAT(CallsOf({Event(20, 0)}, Op::kPoison), ElementsAre("POISON 20+1"));
}

TEST_F(HandlerThreadsTest, APageThatCannotBeSuppliedIsMadeToTrap) {
  // The thread that waits finds out by itself what failed.
  machine_.Fail(Op::kCopy, 1, RangeResult{0, ENOMEM});
  EXPECT_THAT(
      CallsOf({Event(3, kUffdPagefaultWrite)}, Op::kWake),
      ElementsAre("COPY 3+1 from zeroes", "mprotect 3+1 NONE", "WAKE 3+1"));
}

TEST_F(HandlerThreadsTest, AnEventOfALeaseThatHasEndedChangesNothing) {
  // Both are read in one lease; it ends while the first is resolved.
  machine_.Hook(Op::kCopy, [this](const FakeKernel::Call&) { ++slot_.lease; });
  EXPECT_THAT(
      CallsOf({Event(3, kUffdPagefaultWrite), Event(5, kUffdPagefaultWrite)},
              Op::kWake),
      ElementsAre("WAKE 5+1"));
  EXPECT_EQ(States(5, 1), ".");
}

TEST_F(HandlerThreadsTest, AGrowthThatOvertakesTheTrapOpensThePageAgain) {
  machine_.Hook(Op::kMprotect, [this](const FakeKernel::Call& call) {
    calls_.push_back(TextOf(call));
    slot_.size_bytes = 40 * kPageBytes;
  });
  EXPECT_THAT(CallsOf({Event(20, 0)}, Op::kWake, /*nth=*/2),
              ElementsAre("mprotect 20+1 NONE", "WAKE 20+1", "mprotect 20+1 RW",
                          "WAKE 20+1"));
}

TEST_F(HandlerThreadsTest, APageOfAFreeSlotIsDroppedBeforeItIsPoisoned) {
  // It is there, or carries a mark.
  fault_pool_.poison = true;
  slot_.size_bytes = 0;
  machine_.Fail(Op::kPoison, 1, RangeResult{0, EEXIST});
  EXPECT_THAT(CallsOf({Event(3, 0)}, Op::kPoison, /*nth=*/2),
              ElementsAre("POISON 3+1", "WAKE 3+1", "madvise 3+1 DONTNEED",
                          "WRITEPROTECT 3+1 off", "POISON 3+1"));
  EXPECT_EQ(slot_.lifecycle.Load(std::memory_order_relaxed),
            SlotLifecycle::kFree);
}

TEST_F(HandlerThreadsTest, ASlotThatSomebodyHasByThenIsLookedAtAnew) {
  fault_pool_.poison = true;
  slot_.lifecycle.Move(SlotLifecycle::kReturning);
  machine_.Fail(Op::kPoison, 1, RangeResult{0, EEXIST});
  EXPECT_THAT(CallsOf({Event(20, 0)}, Op::kWake, /*nth=*/2),
              ElementsAre("POISON 20+1", "WAKE 20+1", "WAKE 20+1"));
}

TEST_F(HandlerThreadsTest, ThreadsEndWithoutAnEvent) {
  absl::StatusOr<std::unique_ptr<HandlerThreads>> threads =
      HandlerThreads::Start(fault_pool_, "scripted", 3);
  ASSERT_TRUE(threads.ok()) << threads.status();
  (*threads)->WaitForReads();
}

TEST_F(HandlerThreadsTest, WithoutADescriptorThereAreNoThreads) {
  machine_.Fail(Op::kEventFd, 1, CallResult{0, EMFILE});
  EXPECT_THAT(
      std::string(
          HandlerThreads::Start(fault_pool_, "scripted", 1).status().message()),
      HasSubstr("eventfd(2) to end the handler threads by"));
}

TEST_F(HandlerThreadsTest, WhereNothingCanHelpWaitersTheProcessEndsAndSaysWhy) {
  const ChildResult child = RunInChild([this]() -> std::string {
    machine_.Fail(Op::kPoll, 1, CallResult{0, ENOMEM});
    auto threads = HandlerThreads::Start(fault_pool_, "scripted", 1);
    while (threads.ok()) pause();
    return "did not start";
  });
  EXPECT_EQ(child.signal, SIGABRT);
  EXPECT_THAT(child.output,
              HasSubstr("firsttouch: handler thread of pool \"scripted\": poll "
                        "failed with errno 12; threads that wait for a page "
                        "would wait for ever"));
}

}  // namespace
}  // namespace firsttouch
