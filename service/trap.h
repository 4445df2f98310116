// The report to the host when a guest leaves its memory's bounds.
//
// A touch outside a memory's current size is a trap (so is a touch of a page
// whose contents cannot be had, see TrapInfo::error): the faulting thread gets
// SIGBUS (SIGSEGV where the page had to be made inaccessible, see
// service/service.h), firsttouch finds out which memory the address belongs to
// and calls the trap callback in signal context, on the thread that touched.
//
//   TrapAction OnTrap(const TrapInfo& trap) {
//     Sandbox* sandbox = CurrentSandbox();        // e.g. found by trap.user
//     if (sandbox == nullptr) return TrapAction::kUnhandled;
//     sandbox->trap_offset = trap.offset_bytes;
//     siglongjmp(sandbox->jump_buffer, 1);
//   }
//
// The callback runs as a signal handler does, on the alternate stack: it may
// call async-signal-safe functions only. The signal mask is already that of the
// interrupted code, so that longjmp and siglongjmp(sigsetjmp(env, 0)) leave
// nothing blocked, however many traps a thread takes.

#ifndef FIRSTTOUCH_SERVICE_TRAP_H_
#define FIRSTTOUCH_SERVICE_TRAP_H_

#include <cstdint>

namespace firsttouch {

// The kind of a touch, past or intended. kExecute: an instruction was fetched
// from there, by a jump; only traps report it.
enum class Access : uint8_t { kRead, kWrite, kExecute };

// The name in texts: "read", "write" or "instruction fetch". Static strings;
// may be called in a signal handler.
constexpr const char* AccessName(Access access) {
  switch (access) {
    case Access::kRead:
      return "read";
    case Access::kWrite:
      return "write";
    case Access::kExecute:
      break;
  }
  return "instruction fetch";
}

// TrapInfo::instance and TrapInfo::memory of a touch that belongs to no memory.
inline constexpr uint32_t kNoMemory = ~uint32_t{0};

// One touch outside a memory's bounds. Plain data, valid during the callback;
// copy what is needed later.
struct TrapInfo {
  // Number of the pool in this process, and its name (NUL-terminated; valid as
  // long as the pool).
  uint32_t pool_id;
  const char* pool_name;
  // Which memory of which instance. An address in a guard region belongs to the
  // memory in front of it; one in the pool's leading guard to the first memory,
  // with a negative offset.
  //
  // Both are kNoMemory where the guard between two memories can be reached from
  // both of them, in its last PoolLayout::unowned_guard_bytes(): the touch may
  // be past the end of the one or below the start of the other, and nothing
  // tells which. No memory's callback is called then, only the service's, which
  // must find the sandbox by the thread. `leased` is false, `offset_bytes` and
  // `size_bytes` are 0.
  uint32_t instance;
  uint32_t memory;
  // Whether the slot is leased: false for a touch after release.
  bool leased;
  Access access;
  // 0: the touch was outside the bounds. Otherwise it was in bounds, and the
  // contents of the image's page could not be had: the errno says why. (EFAULT:
  // the image's file has been cut short, or cannot be read.) Nothing is wrong
  // with the memory; its guest cannot go on without the page, and may be told
  // to try again (kResume).
  int error;
  // Bytes from the memory's start to the touched byte. An access that begins
  // in bounds and crosses the end is reported at the first byte past the last
  // page in bounds.
  int64_t offset_bytes;
  // The memory's size in bytes at the time of the touch.
  uint64_t size_bytes;
  // The touched address, and the instruction that touched it.
  uintptr_t address;
  uintptr_t program_counter;
  // The ucontext_t of the interrupted code: a callback may edit it (for example
  // to go on at another instruction) and return kResume.
  void* ucontext;
  // The pointer that was given with the callback.
  void* user;
};

// A trap callback's answer, where it returns at all.
enum class TrapAction {
  // Not handled: the next callback is asked (the memory's, then the service's,
  // then the handler that was there before ours), and in the end the process
  // dies by the signal, after a line on stderr that names slot and offset.
  kUnhandled,
  // The callback edited the context (or made the touch legal): the interrupted
  // code goes on from it. Without an edit the same instruction runs again.
  kResume,
};

// A plain function, since it is called in signal context.
using TrapCallback = TrapAction (*)(const TrapInfo& trap);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_TRAP_H_
