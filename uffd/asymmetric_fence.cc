#include "firsttouch/uffd/asymmetric_fence.h"

#include <linux/membarrier.h>

#include <atomic>
#include <chrono>

#include "firsttouch/uffd/kernel.h"

namespace firsttouch {
namespace {

constexpr std::chrono::milliseconds kLongerThanAnyStore(1);

}  // namespace

AsymmetricFence::AsymmetricFence(Kernel& kernel)
    : kernel_(kernel),
      // Registering fails where the command itself would.
      asymmetric_(
          kernel.Membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED).ok() &&
          kernel.Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED).ok()) {}

void AsymmetricFence::Heavy() const {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!asymmetric_) return;
  if (kernel_.Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED).ok()) return;
  // A filter was installed since. The only way left is to wait for longer than
  // any processor keeps a store to itself, which is some us.
  const auto end = std::chrono::steady_clock::now() + kLongerThanAnyStore;
  while (std::chrono::steady_clock::now() < end) {
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

}  // namespace firsttouch
