// What the fault path knows of a pool, and the one function that makes a page
// appear.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage; //service:fault_path_symbols_test holds the object
// files to that.

#ifndef FIRSTTOUCH_SERVICE_FAULT_CORE_H_
#define FIRSTTOUCH_SERVICE_FAULT_CORE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "firsttouch/locator/lookup.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/process_mark.h"
#include "firsttouch/uffd/signal_mask.h"

namespace firsttouch {

// How a page gets its contents.
enum class Backing : uint8_t {
  // Image pages are a private mapping of the image's memfd: a first read maps
  // the shared page, write-protected; a first write makes a private copy. Clean
  // pages cost nothing per slot. Two mappings per bound slot.
  kShared,
  // Image pages are copied at first touch, a granule at a time. No mapping per
  // slot: for pools near vm.max_map_count, and images that differ per slot.
  kCopied,
};

// Who resolves a fault.
enum class Resolve : uint8_t {
  // The thread that took it, in a SIGBUS handler: no hand-off. A system call
  // that is handed a missing or protected page gets EFAULT: see
  // Memory::MakeReady.
  kInThread,
  // Handler threads that read fault events. Where userfaultfd may serve the
  // kernel's own accesses, system calls work on any page.
  kHandlerThread,
};

const char* BackingName(Backing backing);
const char* ResolveName(Resolve resolve);

// Latencies of resolved faults, from the handler's entry to its end: bucket i
// counts those of [2^i, 2^(i+1)) ns. 32 buckets reach 4 s.
struct LatencyHistogram {
  static constexpr int kBuckets = 32;
  std::atomic<uint64_t> bucket[kBuckets];
  void Add(uint64_t ns);
};

// A fault on one page that was resolved this often in a row, without a page
// coming of it, will never be resolved: rather fail with ELOOP than burn a
// core.
inline constexpr uint32_t kMaxSamePageFaults = 1u << 20;

// Pages of zeroes that one UFFDIO_COPY can take.
inline constexpr uint64_t kZeroSourcePages = 256;

struct FaultCore;
struct FaultResult;
struct SignalFault;

// Everything the fault path reads of a pool; constant while the pool lives,
// but for the atomics.
struct FaultCore {
  Kernel* kernel = nullptr;
  // Of pools that have one; else -1.
  int uffd = -1;
  // What a signal in bounds comes to, as the pool's pages come
  // (in_bounds_faults.h). Never null once the locator knows the pool.
  FaultResult (*resolve_signal)(FaultCore& core,
                                const SignalFault& fault) noexcept = nullptr;
  Backing backing = Backing::kShared;
  Resolve resolve = Resolve::kInThread;
  // Whether a trapping page is made by UFFDIO_POISON (6.6). Where the kernel
  // has no such call, or would write a line to its log at each touch of such a
  // page, the page is made inaccessible by mprotect(2).
  bool poison = false;
  uint64_t granule_pages = 16;
  // A source for pages that start as zeroes: kZeroSourcePages of them, which
  // cost no memory.
  uintptr_t zero_source = 0;
  SlotState* slots = nullptr;
  const char* name = "";
  TrapCallback trap_callback = nullptr;
  void* trap_user = nullptr;
  // In a child of fork(2) the userfaultfd still acts on the parent's memory and
  // must not be used.
  ProcessMark made_by = ProcessMark::Here();
  PoolEntry entry;
  // By slot number modulo kShards, so that threads on different slots do not
  // share a line.
  static constexpr uint32_t kShards = 8;
  struct alignas(64) Shard {
    LatencyHistogram latency;
  };
  Shard shards[kShards];

