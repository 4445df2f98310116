// The record of one slot: whether it is leased, what it is bound to, what is
// known of its pages.
//
// ON THE FAULT PATH: plain data and atomics, no lock, no allocation.
//
// Who may touch what:
//   size_bytes, fills_in_flight, lease,       any thread, atomically
//   lifecycle
//   pages (the planes)                        fault path: sets bits; owner:
//                                             clears, with no fill in flight
//   everything under "owner"                  the thread that acquires, resets
//                                             or releases; one at a time, and
//                                             not while guest code runs
//   counters, poisoned_pages                  any thread, relaxed
// The owner's plain fields are read by the fault path of a leased slot; that is
// ordered by the store of size_bytes (release) at acquire and its load
// (acquire) in the fault path. A slot that is not leased has size 0: every
// fault in it ends before it reads anything else.

#ifndef FIRSTTOUCH_SERVICE_SLOT_STATE_H_
#define FIRSTTOUCH_SERVICE_SLOT_STATE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "firsttouch/control/counters.h"
#include "firsttouch/pool/slot_lifecycle.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/supply_kinds.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

class Image;
class TrackingPolicy;
struct ImageFetch;

// What happened in a slot since the pool was made. Relaxed: each number is
// exact; numbers read together may be a moment apart.
struct SlotCounters {
#define FIRSTTOUCH_DECLARE(name) std::atomic<uint64_t> name;
  FIRSTTOUCH_SLOT_COUNTERS(FIRSTTOUCH_DECLARE)
#undef FIRSTTOUCH_DECLARE
};

