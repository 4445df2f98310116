// A handler thread reads an event, and acts on it later. Meanwhile the guest
// that faulted may have left, and its slot may be leased again: nothing may
// happen to that lease, and a step that fails is no failure of the pool.

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

constexpr uint64_t kSize = 16 * kPageBytes;

// Holds the handler thread at one call, once.
class Gate {
 public:
  // Called by the handler thread: waits here, the first time.
  void Pass() {
    if (!armed_.exchange(false)) return;
    held_ = true;
    while (!open_) sched_yield();
  }
  void Arm() { armed_ = true; }
  void WaitUntilHeld() const {
    while (!held_) sched_yield();
  }
  void Open() { open_ = true; }

 private:
  std::atomic<bool> armed_{false};
  std::atomic<bool> held_{false};
  std::atomic<bool> open_{false};
};

// Gives other threads time to come as far as they can. The assertions after it
// do not depend on how far they have come.
void LetOthersRun() {
  for (int i = 0; i < 20'000; ++i) sched_yield();
}

class StaleEventsTest : public testing::TestWithParam<bool> {
 protected:
  // Whether the pool makes traps by UFFDIO_POISON.
  static bool poison() { return GetParam() && TrapsByPoison(); }

  void SetUp() override {
    constexpr Way kWay{Backing::kShared, Resolve::kHandlerThread};
    if (const std::string missing = MissingFor(kWay); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    if (poison() && (MachineFacts().features & kUffdFeaturePoison) == 0) {
      GTEST_SKIP() << "this machine has no POISON (Linux 6.6)";
    }
    if (!poison()) {
      kernel_.SetApiReply(
          kUffdFeaturePagefaultFlagWp | kUffdFeatureMissingShmem |
              kUffdFeatureMinorShmem | kUffdFeatureWpHugetlbfsShmem |
              kUffdFeatureExactAddress | kUffdFeatureWpUnpopulated,
          ~uint64_t{0});
    }
    absl::StatusOr<std::unique_ptr<Service>> service = CreateService(
        {.name = "stale",
         .layout = {.instances = 2,
                    .max_memory_bytes = 32 * kPageBytes,
                    .guard_after_bytes = 65536},
         .supply = UserfaultfdOptions{.backing = Backing::kShared,
                                      .faults = InHandlerThreads{}},
         .trap_callback = JumpOutOfTrap},
        kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  // A kernel's event of a write to that offset.
  static uffd_msg EventAt(const Memory& memory, uint64_t offset_bytes) {
    uffd_msg message = {};
    message.event = kUffdEventPagefault;
    message.arg.pagefault.address =
        reinterpret_cast<uintptr_t>(memory.base()) + offset_bytes;
    message.arg.pagefault.flags = kUffdPagefaultWrite;
    return message;
  }

  // A guest whose own fault makes the handler thread read the queued events.
  std::thread GuestThatTouches(const Memory& memory, uint64_t offset_bytes) {
    return std::thread([&memory, offset_bytes] {
      ASSERT_TRUE(EnsureAlternateStack().ok());
      Store(memory, offset_bytes, 1);
    });
  }

  Op TrapOp() const { return poison() ? Op::kPoison : Op::kMprotect; }

  Memory MustAcquire(const ImageRef& image = nullptr) {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image, .size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  FakeKernel kernel_;
  std::unique_ptr<Service> service_;
};

std::string KernelName(const testing::TestParamInfo<bool>& info) {
  return info.param ? "WithPoison" : "BeforePoison";
}

INSTANTIATE_TEST_SUITE_P(Kernels, StaleEventsTest, testing::Bool(), KernelName);

// A second event is queued behind the one that the thread is held at when its
// lease ends, and the next lease's memory has no registration.
class QueuedEventTest : public StaleEventsTest {
 protected:
  void RunWithEventAt(uint64_t offset_bytes) {
    const ImageRef image = PatternImage("the next one", 8);
    Memory slow = MustAcquire();
    Memory memory = MustAcquire();
    Gate gate;
    kernel_.Hook(TrapOp(), [&](const auto&) { gate.Pass(); });
    kernel_.QueueEvents({EventAt(slow, kSize), EventAt(memory, offset_bytes)});
    gate.Arm();
    std::thread guest = GuestThatTouches(slow, 0);
    gate.WaitUntilHeld();
    const uint32_t slot = memory.instance();
    ASSERT_TRUE(memory.Release().ok());
    Memory next = MustAcquire(image);
    ASSERT_EQ(next.instance(), slot);
    ASSERT_EQ(Load(next, 5), InitialBytes(image, kSize)[5]);
    const uint64_t calls = kernel_.Calls(TrapOp());
    gate.Open();
    guest.join();
    EXPECT_EQ(kernel_.Calls(TrapOp()), calls)
        << "a page of the next lease was made to trap";
    EXPECT_EQ(FirstDifference(next, InitialBytes(image, kSize)), std::nullopt);
  }
};

INSTANTIATE_TEST_SUITE_P(Kernels, QueuedEventTest, testing::Bool(), KernelName);

TEST_P(QueuedEventTest, OutOfBoundsIsDroppedWithItsLease) {
  RunWithEventAt(kSize);
}

TEST_P(QueuedEventTest, InBoundsIsDroppedWithItsLease) { RunWithEventAt(0); }

TEST_P(QueuedEventTest, InTheGuardIsDroppedWithItsLease) {
  RunWithEventAt(33 * kPageBytes);
}

// Releases `memory` on another thread while the handler thread is held at
// `gate`: the release has to wait.
void ExpectThatReleaseWaitsFor(Gate& gate, Memory memory) {
  gate.WaitUntilHeld();
  std::atomic<bool> released{false};
  std::thread releasing([&] {
    EXPECT_TRUE(memory.Release().ok());
    released = true;
  });
  LetOthersRun();
  EXPECT_FALSE(released);
  gate.Open();
  releasing.join();
}

TEST_P(StaleEventsTest, AReleaseWaitsForAThreadThatHasReadAndNotNoted) {
  Memory other = MustAcquire();
  Memory memory = MustAcquire();
  Gate gate;
  kernel_.HookAfter(Op::kReadEvents, [&](const auto&) { gate.Pass(); });
  kernel_.QueueEvents({EventAt(memory, kSize)});
  gate.Arm();
  std::thread guest = GuestThatTouches(other, 0);
  ExpectThatReleaseWaitsFor(gate, std::move(memory));
  guest.join();
  // The event came before the release: it does not affect the next lease.
  Memory next = MustAcquire(PatternImage("next", 8));
  EXPECT_EQ(FirstDifference(next, InitialBytes(PatternImage("next", 8), kSize)),
            std::nullopt);
}

TEST_P(StaleEventsTest, AReleaseWaitsForAPageThatIsBeingMadeToTrap) {
  Memory other = MustAcquire();
  Memory memory = MustAcquire();
  Gate gate;
  kernel_.Hook(TrapOp(), [&](const auto&) { gate.Pass(); });
  kernel_.QueueEvents({EventAt(memory, kSize)});
  gate.Arm();
  std::thread guest = GuestThatTouches(other, 0);
  ExpectThatReleaseWaitsFor(gate, std::move(memory));
  guest.join();
}

TEST_P(StaleEventsTest, APageThatWasGrownIntoMeanwhileStaysAccessible) {
  if (poison()) GTEST_SKIP() << "UFFDIO_POISON spares a page that is there";
  Memory other = MustAcquire();
  Memory memory = MustAcquire();
  Gate gate;
  kernel_.Hook(Op::kMprotect, [&](const auto&) { gate.Pass(); });
  kernel_.QueueEvents({EventAt(memory, kSize)});
  gate.Arm();
  std::thread guest = GuestThatTouches(other, 0);
  gate.WaitUntilHeld();
  ASSERT_TRUE(memory.Grow(kSize + kPageBytes).ok());
  const uint64_t calls = kernel_.Calls(Op::kMprotect);
  gate.Open();
  guest.join();
  // No fault of ours would make the page accessible again: it is accessible
  // already.
  EXPECT_EQ(kernel_.Calls(Op::kMprotect), calls + 1);
  Store(memory, kSize, 7);
  EXPECT_EQ(kernel_.Calls(Op::kMprotect), calls + 1);
  EXPECT_EQ(Load(memory, kSize), 7);
}

}  // namespace
}  // namespace firsttouch