  bool InOwnerProcess() const { return made_by.IsHere(); }
};

// A fault, as the hardware or the kernel's event tells it.
struct Fault {
  uint32_t slot = 0;
  uint64_t offset_bytes = 0;  // from the memory's start
  Access access = Access::kRead;
  // The page is mapped and the access was refused (a write-protect fault).
  // False says less: the page may have been missing, or swapped out.
  bool protection = false;
  // In a signal handler that blocks signals: the interrupted code's mask, which
  // is put back while a PageSource is waited for. Null elsewhere.
  const SignalSet* interrupted_mask = nullptr;
};

// A fault in bounds, as the signal tells it that the touching thread got.
struct SignalFault {
  int signal = 0;  // SIGBUS or SIGSEGV
  uintptr_t address = 0;
  Fault touch;
};

struct FaultResult {
  enum class Kind : uint8_t {
    kResolved,
    // Outside the bounds; nothing was done.
    kOutOfBounds,
    // The kernel refused; `error` and `call` say what.
    kFailed,
    // The image's page could not be fetched (image_fetch.h); likewise. Nothing
    // is in its place.
    kNoContents,
    // The process is ending, or the fault belongs to nobody any more.
    kGone,
    // In bounds and inaccessible, and this library has not made it so.
    kNotOurs,
  };
  Kind kind = Kind::kResolved;
  int error = 0;
  const char* call = "";
};

// Makes the touched page appear as the access needs it, and with it neighbours
// that come for little: of its granule, or of what lies ahead of a guest that
// goes upwards. Any number of threads may resolve faults of one slot at once,
// also of one page: each step is idempotent, and whoever comes second finds the
// page there and completes what is missing.
//
// Order that matters: a page is put into the `open` or the `untracked` plane
// before it can be writable. Whatever ends this half-way therefore leaves a
// slot that a release cleans: a call that failed after some pages, or a handler
// of the host that runs in between and leaves by longjmp. (The latter in the
// wait for a PageSource only, where asynchronous signals are blocked as
// signals.h says.)
FaultResult ResolveFault(FaultCore& core, const Fault& fault) noexcept;

// What a thread that is not in the memory itself (a handler thread) does with
// one event happens within the life of one of these. The event was read while
// the slot's `lease` was `lease`: where is_current() is false, a release has
// begun since, the thread that faulted has left the memory, and nothing may be
// done to the slot. Where it is true, a release waits for the destructor.
class FillForOther {
 public:
  // Raises fills_in_flight before it reads the lease, a release changes the
  // lease before it reads fills_in_flight, both sequentially consistent: either
  // the release sees the fill, or the fill sees the release.
  FillForOther(SlotState& slot, uint32_t lease) noexcept : slot_(slot) {
    slot_.fills_in_flight.fetch_add(1, std::memory_order_seq_cst);
    is_current_ = slot_.lease.load(std::memory_order_seq_cst) == lease;
  }
  ~FillForOther() {
    slot_.fills_in_flight.fetch_sub(1, std::memory_order_release);
  }
  FillForOther(const FillForOther&) = delete;
  FillForOther& operator=(const FillForOther&) = delete;

  bool is_current() const { return is_current_; }

 private:
  SlotState& slot_;
  bool is_current_ = false;
};

// Makes missing pages of [first_page, first_page + pages), below the slot's
// size or above it, private and writable with their initial bytes before
// anybody touches them, as if each had been written to. For the slot's owner,
// in pages that the kernel does not resolve by itself. A failure leaves pages
// that a release cleans; what is missing is filled at its first touch, then.
FaultResult FillPrivate(FaultCore& core, uint32_t slot, uint64_t first_page,
                        uint64_t pages) noexcept;

// Makes missing pages of [first_page, first_page + pages) as if each had been
// read. For the slot's owner, likewise.
FaultResult MapClean(FaultCore& core, uint32_t slot, uint64_t first_page,
                     uint64_t pages) noexcept;

// Makes a page outside the bounds trap for the thread that waits on it
// (handler threads), within a FillForOther. `page_address` lies in slot
// `slot`'s reach. `*placed` says whether this call did; it did not where the
// page traps already, or is there.
//
// By mprotect(2), only the last StrayPages::kCapacity pages of a slot stay
// inaccessible, so that no guest can use up vm.max_map_count: one more makes
// the one that was made so first accessible again. That one is still missing,
// and its next touch comes here again.
FaultResult MakeTrapping(FaultCore& core, uint32_t slot, uintptr_t page_address,
                         bool* placed) noexcept;

// For pages of [first_page, end_page) that have come into the bounds of a held
// memory: those that MakeTrapping() has noted trap no more, also for the
// kernel's own accesses. Where the kernel refuses, or more pages were poisoned
// than noted, a page goes on trapping until the next touch by a guest.
void SupplyStrays(FaultCore& core, uint32_t slot, uint64_t first_page,
                  uint64_t end_page) noexcept;

// Undoes what MakeTrapping() did by mprotect(2) (no POISON), for a page that
// has come into the bounds since. False: the kernel refused.
bool MakeAccessible(FaultCore& core, uintptr_t page_address) noexcept;

// Whether a touch of the address by this process would succeed now. Asks the
// kernel, by a call that does nothing else; changes no byte, but may have the
// kernel copy a page that it would copy at a write.
bool IsAccessible(uintptr_t address, Access access) noexcept;

// Nanoseconds of CLOCK_MONOTONIC.
uint64_t MonotonicNanos() noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_FAULT_CORE_H_
