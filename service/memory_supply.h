// What gives a pool its memory, behind one interface.
//
// The service decides which slot is leased, and for how long. A MemorySupply
// puts the pages there: it makes a slot the memory of an image, moves its
// bound, restores it, and says which of its pages may have changed. The service
// asks it for nothing else, and does not know which kind of supply it is. A new
// kind is a new class and a line in open_supply.cc.
//
//   service (service_pool.h)                        fault path (signal_path.cc)
//     | acquire  Bind, Prefill                 | a signal in bounds
//     | grow     Open, NoteGrown               v
//     | release  StopFills, Restore         FaultPool::resolve_signal
//     | trim     KeptSpan, NoteDropped         ^
//     v                                        | set by the supply
//   MemorySupply <-----------------------------+
//     UffdSupply      this library places pages (userfaultfd)
//     MappingSupply   the kernel does (private mappings and mprotect)
//
// THE STEADY CYCLE DOES NOT COME HERE. An acquire makes no virtual call where
// it takes the slot that the thread has released last; nor does a release where
// only pages in the slot's planes (page_states.h) are known to have changed. A
// supply that is told of every change allows that by its traits' steady_cycles;
// where a supply is not told, every release is a Restore().
//
// WHAT A SLOT'S RECORD SAYS (slot_state.h) belongs to the supply, but for
// lifecycle, size_bytes, initial_bytes, kept_pages, the trap callback and what
// idle slots keep, which are the service's. By `remap_wanted` the two tell each
// other of a step that failed half-way: see Bind().
//
// Errors name the call, the range, the slot and the pool. Each method says
// which state an error leaves. No method is for signal handlers.

#ifndef FIRSTTOUCH_SERVICE_MEMORY_SUPPLY_H_
#define FIRSTTOUCH_SERVICE_MEMORY_SUPPLY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/memory_pages.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/batch_drop.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {

// The pool that a supply is for. The referenced objects outlive the supply.
struct SuppliedPool {
  const ServiceOptions& options;
  const PoolLayout& layout;
  Kernel& kernel;
  // A supply fills in its own fields: uffd, resolve_signal, backing, resolve,
  // poison, zero_source. The others are set from Attach() on, but for `entry`,
  // which is set from Start() on.
  FaultPool& fault_pool;
};

// What the service and its users are told of a supply.
struct SupplyTraits {
  // The kind, as a user can ask for it.
  Supply kind = Supply::kUserfaultfd;
  // For readers of the control block; static strings, empty where it has none.
  const char* backing = "";
  const char* resolve = "";
  uint32_t handler_threads = 0;
  // Whether system calls work on any page, without MakeReady().
  bool serves_kernel_faults = false;
  // The number of cycles from one Restore() of a slot to the next; all of them
  // but the last two may take the steady path. 0: none may.
  uint32_t steady_cycles = 0;
};

class MemorySupply;

// Opens the supply of a pool: OpenSupply (open_supply.h), or a test's own.
using SupplyOpener =
    absl::StatusOr<std::unique_ptr<MemorySupply>> (*)(const SuppliedPool& pool);

class MemorySupply {
 public:
  MemorySupply() = default;
  MemorySupply(const MemorySupply&) = delete;
  MemorySupply& operator=(const MemorySupply&) = delete;
  // Called after Stop() and after the reservation was unmapped. In a child of
  // fork(2) it is called without either, and leaves alone what is not the
  // child's.
  virtual ~MemorySupply() = default;

  // The pool, in this order.
  // ---------------------------------------------------

  // Called once, when the reservation is there, inaccessible, and the slots'
  // records are there. Errors: what a kernel call gives; the pool is not made
  // then.
  virtual absl::Status Attach(const Reservation& reservation) = 0;
  // Called once, when the locator knows the pool and the signal handler is in
  // place: starts the threads that the supply needs. Errors: likewise.
  virtual absl::Status Start() { return absl::OkStatus(); }
  // Ends these threads. No code is in a memory of the pool any more.
  virtual void Stop() {}

  // What it is. Constant from Attach() on.
  virtual SupplyTraits traits() const = 0;
  // Lines for Service::Describe(), the last one ended.
  virtual std::string Describe() const = 0;

  // By the slot's owner, while no guest code runs in it.
  // ---------------------------------

  // Whether a slot can be made the memory of `image` at all; asked before a
  // slot is taken. May wait for the image's PageSource.
  virtual absl::Status CheckImage(const Image& /*image*/) const {
    return absl::OkStatus();
  }

  // Makes the memory that of `image` (null: zeroes), for a lease that begins
  // with `size_pages` pages: no page behind them can be touched without a
  // signal. Sets `prefill_wanted` where Prefill() has something to do.
  //
  // An error that leaves the slot's `remap_wanted` false has changed nothing.
  // After any other error the slot's state is unknown: the caller abandons it
  // (slot_record.h), and the next Bind() maps all of it anew. After success the
  // caller clears `remap_wanted`.
  virtual absl::Status Bind(SlotState& slot, const ImageRef& image,
                            uint64_t size_pages) = 0;

