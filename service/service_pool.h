// A pool with all that serves it: the implementation of Service and Memory.
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
//
// LOCK ORDER. One mutex for all pools, taken only when a Service has gone
// before its memories; never on the steady path, nor with another one held, nor
// on the fault path.

#ifndef FIRSTTOUCH_SERVICE_SERVICE_POOL_H_
#define FIRSTTOUCH_SERVICE_SERVICE_POOL_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/control/control_block.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/pool/slot_allocator.h"
#include "firsttouch/service/background_reclaim.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/stats.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/uffd/asymmetric_fence.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/process_mark.h"

namespace firsttouch {

// Destroys records in memory that is not theirs to free.
struct DestroySlots {
  uint32_t slots = 0;
  void operator()(SlotState* first) const { std::destroy_n(first, slots); }
};

class ServicePool {
 public:
  static absl::StatusOr<std::unique_ptr<ServicePool>> Create(
      ServiceOptions options, Kernel& kernel, SupplyOpener open_supply);
  // In the process that made it: ends the handler threads, unmaps the pool,
  // then closes the userfaultfd, in this order. In a forked child: leaves
  // everything as it is, since none of it is the child's.
  ~ServicePool();

  absl::StatusOr<Memory> AcquireOne(const MemoryOptions& options);
  absl::StatusOr<std::vector<Memory>> AcquireInstance(
      std::span<const MemoryOptions> options);

  // What Memory does; see memory.h.
  absl::StatusOr<uint64_t> GrowBy(SlotState& slot, uint64_t delta_bytes);
  absl::Status GrowTo(SlotState& slot, uint64_t new_size_bytes);
  absl::Status Reset(SlotState& slot);
  absl::StatusOr<ImageRef> Snapshot(SlotState& slot, std::string name,
                                    bool delta);
  absl::Status MakeReady(SlotState& slot, uint64_t offset_bytes, uint64_t bytes,
                         Access access);
  MemoryPages CountPages(SlotState& slot) const;
  absl::Status Release(SlotState& slot);
  static void DropAtRelease(SlotState& slot);

  // In steady_path.cc. The calling thread was found ready for guest code.
  static void NoteThreadReady();

  // The last handle of an image has gone: idle slots let go of it now, others
  // at their release. Adds what they had to `dropped`, which the caller
  // destroys when it holds nothing. Any thread.
  void LetGoOfImage(const Image& image,
                    std::vector<std::shared_ptr<const Image>>& dropped);

  // The Service is gone: deletes `pool` now, or when the last memory goes.
  static void Orphan(std::unique_ptr<ServicePool> pool);

  absl::StatusOr<uint64_t> Trim();

  ServiceStats Stats() const;
  std::string Describe() const;

  const ServiceOptions& options() const { return options_; }
  const PoolLayout& layout() const { return layout_; }
  const FaultPool& fault_pool() const { return fault_pool_; }
  Supply supply() const { return supply_->traits().kind; }
  bool serves_kernel_faults() const {
    return supply_->traits().serves_kernel_faults;
  }
  uint32_t SlotNumber(const SlotState& slot) const {
    return static_cast<uint32_t>(&slot - slots_.get());
  }

 private:
  ServicePool(ServiceOptions options, Kernel& kernel, const PoolLayout& layout);