// Adds to a counter of a slot. It mostly has one writer, but threads that share
// a memory may add at once, so that a plain add would lose counts.
inline void Count(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

// Adds to a counter that only the slot's owner writes, without a locked
// instruction.
inline void CountOwned(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  counter.store(counter.load(std::memory_order_relaxed) + by,
                std::memory_order_relaxed);
}

// Poisoned pages: pages outside the bounds that handler threads made trap one
// by one, by UFFDIO_POISON or, where the kernel lacks it, by mprotect(2); or
// pages in the bounds that could not be supplied. Growth and release undo this.
struct PoisonedPages {
  static constexpr uint32_t kCapacity = 8;
  // Page addresses: the first kCapacity pages that were poisoned by
  // UFFDIO_POISON, or the last kCapacity ones that were made inaccessible; no
  // other page is inaccessible.
  std::atomic<uintptr_t> page[kCapacity];
  // The number of pages added. May exceed kCapacity; everything behind the size
  // must be treated then.
  std::atomic<uint32_t> count;
};

// Where the last fill of one kind ended, and how many pages it had: a guest
// that touches ascending addresses gets more pages at a time. Fault path.
struct FillRun {
  std::atomic<uint64_t> end{0};
  std::atomic<uint64_t> pages{0};
};

// What a sampling window has counted besides the changes that the steady path
// counts. Owner.
struct SamplingWindow {
  // Pages whose first write took a fault.
  uint64_t faulted = 0;
  // kAsync: those of `faulted` that took a signal, since the kernel does not
  // track pages behind the image.
  uint64_t signals = 0;
  // `pairs` counts pairs of successive cycles whose changed pages are both
  // known, and `regular` the pages that both cycles of a pair changed.
  // `last_noted_at` is window_cycles after the last cycle that noted its
  // changed pages (PageGroup::last).
  uint64_t pairs = 0;
  uint64_t regular = 0;
  uint32_t last_noted_at = ~uint32_t{0};
  // The number of coming windows at whose ends the image is told which pages
  // are written again and again.
  uint32_t windows_to_teach = 0;
};

// Pages that have stopped changing. Owner.
struct Demotion {
  // As of the end of the last window: bit i of word w is page 64 w + i.
  std::vector<uint64_t> cold_pages;
  // `due`: the pages are to be dropped now. `windows_put_off`: windows in a row
  // in which they were too few to be worth a call.
  bool due = false;
  uint32_t windows_put_off = 0;
  // The pages that are worth keeping, as of this version of
  // ChangeRates::Regular() (retention.h), in words as above. Version 0: what is
  // worth it is not known, or is no question.
  std::vector<uint64_t> regular_pages;
  uint64_t regular_version = 0;
  // What keeping other pages has cost since such pages were last given back, in
  // ns, up to this cycle of the sampling window.
  double rent_ns = 0;
  uint32_t rent_cycles = 0;
  // Decides which leases are counted (ChangeRates).
  uint32_t chance = 0;
};

// What is known of the kernel's tracking, with kAsync. Owner.
struct AsyncTracking {
  // The waste, in ns: what restoring unchanged pages has cost since all pages
  // were last protected.
  uint64_t wasted_ns = 0;
  // Every page below kernel_pages that was not written since it was protected
  // has the kernel's mark, also where no page is mapped; the exception is page
  // tables that came since.
  bool all_marked = false;
  // The number of regions that the last scan found.
  uint32_t found_regions = 0;
  // What the memory of private pages that leases have stopped changing has
  // cost since such pages were last given back, in ns.
  double rent_ns = 0;
};

// What the slot keeps while it is idle. Written by the service.
struct IdleFacts {
  // Private pages at the last release, and the time of that release
  // (CLOCK_MONOTONIC; only with a budget).
  std::atomic<uint64_t> pages{0};
  std::atomic<uint64_t> released_ns{0};
  // Owner. Pages were dropped since, so that the slot may keep fewer.
  bool keeps_fewer = false;
};

// Pages that a guest grew into and touched, at the last release and at the one
// before: the smaller number is filled at once when the next guest grows.
// Owner.
struct GrowthHistory {
  uint32_t pages = 0;
  uint32_t pages_before = 0;
};

// Why a release of a leased slot has more to do than to restore retained pages.
enum SlotExceptions : uint8_t {
  // A Reset or a Snapshot failed: the pages' states are unknown.
  kSlotBroken = 1,
  // The kernel may still be at work on the pages (Memory::DropAtRelease), or
  // may have merged them and dropped their write-protection: they are dropped,
  // never restored in place.
  kSlotDropped = 2,
  // The last handle of its image may have been dropped.
  kSlotImageUnused = 4,
  // Pages were taken from the memory (munmap, mprotect by other code), while it
  // was held or idle, and a restore found out: see HandleFault(). Set by the
  // fault path; the slot is not used again.
  kSlotLost = 8,
  // The supply has found out that what the slot knows of its pages may be wrong
  // (MemorySupply::DistrustsPages). Set by any thread at any time; becomes
  // kSlotDropped when the slot is next prepared or restored.
  kSlotDistrusted = 16,
};

// What a steady cycle touches is in the first three cache lines: a guest
// that writes to four pages fills a cache of 32 KiB with them and the image's.
struct alignas(64) SlotState {
  // The bounds: bytes from the start that may be touched. 0 while the slot is
  // not leased.
  std::atomic<uint64_t> size_bytes{0};
  // The number of handler threads that are placing pages. A release waits until
  // there is none. (A thread that resolves its own fault is in the memory; it
  // must have left before the release.)
  std::atomic<uint32_t> fills_in_flight{0};
  // Free, leased, or in between: pool/slot_lifecycle.h.
  LifecycleCell lifecycle;
  // First byte of the memory; fixed.
  uintptr_t base = 0;
  PageStates pages;
  // Some page was filled, or its protection lifted, since the last restore.
  // Where false, every dirty page is retained and present, and nothing else
  // needs to be looked at.
  std::atomic<bool> filled{false};
  Tracking tracking = Tracking::kSignal;
  // Bits of SlotExceptions: why the release cannot take the steady path.
  std::atomic<uint8_t> exceptions{0};
  // Owner. The pages that the image's guests write are to be made private
  // before the next lease.
  bool prefill_wanted = false;
  // Owner. The policy asked for another tracking at the last restore outside
  // the steady path.
  bool other_tracking_wanted = false;
  // Owner. The direction in which the last restore went through the pages: the
  // opposite direction finds the caches warm.
  bool restored_downwards = false;
  // Some page is in `poisoned_pages`, or is about to be.
  std::atomic<bool> has_poisoned_pages{false};

  // Owner. What the slot is bound to, in the form the fault path reads; 0 and
  // null without an image.
  uint64_t image_pages = 0;
  const uint64_t* image_stored = nullptr;
  const std::byte* image_data = nullptr;
  std::shared_ptr<const Image> image;
  // Owner. The lease's trap callback.
  TrapCallback trap_callback = nullptr;
  void* trap_user = nullptr;
  // Owner. The initial size of the lease.
  uint64_t initial_bytes = 0;

  // Pages found changed in all cycles of this sampling window (see `window`)
  // together, and the number of those cycles.
  uint64_t window_changed = 0;
  uint32_t window_cycles = 0;
  // Guards against a fault that is resolved without end: how many faults in a
  // row the page of the last fault has had.
  std::atomic<uint32_t> same_page_faults{0};
  // The thread that restores the slot while it is kReturning, as ThisThread()
  // has it.
  std::atomic<uintptr_t> restorer{0};
  SlotCounters counters{};

  std::atomic<uint64_t> last_fault_page{~uint64_t{0}};
  // The address of the last page that was lost (kSlotLost).
  std::atomic<uintptr_t> lost_page{0};
  // Chooses the tracking for the image; null without one.
  std::shared_ptr<TrackingPolicy> policy;
  // Whether some page is untracked.
  std::atomic<bool> any_untracked{false};
  // Some page was read for the first time, and the image's working set is to be
  // told.
  std::atomic<bool> reads_to_teach{false};
  // Owner. The image's memfd is mapped: its pages are shared until they are
  // written. Where false, they are copied in: always with the backing kCopied,
  // and with kShared where that costs less (ShowingOf() in uffd_bind.cc).
  bool image_mapped = false;
  // Owner. The image is small and the slot has had another: the first touch of
  // a page copies all of them, and they are not mapped.
  bool image_copied = false;
  // Clean copies of image pages may be there, of which `present` need not know
  // (page_states.h). Set by the fault path, cleared by a bind that drops all.
  std::atomic<bool> has_clean_copies{false};
  // Guests read pages of the image that were copied in: it is to be mapped
  // before the next lease, so that slots share them.
  std::atomic<bool> mapping_wanted{false};
  PoisonedPages poisoned_pages{};

  // 1 while a snapshot is copied (snapshot.h): a thread that writes to the
  // memory gets SIGSEGV and waits here (a futex) until it is 0 again.
  std::atomic<uint32_t> frozen{0};
  // An upper bound of the signals of such writes that may still be on their
  // way.
  std::atomic<uint32_t> late_writes{0};

  // Handler threads only. Changes with each release and Reset: a fault event
  // that was read before belongs to a lease that has ended.
  std::atomic<uint32_t> lease{0};

  // Releases that have begun and still use the pool; see service_pool.h.
  std::atomic<uint32_t> returning{0};
  // The slot is kReturning for a Reset: its memory stays leased.
  std::atomic<bool> resetting{false};
  // Owner. What restoring a page of this image takes where the guests leave the
  // pages, near caches or far from them, in ns; 0: not measured.
  float restore_ns = 0;
  // The id() of `image`, for searches for an image's slots; 0 without one.
  // kAbandoned: bound to no image, but the image of some lease may still be
  // mapped.
  static constexpr uint64_t kAbandoned = ~uint64_t{0};
  std::atomic<uint64_t> image_id{0};
  // Brings pages into the mapped memfd; null where all are there.
  const ImageFetch* image_fetch = nullptr;
  // Pages of the image of which guests that read them first wrote to them
  // afterwards, the last time: such a page is filled as a private one at once,
  // since copying it later, when it is mapped, takes a second fault and a TLB
  // shootdown. One word for each 64 pages of the image, shared by its slots in
  // the pool; null where that is not done (TrackingPolicy).
  std::atomic<uint64_t>* read_then_written = nullptr;
  // Owner. In pages below kernel_pages the kernel resolves every first touch by
  // itself: not registered (kProfiling), or only for asynchronous protection
  // (kAsync: all, or those of the image). 0 with kSignal. Never above
  // kept_pages.
  uint64_t kernel_pages = 0;
  // The last fills of three kinds: zero pages for writing, reads of mapped
  // image pages, and writes to them.
  FillRun zero_run;
  FillRun read_run;
  FillRun write_run;

  // Owner only from here on. A step that changes what is mapped or registered
  // in the slot has begun and has not been completed: all of it is mapped anew
  // before the next lease.
  bool remap_wanted = false;
  // Nothing may be mapped in the slot's place any more (StaysReserved): it is
  // to be quarantined.
  bool place_lost = false;
  // Pages from the start that may be resident while the slot is free.
  uint64_t kept_pages = 0;
  SamplingWindow window;
  Demotion demotion;
  AsyncTracking async;
  IdleFacts idle;
  GrowthHistory growth;
};

// Where a page of the slot is.
inline uintptr_t AddressOf(const SlotState& slot, uint64_t page) {
  return slot.base + page * kPageBytes;
}

// The initial bytes of a page are those that the image stores, or zeroes.
//
// The pages of a group that the image stores, and whether it stores a page.
inline uint64_t StoredPages(const SlotState& slot, uint64_t group) {
  return group * kPagesPerGroup < slot.image_pages ? slot.image_stored[group]
                                                   : 0;
}
inline bool IsStored(const SlotState& slot, uint64_t page) {
  return (StoredPages(slot, page / kPagesPerGroup) >> (page % kPagesPerGroup) &
          1) != 0;
}
// The bytes of a page that the image stores. They may be in a file that is cut
// short, or in a page source that has not delivered them yet.
inline const std::byte* StoredPage(const SlotState& slot, uint64_t page) {
  return slot.image_data + page * kPageBytes;
}

// The cache lines that the steady path touches, as the order of the fields
// above says.
static_assert(offsetof(SlotState, image_pages) == 64);
static_assert(offsetof(SlotState, window_changed) == 128);
static_assert(offsetof(SlotState, counters) +
                  offsetof(SlotCounters, pages_restored) <
              192);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SLOT_STATE_H_