  // Makes those of the first `size_pages` pages ready that leases of the image
  // are known to touch, at most `most_pages` of them private. What fails is
  // left to the first touch. Clears `prefill_wanted`.
  virtual void Prefill(SlotState& slot, uint64_t size_pages,
                       uint64_t most_pages) = 0;

  // Makes an abandoned slot one that was never bound. An error leaves the same
  // state as one of Bind().
  virtual absl::Status Unbind(SlotState& slot) = 0;

  // Called when the lease is over and `size_bytes` is 0: returns when nothing
  // of the supply's own places pages in the slot any more.
  virtual void StopFills(SlotState& /*slot*/) {}

  // Called after StopFills(). Restores the initial bytes below `kept_pages` and
  // gives back the pages behind, of a lease whose size was `size_bytes`.
  // Changed pages may stay private, at most `most_private_pages` of them; with
  // kSlotDropped in `exceptions` every page is dropped. The record's
  // `size_bytes` may have another value afterwards. After an error the slot
  // must not be used again.
  virtual absl::Status Restore(SlotState& slot, uint64_t size_bytes,
                               uint64_t most_private_pages) = 0;

  // The private pages that the slot keeps after a Restore() or Prefill().
  virtual uint64_t KeptPages(SlotState& slot) = 0;

  // The range to give back (MADV_DONTNEED) so that a free slot keeps no pages.
  virtual PageSpan KeptSpan(const SlotState& slot) const = 0;
  // Notes that KeptSpan() was dropped or, with `error` an errno of madvise(2),
  // that it was not; returns `error` as a status then.
  virtual absl::Status NoteDropped(SlotState& slot, const PageSpan& span,
                                   int error) = 0;

  // Adds to `batch` the pages that have stopped changing (`demotion`) and are
  // to be dropped together with those of other slots. NoteDemoted() then notes
  // the result.
  virtual void AddColdPages(SlotState& /*slot*/, DropBatch& /*batch*/) {}
  virtual absl::Status NoteDemoted(SlotState& /*slot*/,
                                   const DropBatch::Result& /*dropped*/) {
    return absl::OkStatus();
  }

  // Makes all of the slot trap, whatever its state, as far as the kernel obeys.
  // `size_bytes` is 0.
  virtual void Shut(SlotState& /*slot*/) {}

  // Whether since the last call something has happened to the process that
  // invalidates what is known of pages of free slots, or what releases will
  // find: all these pages are to be dropped. May make a system call.
  virtual bool DistrustsPages() { return false; }

  // By guests and hosts, any number of threads at once.
  // ----------------------------------

  // The mutex that growths and snapshots of a slot lock; null where they need
  // none.
  virtual Mutex* GrowthMutex(const SlotState& /*slot*/) { return nullptr; }
  class GrowthLock;

  // Makes the pages up to `end_page` accessible once the size includes them.
  // Called under the GrowthLock. After an error nothing has changed.
  virtual absl::Status Open(SlotState& /*slot*/, uint64_t /*end_page*/) {
    return absl::OkStatus();
  }
  // Notes that the size has changed, in bytes. A failure is left to the first
  // touch.
  virtual void NoteGrown(SlotState& /*slot*/, uint64_t /*before*/,
                         uint64_t /*after*/) {}

  // Makes everything that can be touched read-only, or writable again. Called
  // under the GrowthLock. After an error a part may have been done.
  virtual absl::Status SetWritable(SlotState& slot, bool writable) = 0;

  // Calls visit(page) for each page below `end_page` that may have changed, and
  // maybe for others; each of them can be read. Called while the memory is
  // read-only for all threads. Threads that wait for it may hold any lock, so
  // it allocates as little as it can. Errors: those of pages that were left
  // out.
  virtual absl::Status ForEachChangedPage(
      SlotState& slot, uint64_t end_page,
      absl::FunctionRef<void(uint64_t page)> visit) = 0;

  // Memory::MakeReady, for a range that is not empty and lies in bounds.
  virtual absl::Status MakeReady(SlotState& slot, uint64_t offset_bytes,
                                 uint64_t bytes, Access access) = 0;

  // Memory::CountPages.
  virtual MemoryPages CountPages(SlotState& slot) = 0;
};

// Held while the slot's bound moves, or while it must not move.
class MemorySupply::GrowthLock {
 public:
  GrowthLock(MemorySupply& supply, const SlotState& slot);
  ~GrowthLock();
  GrowthLock(const GrowthLock&) = delete;
  GrowthLock& operator=(const GrowthLock&) = delete;

 private:
  Mutex* const mutex_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_MEMORY_SUPPLY_H_
