// One system call of x86-64, without libc.
//
// ON THE FAULT PATH: async-signal-safe, no thread-local storage: errno is not
// touched.

#ifndef FIRSTTOUCH_UFFD_RAW_CALL_X86_64_H_
#define FIRSTTOUCH_UFFD_RAW_CALL_X86_64_H_

#include <cstdint>

namespace firsttouch {

// The result, or a negative errno.
inline int64_t RawCall(int64_t number, int64_t a = 0, int64_t b = 0,
                       int64_t c = 0, int64_t d = 0, int64_t e = 0,
                       int64_t f = 0) {
  int64_t result;
  register int64_t r10 asm("r10") = d;
  register int64_t r8 asm("r8") = e;
  register int64_t r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_RAW_CALL_X86_64_H_
