// Identifies the calling thread where libc must not be called.
//
// ON THE FAULT PATH: async-signal-safe.

#ifndef FIRSTTOUCH_SERVICE_THIS_THREAD_H_
#define FIRSTTOUCH_SERVICE_THIS_THREAD_H_

#include <cstdint>

#if defined(__x86_64__)
#include "firsttouch/service/this_thread_x86_64.h"
#else

namespace firsttouch {

// A value that differs for all threads that live at the same time; never 0.
// Async-signal-safe.
inline uintptr_t ThisThread() noexcept {
  return reinterpret_cast<uintptr_t>(__builtin_thread_pointer());
}

}  // namespace firsttouch

#endif  // __x86_64__

#endif  // FIRSTTOUCH_SERVICE_THIS_THREAD_H_
