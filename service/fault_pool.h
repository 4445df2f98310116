// A pool as the fault path sees it, and the types of a fault and its result.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage; //service:fault_path_symbols_test holds the object
// files to that.

#ifndef FIRSTTOUCH_SERVICE_FAULT_POOL_H_
#define FIRSTTOUCH_SERVICE_FAULT_POOL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "firsttouch/locator/lookup.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/supply_kinds.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/process_mark.h"
#include "firsttouch/uffd/signal_mask.h"

namespace firsttouch {

// Latencies of resolved faults, from the handler's entry to its end: bucket i
// counts those of [2^i, 2^(i+1)) ns. 32 buckets reach 4 s.
struct LatencyHistogram {
  static constexpr int kBuckets = 32;
  std::atomic<uint64_t> bucket[kBuckets];
  void Add(uint64_t ns);
};

// After this many faults in a row on one page, each of them resolved and the
// page still not there, the fault fails with ELOOP instead of burning a core.
inline constexpr uint32_t kMaxSamePageFaults = 1u << 20;

// The number of zero pages that one UFFDIO_COPY can take.
inline constexpr uint64_t kZeroSourcePages = 256;

struct FaultPool;
struct FaultResult;
struct SignalFault;

// Everything the fault path reads of a pool; constant while the pool lives,
// but for the atomics.
struct FaultPool {
  Kernel* kernel = nullptr;
  // The pool's userfaultfd; -1 where it has none.
  int uffd = -1;
  // Resolves a signal in bounds, in the way in which this pool's pages come
  // (in_bounds_faults.h). Never null once the locator knows the pool.
  FaultResult (*resolve_signal)(FaultPool& fault_pool,
                                const SignalFault& fault) noexcept = nullptr;
  Backing backing = Backing::kShared;
  Resolve resolve = Resolve::kInThread;
  // Whether a trapping page is made by UFFDIO_POISON (6.6). Where the kernel
  // has no such call, or would write a line to its log at each touch of such a
  // page, the page is made inaccessible by mprotect(2).
  bool poison = false;
  uint64_t fault_around_pages = 16;
  // The source of pages that start as zeroes: kZeroSourcePages zero pages,
  // which cost no memory.
  uintptr_t zero_source = 0;
  SlotState* slots = nullptr;
  const char* name = "";
  TrapCallback trap_callback = nullptr;
  void* trap_user = nullptr;
  // In a child of fork(2) the userfaultfd still acts on the parent's memory and
  // must not be used.
  ProcessMark made_by = ProcessMark::Here();
  PoolEntry entry;
  // The number of slots that keep private pages from one lease to the next.
  // Not for the fault path, and not in its cache lines; here since the service
  // counts them, and what supplies the memory reads them.
  alignas(64) std::atomic<uint32_t> keeping_slots{0};
  // Indexed by slot number modulo kShards, so that threads on different slots
  // do not share a cache line.
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
  // False does not say the opposite: the page may have been missing or swapped
  // out.
  bool protection = false;
  // The interrupted code's signal mask, which is put back while a PageSource is
  // waited for. Set in a signal handler that blocks signals; null elsewhere.
  const SignalSet* interrupted_mask = nullptr;
};

// A fault in bounds, as the touching thread's signal describes it.
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
    // The image's page could not be fetched (image_fetch.h); `error` and `call`
    // say why. The page stays missing.
    kNoContents,
    // The process is ending, or the fault is not of a current lease any more.
    kGone,
    // In bounds and inaccessible, but not made inaccessible by this library.
    kNotOurs,
  };
  Kind kind = Kind::kResolved;
  int error = 0;
  const char* call = "";
};

// Nanoseconds of CLOCK_MONOTONIC.
uint64_t MonotonicNanos() noexcept;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_FAULT_POOL_H_
