// A pool: all that it consists of, and how it begins and ends.
//
// What is done with it is in files of their own, each for one thing, and all of
// them functions of a ServicePool:
//   steady_path.h    the whole cycle of a slot whose changed pages are known
//   leases.h         other acquires
//   held_memory.h    grow, make ready, count
//   snapshot.h       a memory as it is at one moment
//   releases.h       other releases, and resets
//   slot_returns.h   where a slot goes then
//   reclaim.h        what idle slots keep
//   pool_end.h       the end of the Service
//   publish.h        what other processes may read
//
// LIFETIME. A ServicePool lives as long as its Service or any memory that is
// held. Counting references would make every cycle write a line that all
// threads share; instead each slot says whether it is held, and only once the
// Service is gone (`orphaned`) do releases look whether they were the last.
//
// FREE SLOTS are known in two places: the allocator has those that any thread
// may take, and each thread that releases steadily keeps its last slot
// (kParked), which others may take, too. So that an acquire which finds nothing
// can be sure that there was nothing (TakeInstance):
//   - A slot becomes kParked only from kParking, after the releasing thread has
//     stored kParking and then read that no thread is `waiting`. A thread that
//     counts itself as waiting, issues the heavy fence and then sees a slot in
//     another state than kParking knows that this slot will not be parked until
//     it stops waiting: a release that had not seen it would be in kParking.
//   - After such a look at every slot the allocator alone knows of free slots,
//     and its own look is exhaustive (SlotAllocator::TryExhaustively).
//   - No thread has two slots at any moment that it needs but one of: a slot
//     that is parked instead of another one is parked first, and an acquire
//     that has taken its thread's slot uses it.

#ifndef FIRSTTOUCH_SERVICE_SERVICE_POOL_H_
#define FIRSTTOUCH_SERVICE_SERVICE_POOL_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/control_block.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/pool/slot_allocator.h"
#include "firsttouch/service/background_reclaim.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/stats.h"
#include "firsttouch/uffd/asymmetric_fence.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/process_mark.h"

namespace firsttouch {

// A size for people, in bytes and pages.
std::string InPages(uint64_t bytes);

// Destroys records in memory that is not theirs to free.
struct DestroySlots {
  uint32_t slots = 0;
  void operator()(SlotState* first) const { std::destroy_n(first, slots); }
};

struct ServicePool {
  static absl::StatusOr<std::unique_ptr<ServicePool>> Create(
      ServiceOptions options, Kernel& kernel, SupplyOpener open_supply);
  // In the process that made it: ends the handler threads, unmaps the pool,
  // then closes the userfaultfd, in this order. In a forked child: leaves
  // everything as it is, since none of it is the child's.
  ~ServicePool();
  ServicePool(const ServicePool&) = delete;
  ServicePool& operator=(const ServicePool&) = delete;

  // Not in a child of fork(2), where CheckProcess() is FailedPrecondition.
  bool InOwnerProcess() const { return steady.made_by.IsHere(); }
  absl::Status CheckProcess() const;

  uint32_t SlotNumber(const SlotState& slot) const {
    return static_cast<uint32_t>(&slot - slots.get());
  }
  Memory MemoryOf(SlotState& slot) {
    return {this, &slot, reinterpret_cast<std::byte*>(slot.base)};
  }

  // As the methods of Service are.
  ServiceStats Stats() const;
  std::string Describe() const;

  // What a steady cycle reads of this object, in one cache line. Written
  // by Create() and, but for the atomics, never again.
  struct alignas(64) Steady {
    Steady(uint64_t pool_number, Kernel& kernel)
        : number(pool_number), fence(kernel) {}

    // As in fault_pool.
    const ProcessMark made_by = ProcessMark::Here();
    // Unique among all pools that this process ever had.
    const uint64_t number;
    // Between releases that may be the last, and Orphan().
    const AsymmetricFence fence;
    // SupplyTraits::steady_cycles.
    uint32_t max_cycles = 0;
    // Threads that wait for a slot.
    std::atomic<uint32_t> waiting{0};
    std::atomic<bool> orphaned{false};
    // Whether a released slot is kept for its thread, out of the allocator.
    bool parks = false;
    bool has_background_reclaim = false;
  };
  static_assert(sizeof(Steady) == 64);

  Steady steady;
  const ServiceOptions options;
  Kernel& kernel;
  const PoolLayout layout;
  FaultPool fault_pool;
  std::unique_ptr<MemorySupply> supply;
  std::optional<Reservation> reservation;
  // Has the records and page states of all slots.
  std::unique_ptr<ControlBlock> control;
  std::unique_ptr<SlotState[], DestroySlots> slots;
  // Made once the limits are checked: it allocates for each instance.
  std::optional<SlotAllocator> allocator;
  // Private pages that slots kept at their last release, held ones included:
  // more than what idle ones keep. Only with a budget.
  std::atomic<int64_t> kept_by_slots{0};
  // Slots with cold pages too few to be worth a call, by their number + 1; 0:
  // no slot. Not all of them: for the others the end of their next sampling
  // window does.
  std::array<std::atomic<uint32_t>, 16> put_off{};
  std::unique_ptr<BackgroundReclaim> background_reclaim;
  bool registered = false;
  bool handler_installed = false;

  // Under the mutex of all pools (pool_end.h). Set once Orphan() has seen
  // memories that are still held: the last of them deletes the pool.
  bool last_release_deletes = false;

 private:
  ServicePool(ServiceOptions pool_options, Kernel& pool_kernel,
              const PoolLayout& pool_layout);

  absl::Status Start(SupplyOpener open_supply);
  absl::Status MapBookKeeping();
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SERVICE_POOL_H_
