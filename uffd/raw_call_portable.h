// One system call, by libc: for machines without a file of their own beside
// this one.
//
// ON THE FAULT PATH: async-signal-safe. syscall(2) writes errno, which is in
// thread-local storage; its old value is restored.

#ifndef FIRSTTOUCH_UFFD_RAW_CALL_PORTABLE_H_
#define FIRSTTOUCH_UFFD_RAW_CALL_PORTABLE_H_

#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace firsttouch {

// The result, or a negative errno.
inline int64_t RawCall(int64_t number, int64_t a = 0, int64_t b = 0,
                       int64_t c = 0, int64_t d = 0, int64_t e = 0,
                       int64_t f = 0) {
  const int saved = errno;
  int64_t result = syscall(number, a, b, c, d, e, f);
  if (result == -1) result = -int64_t{errno};
  errno = saved;
  return result;
}

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_RAW_CALL_PORTABLE_H_
