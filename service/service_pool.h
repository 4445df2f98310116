// A pool: its parts, and how it begins and ends.
//
// The operations on a pool are functions of a ServicePool, in files of their
// own:
//   steady_path.h    the whole cycle of a slot whose changed pages are known
//   leases.h         other acquires
//   held_memory.h    grow, make ready, count
//   snapshot.h       a memory as it is at one moment
//   releases.h       other releases, and resets
//   slot_returns.h   where a released slot goes
//   reclaim.h        what idle slots keep
//   pool_end.h       the end of the Service
//   publish.h        what other processes may read
//
// LIFETIME. A ServicePool lives as long as its Service or any memory that is
// held. Counting references would make every cycle write a line that all
// threads share; instead each slot says whether it is held, and only once the
// Service is destroyed (`orphaned`) do releases check whether they were the
// last.
//
// FREE SLOTS are known in two places: the allocator has those that any thread
// may take, and each thread that releases on the steady path keeps its last
// slot (kParked), which others may take, too. An acquire that finds no slot can
// be sure that there was none (TakeInstance), because:
//   - A slot becomes kParked only from kParking, after the releasing thread has
//     stored kParking and then read that no thread is `waiting`. A thread that
//     counts itself as waiting, issues the heavy fence and then sees a slot in
//     another state than kParking knows that this slot will not be parked until
//     it stops waiting: a release that had not seen it would be in kParking.
//   - After such a look at every slot the allocator alone knows of free slots,
//     and its own look is exhaustive (SlotAllocator::TryExhaustively).
//   - No thread ever has two slots of which it needs only one: a slot that is
//     parked instead of another one is parked first, and an acquire that has
//     taken its thread's slot uses it.

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

// A size in bytes and pages, for people.
std::string InPages(uint64_t bytes);

// Destroys records whose memory belongs to something else.
struct DestroySlots {
  uint32_t slots = 0;
  void operator()(SlotState* first) const { std::destroy_n(first, slots); }
};

class Service;

struct ServicePool {
  static absl::StatusOr<std::unique_ptr<ServicePool>> Create(
      ServiceOptions options, Kernel& kernel, SupplyOpener open_supply);
  // In the process that made it: ends the handler threads, unmaps the pool,
  // then closes the userfaultfd, in this order. In a forked child: leaves
  // everything alone, since none of it is the child's.
  ~ServicePool();
  ServicePool(const ServicePool&) = delete;
  ServicePool& operator=(const ServicePool&) = delete;

  // False in a child of fork(2), where CheckProcess() is FailedPrecondition.
  bool InOwnerProcess() const { return steady.made_by.IsHere(); }
  absl::Status CheckProcess() const;

  uint32_t SlotNumber(const SlotState& slot) const {
    return static_cast<uint32_t>(&slot - slots.get());
  }
  Memory MemoryOf(SlotState& slot) {
    return {this, &slot, reinterpret_cast<std::byte*>(slot.base)};
  }

  // The methods of Service with these names.
  ServiceStats Stats() const;
  std::string Describe() const;

  // The fields of this object that a steady cycle reads, in one cache line.
  // Written by Create() and, except for the atomics, never again.
  struct alignas(64) Steady {
    Steady(uint64_t pool_number, Kernel& kernel)
        : number(pool_number), fence(kernel) {}

    // As in fault_pool.
    const ProcessMark made_by = ProcessMark::Here();
    // Unique among all pools that this process ever had.
    const uint64_t number;
    // Orders releases that may be the last, and Orphan().
    const AsymmetricFence fence;
    // SupplyTraits::steady_cycles.
    uint32_t max_cycles = 0;
    // The number of threads that wait for a slot.
    std::atomic<uint32_t> waiting{0};
    std::atomic<bool> orphaned{false};
    // Whether a released slot is kept for its thread, outside the allocator.
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
  // Holds the records and page states of all slots.
  std::unique_ptr<ControlBlock> control;
  std::unique_ptr<SlotState[], DestroySlots> slots;
  // Made after the limits are checked: it allocates memory for each instance.
  std::optional<SlotAllocator> allocator;
  // Private pages that slots kept at their last release, including slots that
  // are held: an upper bound of what idle slots keep. Only with a budget.
  std::atomic<int64_t> kept_by_slots{0};
  // Slots with cold pages that are too few to be worth a call, by their number
  // + 1; 0: no slot. Not all such slots: for the others, the end of their next
  // sampling window does it.
  std::array<std::atomic<uint32_t>, 16> put_off{};
  std::unique_ptr<BackgroundReclaim> background_reclaim;
  bool registered = false;
  bool handler_installed = false;

  // Guarded by the mutex of all pools (pool_end.h). Set once Orphan() has seen
  // memories that are still held: the last of them deletes the pool.
  bool last_release_deletes = false;

 private:
  ServicePool(ServiceOptions pool_options, Kernel& pool_kernel,
              const PoolLayout& pool_layout);

  absl::Status Start(SupplyOpener open_supply);
  absl::Status MapBookKeeping();
};

// The pool of a service, for interfaces that call the functions above by
// themselves (capi).
ServicePool& PoolOf(Service& service);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SERVICE_POOL_H_
