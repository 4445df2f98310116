// The runtime under wasm2c's generated C, as the host sees it: running guest
// code so that its traps come back as values.
//
// Most hosts use guest.h, which is built on this.
//
//   Trap trap;
//   absl::Status host_error;
//   u32 answer;
//   switch (RunGuarded([&] { answer = Z_addZ_add(&instance, 1, 2); }, {},
//                      &trap, &host_error)) { ... }

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_RUNTIME_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_RUNTIME_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "wasm-rt.h"

namespace firsttouch::wasm2c {

// How a run ended.
enum class RunEnd {
  kReturned,   // `body` came to its end.
  kTrapped,    // *trap says why.
  kExited,     // WASI's proc_exit; *trap has the exit code.
  kHostError,  // *host_error says why: a function of the host gave up.
};

struct RunOptions;

// A touch outside of a memory's bounds, or of a page that could not be had.
struct BadTouch {
  // Bytes from the memory's start: the offset that the guest used, when its
  // access began out of bounds.
  int64_t offset_bytes = 0;
  // The memory's size at the time.
  uint64_t size_bytes = 0;
  bool write = false;
  // Which memory: its instance (slot) in the pool, and its index in the
  // instance.
  uint32_t instance = 0;
  uint32_t memory = 0;
  // The instruction that touched.
  uintptr_t program_counter = 0;
  // Not 0: in bounds, and the errno of what failed (TrapInfo::error).
  int error = 0;
};

// Why a guest stopped before its function returned. Plain data.
struct Trap {
  wasm_rt_trap_t code = WASM_RT_TRAP_NONE;
  // For WASM_RT_TRAP_OOB by a load or a store: where. Tables and bulk memory
  // instructions are checked in the generated code, which does not say where.
  bool has_touch = false;
  BadTouch touch;
  // WASI's proc_exit: `code` is WASM_RT_TRAP_NONE then.
  bool exited = false;
  uint32_t exit_code = 0;
  // Interrupt::Request: `code` is WASM_RT_TRAP_EXHAUSTION then.
  bool interrupted = false;

  // One line, for example "out of bounds: write at offset 1048580 of memory 0
  // of instance 3, size 1048576 bytes".
  std::string Message() const;
};

// Lets another thread end a run.
//
//   Interrupt stop;
//   std::thread watchdog([&] { ...; stop.Request(); });
//   guest.Run(body, {.interrupt = &stop});
//
// A guest that is asked to end does so at its next call of a function, and,
// when it was made with wasm2c_guest's `interruptible`, at the next turn of a
// loop. A function of the host that it has called comes to its end first. The
// run ends as a trap with Trap::interrupted.
//
// Thread-safe. Not for signal handlers. Must outlive the runs that use it.
class Interrupt {
 public:
  Interrupt() = default;
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // Ends the runs that use this, and those that will, until Clear().
  void Request();
  void Clear();
  bool requested() const { return requested_.load(std::memory_order_relaxed); }

 private:
  friend RunEnd RunGuarded(absl::FunctionRef<void()> body,
                           const RunOptions& options, Trap* trap,
                           absl::Status* host_error);

