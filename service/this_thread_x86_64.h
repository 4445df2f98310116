// this_thread.h for x86-64, for compilers that lack the portable builtin.
//
// ON THE FAULT PATH: async-signal-safe.

#ifndef FIRSTTOUCH_SERVICE_THIS_THREAD_X86_64_H_
#define FIRSTTOUCH_SERVICE_THIS_THREAD_X86_64_H_

#include <cstdint>

namespace firsttouch {

// A value that differs for all threads that live at the same time; never 0.
// Async-signal-safe.
inline uintptr_t ThisThread() noexcept {
  uintptr_t thread_pointer;
  asm("mov %%fs:0, %0" : "=r"(thread_pointer));
  return thread_pointer;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_THIS_THREAD_X86_64_H_
