// The options of a service.

#ifndef FIRSTTOUCH_SERVICE_OPTIONS_H_
#define FIRSTTOUCH_SERVICE_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/slot_strategy.h"
#include "firsttouch/service/supply_kinds.h"
#include "firsttouch/service/trap.h"

namespace firsttouch {

// Which side installs the signal handlers; see service/signals.h.
enum class SignalOwnership : uint8_t {
  // The service installs its own, in front of the present ones, and removes
  // them at its end.
  kInstall,
  // The host's own handlers call HandleFault().
  kHost,
};

// Faults are resolved in the thread that took them, in a signal handler: no
// switch to another thread. A system call that is given a missing or protected
// page gets EFAULT: see Memory::MakeReady.
struct InFaultingThread {};

// Faults are resolved by threads of the pool, which read fault events.
struct InHandlerThreads {
  // How many, 1 to 64.
  uint32_t threads = 1;

  // Whether faults that the kernel takes (system calls on pool memory) must be
  // served. True needs a privilege, see uffd.h; without it, AnySupply becomes
  // one of the mappings, where the kernel serves its own faults, and
  // UserfaultfdOptions are an error. Unset: they are served where that is
  // allowed.
  std::optional<bool> kernel_faults;
};

// Memory by userfaultfd.
struct UserfaultfdOptions {
  // How a page gets its contents. Unset: kShared where the kernel can (6.4 and
  // the features it needs) and the mapping limit leaves room for every slot to
  // be bound, else kCopied. Describe() says which was chosen and why.
  std::optional<Backing> backing;

  // Where faults are resolved.
  std::variant<InFaultingThread, InHandlerThreads> faults;

  // How first writes to clean pages are found. Unset: chosen for each image
  // from what its leases do (tracking_policy.h); the first lease of an unknown
  // image is a profiling lease. kSignal or kAsync: always this one; kAsync
  // needs a kernel 6.7 and the backing kShared.
  std::optional<Tracking> tracking;
};

// Memory by the kernel's own mappings, without userfaultfd. Clean pages are
// always shared with the image, and the kernel resolves its own accesses as it
// does the guest's. The statistics count no faults.
struct MappingOptions {
  // Whether a release asks the kernel which pages have changed (PAGEMAP_SCAN,
  // 6.7; mappings-scan), or drops them all (mappings-drop). Unset: the scan
  // where the kernel has it.
  std::optional<bool> scan;
};

// The supply that FIRSTTOUCH_SUPPLY in the environment names; where the
// variable is not set, userfaultfd if kernel and permissions allow it with
// these options, else the kernel's mappings. Describe() says which was chosen
// and why.
struct AnySupply {
  UserfaultfdOptions userfaultfd;
};

// What supplies a pool's memory, and how.
using SupplyChoice =
    std::variant<AnySupply, UserfaultfdOptions, MappingOptions>;

struct ServiceOptions {
  // The pool's name: in errors, traps, mappings and thread names, and for
  // pooldump to find the pool. 1 to 128 bytes, no control characters. Need not
  // be unique.
  std::string name = "pool";

  // The pool: how many instances, how large, which guards.
  // LayoutOptions::ForWasm32() fits most. There is no default.
  // page_bytes must be this machine's 4096.
  LayoutOptions layout;

  // What supplies the memory.
  SupplyChoice supply;

  // Which free slot an acquire takes.
  SlotStrategy strategy = SlotStrategy::kAffinity;

  SignalOwnership signals = SignalOwnership::kInstall;

  // Called for touches outside the bounds that the memory's own callback did
  // not handle; may be null.
  TrapCallback trap_callback = nullptr;
  void* trap_user = nullptr;

  // At most this many pages of a slot stay private and writable from one lease
  // to the next; a slot with more is dropped as a whole at release. Unset: a
  // half of the memory's initial size, at least 1024 (4 MiB).
  std::optional<uint64_t> retained_pages_limit;

  // A retained page that no guest has changed in about this many cycles is
  // demoted: restoring a page sixty times costs as much as one signal.
  uint32_t retained_cycles = 60;

  // What memory is worth: the private bytes that all slots of the pool together
  // may keep for each microsecond by which that shortens one cycle. So with
  // more slots a page has to be changed in more of the leases to be kept. The
  // default keeps, in a pool of 64 slots, pages that one lease in ten changes;
  // in one of 1,000 slots, those that nearly every lease changes; and pools of
  // some ten slots keep what was changed in the last `retained_cycles`. 0:
  // memory is free, and every pool does that.
  uint64_t retained_bytes_per_us = 512 << 10;

  // Idle slots keep private pages up to this many bytes, all slots of the pool
  // together. Above it, the slots that were released longest ago give theirs
  // back, in a thread of the pool's own; a release that finds too much kept
  // wakes it, and it works at most every 20 ms. 0: every slot gives them back
  // at its release. Unset: no limit; Service::Trim() gives back what idle slots
  // have.
  std::optional<uint64_t> resident_budget_bytes;

  // Whether pooldump may read the pool's records while the process runs
  // (docs/control-block.md); only the process's owner and root may. Costs a
  // descriptor. Where publishing is impossible the pool works all the same, and
  // Describe() says why.
  bool publish = true;

  // Whether a core dump includes the pool (and walks all of its reservation).
  bool include_in_core_dump = false;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_OPTIONS_H_
