#include "firsttouch/service/pool_end.h"

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {
namespace {

// Outlives every pool: a release may still be leaving it when another thread
// deletes the pool.
Mutex& OrphanMutex() {
  static Mutex* const mutex = new Mutex;
  return *mutex;
}

// Whether a memory is held, or a release has not ended.
bool AnyHeld(const ServicePool& pool) {
  for (uint32_t i = 0; i < pool.layout.slots(); ++i) {
    const SlotLifecycle lifecycle =
        pool.slots[i].lifecycle.Load(std::memory_order_acquire);
    // A slot that is returning is yet to take the mutex of all pools.
    if (lifecycle == SlotLifecycle::kLeased ||
        lifecycle == SlotLifecycle::kReturning ||
        lifecycle == SlotLifecycle::kParking) {
      return true;
    }
  }
  return false;
}

}  // namespace

void Orphan(std::unique_ptr<ServicePool> pool) {
  if (!pool->fault_pool.InOwnerProcess()) {
    // A forked child: threads of the parent that were in the middle of a
    // release do not exist here and cannot finish it. Nothing of the pool is
    // the child's anyway.
    static_cast<void>(pool.release());
    return;
  }
  pool->steady.orphaned.store(true, std::memory_order_release);
  pool->steady.fence.Heavy();
  for (uint32_t i = 0; i < pool->layout.slots(); ++i) {
    const SlotState& slot = pool->slots[i];
    // Waits for releases that have not seen the mark. A Reset need not be
    // waited for: the release after it sees the mark, and a memory that is
    // reset in a loop would leave hardly a moment in which it is not
    // kReturning.
    const auto is_returning = [&slot] {
      const SlotLifecycle lifecycle =
          slot.lifecycle.Load(std::memory_order_acquire);
      return lifecycle == SlotLifecycle::kParking ||
             (lifecycle == SlotLifecycle::kReturning &&
              !slot.resetting.load(std::memory_order_relaxed));
    };
    // The order of these two reads matters: see ReturnSlot().
    while (is_returning() ||
           slot.returning.load(std::memory_order_acquire) != 0) {
      sched_yield();
    }
  }
  MutexLock lock(&OrphanMutex());
  if (!AnyHeld(*pool)) return;
  pool->last_release_deletes = true;
  static_cast<void>(pool.release());
}

void ReleaseOrphan(ServicePool& pool, SlotState& slot) {
  // No acquire takes the slot again, so nothing needs to be restored. A touch
  // that comes too late traps all the same.
  slot.size_bytes.store(0, std::memory_order_seq_cst);
  pool.supply->Shut(slot);
  std::unique_ptr<ServicePool> last;
  MutexLock lock(&OrphanMutex());
  slot.lifecycle.Move(SlotLifecycle::kFree);
  if (pool.last_release_deletes && !AnyHeld(pool)) last.reset(&pool);
}

}  // namespace firsttouch
