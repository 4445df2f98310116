// fault_registers.h for x86-64.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging.

#ifndef FIRSTTOUCH_SERVICE_FAULT_REGISTERS_X86_64_H_
#define FIRSTTOUCH_SERVICE_FAULT_REGISTERS_X86_64_H_

#include <ucontext.h>

#include <cstdint>

#include "firsttouch/service/trap.h"

namespace firsttouch {

// The kind of access that the interrupted instruction made. (Bits of the
// page-fault error code: Intel SDM volume 3, 4.7.)
inline Access AccessOf(const ucontext_t& context) noexcept {
  constexpr greg_t kWrite = 2;
  constexpr greg_t kInstruction = 16;
  const greg_t error = context.uc_mcontext.gregs[REG_ERR];
  if ((error & kInstruction) != 0) return Access::kExecute;
  return (error & kWrite) != 0 ? Access::kWrite : Access::kRead;
}

// Whether the page was there but did not allow the access.
inline bool IsProtectionFault(const ucontext_t& context) noexcept {
  constexpr greg_t kProtection = 1;
  return (context.uc_mcontext.gregs[REG_ERR] & kProtection) != 0;
}

// The address of the interrupted instruction.
inline uintptr_t ProgramCounter(const ucontext_t& context) noexcept {
  return static_cast<uintptr_t>(context.uc_mcontext.gregs[REG_RIP]);
}

// Makes a guarded read (restore_page.h) fail: it continues at `end`, the end of
// its block.
inline void FailGuardedRead(ucontext_t& context, uintptr_t end) noexcept {
  context.uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(end);
  context.uc_mcontext.gregs[REG_RAX] = 1;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_FAULT_REGISTERS_X86_64_H_