  std::atomic<bool> requested_{false};
  // The stack limits of the threads that run under this, which
  // Request() changes. Guarded by a mutex of the runtime's.
  std::vector<uintptr_t*> limits_;
};

// Limits of one run.
struct RunOptions {
  // How much of the thread's stack the guest may use, in bytes. Less where the
  // thread has less: at least kStackReserveBytes always stay free below it for
  // functions that the guest calls in the host. On a stack that is not the
  // thread's own (a coroutine's), this much plus the reserve must be there.
  size_t stack_bytes = size_t{1} << 20;
  // Null: nobody ends the run but the guest. See Interrupt.
  Interrupt* interrupt = nullptr;
};

// Stack that a guest never uses, for host functions that it calls. A generated
// function touches its own frame before it looks at the limit: a part of this
// is for that (kMaxFrameBytes in module_header.h).
inline constexpr size_t kStackReserveBytes = size_t{64} << 10;

// Calls `body`, which calls guest code, and comes back when it returns or when
// the guest traps, whichever happens first. May be nested: a function of the
// host that a guest calls may run another guest, or the same.
//
// A trap jumps over the frames between here and the guest without running
// destructors: `body`, and functions of the host that the guest calls and that
// call back into guests outside of a RunGuarded of their own, must not hold
// objects that need them at that moment.
//
// Any number of threads may run guests at the same time; one instance belongs
// to one thread at a time, as its generated code demands. The first call on a
// thread gives it an alternate signal stack (if it has none) and looks up where
// its stack ends: some system calls, once.
RunEnd RunGuarded(absl::FunctionRef<void()> body, const RunOptions& options,
                  Trap* trap, absl::Status* host_error);

// True while the calling thread is inside of RunGuarded. Async-signal-safe.
bool GuestIsRunning() noexcept;

// Ends the innermost run of this thread as WASM_RT_TRAP_OOB at `touch`; does
// not return. Returns only when no guest runs on this thread. For whoever
// catches the fault: async-signal-safe, and may be called in a signal handler
// on an alternate stack, if the signal's mask is already undone or was never
// set (SA_NODEFER).
void TrapOutOfBounds(const BadTouch& touch) noexcept;

// Ends the innermost run of this thread as an exit with `exit_code`. Aborts
// where none runs.
[[noreturn]] void ExitGuest(uint32_t exit_code);

// Ends the innermost run of this thread with a host error. For functions of the
// host that a guest calls and that have no other way to fail. Aborts, with the
// message on stderr, where none runs.
[[noreturn]] void FailGuest(absl::Status status);

// Binds the calling thread to a source of memories: wasm_rt_allocate_memory
// takes them from there until the object is destroyed. Only for code that calls
// Z_<module>_instantiate itself; Guest::Create does this. Bindings nest.
//
// `memories`: how many memories of its own the module has. All are acquired
// with the first.
class ScopedMemorySource {
 public:
  explicit ScopedMemorySource(MemorySource* source, size_t memories = 1);
  ~ScopedMemorySource();
  ScopedMemorySource(const ScopedMemorySource&) = delete;
  ScopedMemorySource& operator=(const ScopedMemorySource&) = delete;

  // The next memory, with no bytes yet.
  absl::StatusOr<std::unique_ptr<GuestMemory>> TakeNext();

 private:
  MemorySource* source_;
  size_t memories_;
  std::vector<std::unique_ptr<GuestMemory>> acquired_;
  size_t taken_ = 0;
  ScopedMemorySource* outer_;
};

// The object behind a memory of an instance.
inline GuestMemory* HostOf(const wasm_rt_memory_t& memory) {
  return static_cast<GuestMemory*>(memory.host);
}

// Makes `memory` stand for `host`, which it owns from now on (until
// wasm_rt_free_memory), with the module's own maximum.
void AttachMemory(wasm_rt_memory_t* memory, std::unique_ptr<GuestMemory> host,
                  uint32_t max_pages);

// What generated code does by wasm_rt_allocate_memory, for the host: takes the
// next memory of the source that the calling thread is bound to. Errors: the
// source's; OutOfRange for more pages than wasm2c or the source allows.
absl::Status AllocateMemory(wasm_rt_memory_t* memory, uint32_t initial_pages,
                            uint32_t max_pages);

// Keeps an instance as long as `table` has functions of it: when the table is
// freed (wasm_rt_free_funcref_table) it gives `owner` up, and so does the next
// call of this for a table that has none of its functions any more. For
// instances whose instantiation failed after it had written to a table of
// somebody else's; the functions in it go on working, as WebAssembly wants it.
void KeepWithTable(wasm_rt_funcref_table_t* table, const void* instance,
                   std::shared_ptr<void> owner);

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_RUNTIME_H_