  absl::Status Start(SupplyOpener open_supply);
  // In snapshot.cc. Keeps all threads from writing to the memory, or lets them
  // write again.
  absl::Status Freeze(SlotState& slot);
  absl::Status Thaw(SlotState& slot);
  absl::Status MapBookKeeping();
  // In publish.cc. What readers are told of the pool, once, and of a slot
  // each time that it is bound.
  void Publish();
  void PublishImage(const SlotState& slot);
  absl::Status CheckMemoryOptions(const MemoryOptions& options) const;
  // A size for people, in bytes and pages.
  static std::string InPages(uint64_t bytes);
  // Not in a child of fork(2).
  bool InOwnerProcess() const { return steady_.made_by.IsHere(); }
  absl::Status CheckProcess() const;
  // Not after a Reset or a Snapshot that failed.
  static absl::Status CheckUsable(const SlotState& slot);
  Memory MemoryOf(SlotState& slot) {
    return {this, &slot, reinterpret_cast<std::byte*>(slot.base)};
  }
  // What AcquireOne and Release do where the cycle is not a steady one.
  // `own` (may be null) is the slot that the thread had parked, claimed.
  absl::StatusOr<Memory> AcquireAny(const MemoryOptions& options,
                                    SlotState* own);
  absl::Status CheckAcquireOne(const MemoryOptions& options) const;
  absl::Status ReleaseAny(SlotState& slot);
  absl::Status TooLarge(uint64_t size_bytes, uint64_t delta_bytes) const;
  absl::StatusOr<uint32_t> TakeInstance(const MemoryOptions& first);
  absl::StatusOr<uint32_t> TakeFromAllocator(uint64_t key, absl::Time deadline);
  // In steady_path.cc, but for ClaimAnyParked, up to ParkInsteadOf.
  //
  // The slot that this thread parked with such an image, claimed; null where
  // there is none, or another thread has taken it.
  SlotState* ClaimOwn(const MemoryOptions& options) const;
  // Whether this thread, which has parked a slot, may run guest code: it may
  // have released a memory that another thread acquired.
  bool ThisThreadIsReady() const;
  // Whether a claimed slot can be leased as it is.
  static bool IsReadyFor(const SlotState& slot, const MemoryOptions& options);
  static void Lease(SlotState& slot, const MemoryOptions& options);
  // Whether the guest left nothing but changes of retained pages.
  static bool IsSteady(const SlotState& slot);
  // `surely`: waits for slots of which it is not decided yet whether they are
  // parked. That takes no longer than a steady release, or a trim.
  std::optional<uint32_t> ClaimAnyParked(bool surely);
  // Where a clean, returning slot goes: to this thread, or to everybody.
  void Park(SlotState& slot);
  // The same for a thread that has parked `before`, which goes to everybody.
  void ParkInsteadOf(SlotState& before, SlotState& slot);
  void Return(SlotState& slot, SlotLifecycle lifecycle);
  // Where a restored slot goes whose image has perhaps no handle any more.
  void ReturnUnbound(SlotState& slot);
  // Gives back private pages of idle slots until the rest keep `budget` bytes.
  // `more` (may be null): whether they may be over it once releases that are
  // under way have ended.
  absl::StatusOr<uint64_t> TrimTo(uint64_t budget, bool* more);
  // An idle slot that was `before` its trim, which failed.
  void QuarantineIdle(SlotState& slot, SlotLifecycle before);
  // Drops the cold pages of a slot that is being restored, together with those
  // of free slots that have put it off.
  absl::Status Demote(SlotState& slot);
  void PutOffDemotion(const SlotState& slot);
  // Gives back those of some slots with as few calls as the kernel allows;
  // leaves out slots that are leased by now. Adds to `bytes` what it gave back.
  absl::Status TrimSlots(std::span<SlotState* const> slots, uint64_t* bytes);
  // Notes what a slot keeps that was just restored.
  void NoteIdle(SlotState& slot);
  // Forgets it: the slot is quarantined, or has given it back. Returns it.
  uint64_t ForgetIdle(SlotState& slot);
  // By a release: has background reclaim look at the budget if it may be
  // passed.
  void MindBudget() {
    if (steady_.has_background_reclaim) WakeIfOverBudget();
  }
  void WakeIfOverBudget();
  // Gives back what the slot, which is being restored, would keep.
  absl::Status DropKept(SlotState& slot);
  // After an error call GiveUp.
  absl::Status PrepareSlot(SlotState& slot, const MemoryOptions& options);
  // Where a slot goes that could not be prepared: back to the free ones, as it
  // was if nothing had been changed, else to be mapped anew; only where that
  // cannot be done it is quarantined.
  void GiveUp(SlotState& slot);
  // Forgets everything of the slot; it is mapped anew for its next lease.
  void AbandonSlot(SlotState& slot);
  // Ends a lease: no fill of the slot's pages runs from here on. Returns the
  // size that it had.
  uint64_t EndLease(SlotState& slot);
  // Makes a slot that the caller has claimed, or is returning, one that was
  // never bound; what its image was. The slot may have lost its place.
  std::shared_ptr<const Image> Unbind(SlotState& slot);
  // The same for an idle slot whose image is not in use any more. Adds to
  // `bytes` what was private in it.
  void UnbindIdle(SlotState& slot,
                  std::vector<std::shared_ptr<const Image>>& dropped,
                  uint64_t* bytes);
  // What the allocator should know a free slot by. Not from the slot's image,
  // which may be let go of at any time once the slot is idle.
  static uint64_t AffinityKey(const SlotState& slot);
  // Gives the slot back to the allocator; `failed`: to be quarantined.
  void LetGo(const SlotState& slot, bool failed);
  // Where the supply distrusts what is known of pages: has every page dropped
  // of whose writes the supply may not have been told. Called where a system
  // call does no harm: by what is not steady.
  void DropWhatIsDistrusted();
  // Restores a slot whose lease has ended.
  absl::Status Restore(SlotState& slot);
  // The same of a lease that has ended with `size_bytes`.
  absl::Status RestoreAndNote(SlotState& slot, uint64_t size_bytes);
  void ReleaseOrphan(SlotState& slot);
  bool AnyHeld() const;
  uint64_t RetainedPagesLimit(uint64_t keep_pages) const;

  // What a steady cycle reads of this object, in one cache line. Written
  // by Create() and, but for the atomics, never again.
  struct alignas(64) Steady {
    Steady(uint64_t pool_number, Kernel& kernel)
        : number(pool_number), fence(kernel) {}

    // As in fault_pool_.
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

  Steady steady_;
  const ServiceOptions options_;
  Kernel& kernel_;
  const PoolLayout layout_;
  FaultPool fault_pool_;
  std::unique_ptr<MemorySupply> supply_;
  std::optional<Reservation> reservation_;
  // Has the records and page states of all slots.
  std::unique_ptr<ControlBlock> control_;
  std::unique_ptr<SlotState[], DestroySlots> slots_;
  // Made once the limits are checked: it allocates for each instance.
  std::optional<SlotAllocator> allocator_;
  // Private pages that slots kept at their last release, held ones included:
  // more than what idle ones keep. Only with a budget.
  std::atomic<int64_t> kept_by_slots_{0};
  // Slots with cold pages too few to be worth a call, by their number + 1; 0:
  // no slot. Not all of them: for the others the end of their next sampling
  // window does.
  std::array<std::atomic<uint32_t>, 16> put_off_{};
  std::unique_ptr<BackgroundReclaim> background_reclaim_;
  bool registered_ = false;
  bool handler_installed_ = false;

  // Under the mutex of all pools. Set once Orphan() has seen memories that are
  // still held: the last of them deletes the pool.
  bool last_release_deletes_ = false;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SERVICE_POOL_H_
