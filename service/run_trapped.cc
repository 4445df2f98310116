#include "firsttouch/service/run_trapped.h"

#include <setjmp.h>

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/pool/ids.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/service/trap_guard.h"

namespace firsttouch {
namespace run_trapped_internal {

// A RunTrapped() that has not ended; lives in its frame.
struct Run {
  uint32_t pool_id;
  uint32_t instance;
  uint32_t memory;
  // The addresses of this memory and of the guards beside it are those from
  // `begin` to below `end`.
  uintptr_t begin;
  uintptr_t end;
  Run* outer;
  TrapInfo trap;
  sigjmp_buf leave;
};

// The innermost run of this thread. A signal handler reads it, so it must be in
// the thread's own block from the start, also in a library that was loaded
// later. It has external linkage because gold lets a shared library's local
// symbol of this model begin at the library's first thread-local variable.
[[gnu::tls_model("initial-exec")]] extern thread_local Run* t_run;
[[gnu::tls_model("initial-exec")]] thread_local Run* t_run = nullptr;

}  // namespace run_trapped_internal

namespace {

using run_trapped_internal::Run;
using run_trapped_internal::t_run;

bool IsOf(const TrapInfo& trap, const Run& run) {
  if (trap.pool_id != run.pool_id) return false;
  // Where the address may belong to two memories, it belongs to the one whose
  // code runs here.
  if (trap.memory == kNoMemory) {
    return trap.address >= run.begin && trap.address < run.end;
  }
  return trap.instance == run.instance && trap.memory == run.memory;
}

// Called in signal context.
void LeaveRun(const TrapInfo& trap) {
  for (Run* run = t_run; run != nullptr; run = run->outer) {
    if (!IsOf(trap, *run)) continue;
    run->trap = trap;
    siglongjmp(run->leave, 1);
  }
}

// Removes a run from the thread's list however its frame is left, and with it
// the runs nested in it, which a trap has skipped.
class Listed {
 public:
  explicit Listed(Run& run) : run_(run) {
    run_.outer = t_run;
    t_run = &run_;
  }
  Listed(const Listed&) = delete;
  Listed& operator=(const Listed&) = delete;
  ~Listed() { t_run = run_.outer; }

 private:
  Run& run_;
};

absl::Status StatusOf(const Run& run) {
  const TrapInfo& trap = run.trap;
  const std::string where = absl::StrCat(
      AccessName(trap.access), " at offset ", trap.offset_bytes, " of pool \"",
      trap.pool_name, "\", instance ", trap.instance, ", memory ", trap.memory,
      ", which has ", trap.size_bytes, " bytes");
  if (trap.error == 0) {
    return absl::OutOfRangeError(absl::StrCat("out of bounds ", where));
  }
  return absl::ErrnoToStatus(
      trap.error,
      absl::StrCat("the contents of the page cannot be had: ", where));
}

}  // namespace

absl::Status RunTrapped(const Memory& memory, absl::FunctionRef<void()> run,
                        TrapInfo* trap) {
  if (!memory) {
    return absl::FailedPreconditionError(
        "RunTrapped: the memory was released (or moved from): nothing is held");
  }
  static thread_local bool t_is_prepared = false;
  if (!t_is_prepared) {
    if (absl::Status status = PrepareGuestThread(); !status.ok()) return status;
    SetTrapGuard(&LeaveRun);
    t_is_prepared = true;
  }
  const PoolLayout& layout = memory.pool_->layout;
  const SlotIndex slot(memory.pool_->SlotNumber(*memory.slot_));
  const auto base = reinterpret_cast<uintptr_t>(memory.base());
  Run here = {
      .pool_id = memory.pool_->fault_pool.entry.pool_id,
      .instance = memory.instance(),
      .memory = memory.memory_index(),
      .begin = base - layout.guard_in_front_bytes(slot),
      .end = base + layout.slot_stride_bytes(),
      .outer = nullptr,
      .trap = {},
      .leave = {},
  };
  const Listed listed(here);
  // The callback runs with the guest's own signal mask, so no mask needs to be
  // saved.
  if (sigsetjmp(here.leave, 0) == 0) {
    run();
    return absl::OkStatus();
  }
  if (here.trap.memory == kNoMemory) {
    here.trap.instance = here.instance;
    here.trap.memory = here.memory;
    here.trap.leased = true;
    here.trap.offset_bytes = static_cast<int64_t>(here.trap.address - base);
    here.trap.size_bytes = memory.size_bytes();
  }
  here.trap.ucontext = nullptr;
  here.trap.user = nullptr;
  if (trap != nullptr) *trap = here.trap;
  return StatusOf(here);
}

}  // namespace firsttouch
