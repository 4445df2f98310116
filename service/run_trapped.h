// Runs code that touches a memory, and returns its trap as an absl::Status.
//
//   absl::Status ended =
//       RunTrapped(*memory, [&] { RunGuest(memory->base()); });
//   // OUT_OF_RANGE: out of bounds write at offset 65536 of pool "tenants",
//   // instance 3, memory 0, which has 65536 bytes
//
// The simplest way to take traps: it needs no trap callback and no jump buffer
// of the caller's. It costs a sigsetjmp that saves no signal mask, and no
// system call except in a thread's first run.
//
// WHAT IT TAKES. Traps (service/trap.h) of the given memory, on the calling
// thread, while `run` runs; also those of the guards on both sides of it,
// including the parts that two memories can reach. It is asked before the trap
// callbacks, which do not see the traps that it takes. Traps of other memories,
// and those of other threads, go where they would go without it. Runs may be
// nested: a trap ends the innermost run of its memory, and the runs inside that
// one.
//
// WHAT A TRAP SKIPS. `run` is left by siglongjmp: no destructor of its frames
// runs, and no lock that they hold is released. So let nothing in them need
// that: only the guest's code, and the host's code that calls it. Nothing else
// may leave `run` by a jump past RunTrapped(): this thread's later traps would
// look for the run in a frame that is gone.

#ifndef FIRSTTOUCH_SERVICE_RUN_TRAPPED_H_
#define FIRSTTOUCH_SERVICE_RUN_TRAPPED_H_

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/trap.h"

namespace firsttouch {

// Calls `run` and returns OK when it returns. When it traps:
//
//   OutOfRange           the touch was outside the bounds; names the access,
//                        the offset in bytes, the memory and its size
//   of TrapInfo::error   the touch was inside, and the contents of the page
//                        could not be had; the code is that of the errno
//
// and `trap` (may be null) is filled in: pool_name is valid as long as the
// pool, ucontext is null, user is null. Without a trap `trap` is untouched.
//
// The memory is held as before, and may be used, reset or released. Errors
// before `run` is called: FailedPrecondition where nothing is held, and those
// of PrepareGuestThread() where this thread cannot take traps (it is called
// once in each thread). Thread-safe; not for signal handlers.
absl::Status RunTrapped(const Memory& memory, absl::FunctionRef<void()> run,
                        TrapInfo* trap = nullptr);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_RUN_TRAPPED_H_
