#include "firsttouch/uffd/asymmetric_fence.h"

#include <errno.h>
#include <linux/membarrier.h>

#include <atomic>
#include <cstdint>
#include <thread>

#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;

// In how many of many rounds neither of two threads saw the other's store.
int Missed(const AsymmetricFence& fence) {
  constexpr uint64_t kRounds = 3000;
  struct alignas(64) Line {
    std::atomic<uint64_t> value{0};
  };
  Line light_store, heavy_store, light_saw, heavy_saw, light_done, heavy_done;
  int missed = 0;
  std::thread light([&] {
    for (uint64_t round = 1; round <= kRounds; ++round) {
      light_store.value.store(round, std::memory_order_relaxed);
      fence.Light();
      light_saw.value.store(heavy_store.value.load(std::memory_order_relaxed),
                            std::memory_order_relaxed);
      light_done.value.store(round, std::memory_order_release);
      while (heavy_done.value.load(std::memory_order_acquire) < round) {
        std::this_thread::yield();
      }
    }
  });
  for (uint64_t round = 1; round <= kRounds; ++round) {
    heavy_store.value.store(round, std::memory_order_relaxed);
    fence.Heavy();
    heavy_saw.value.store(light_store.value.load(std::memory_order_relaxed),
                          std::memory_order_relaxed);
    while (light_done.value.load(std::memory_order_acquire) < round) {
      std::this_thread::yield();
    }
    missed += heavy_saw.value.load(std::memory_order_relaxed) < round &&
              light_saw.value.load(std::memory_order_relaxed) < round;
    heavy_done.value.store(round, std::memory_order_release);
  }
  light.join();
  return missed;
}

TEST(AsymmetricFence, OneOfTwoThreadsSeesTheOthersStore) {
  const AsymmetricFence fence(RealKernel());
  if (!fence.asymmetric()) GTEST_SKIP() << "no membarrier(2)";
  EXPECT_EQ(Missed(fence), 0);
}

TEST(AsymmetricFence, WithoutMembarrierBothSidesAreOrdinaryFences) {
  FakeKernel kernel;
  kernel.Fail(Op::kMembarrier, FakeKernel::kEvery, CallResult{0, EPERM});
  const AsymmetricFence fence(kernel);
  EXPECT_FALSE(fence.asymmetric());
  const uint64_t calls = kernel.Calls(Op::kMembarrier);
  EXPECT_EQ(Missed(fence), 0);
  EXPECT_EQ(kernel.Calls(Op::kMembarrier), calls);
}

TEST(AsymmetricFence, AKernelThatOnlyRegistersIsNotTrusted) {
  FakeKernel kernel;
  kernel.Fail(Op::kMembarrier, 2, CallResult{0, EPERM});
  EXPECT_FALSE(AsymmetricFence(kernel).asymmetric());
  EXPECT_EQ(kernel.Calls(Op::kMembarrier), 2);
}

TEST(AsymmetricFence, AFilterInstalledLaterMakesHeavyWait) {
  FakeKernel kernel;
  const AsymmetricFence fence(kernel);
  if (!fence.asymmetric()) GTEST_SKIP() << "no membarrier(2)";
  kernel.Fail(Op::kMembarrier, FakeKernel::kEvery, CallResult{0, EPERM});
  fence.Heavy();
  EXPECT_EQ(kernel.Calls(Op::kMembarrier), 3);
}

}  // namespace
}  // namespace firsttouch
