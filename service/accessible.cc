// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/service/accessible.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "firsttouch/uffd/signal_mask.h"

namespace firsttouch {

bool IsAccessible(uintptr_t address, Access access) noexcept {
  const int saved_errno = errno;
  bool accessible = false;
  if (access != Access::kWrite) {
    // The kernel reads a signal mask from the address and then refuses it,
    // since the call names no way of setting it.
    constexpr int kNoHow = -1;
    syscall(SYS_rt_sigprocmask, kNoHow, address & ~uintptr_t{7}, nullptr,
            sizeof(SignalSet));
    accessible = errno == EINVAL;
  } else {
    // Adds 0 to the word at the address.
    uint32_t nobody_waits_here = 0;
    accessible = syscall(SYS_futex, &nobody_waits_here,
                         FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, nullptr,
                         address & ~uintptr_t{3},
                         FUTEX_OP(FUTEX_OP_ADD, 0, FUTEX_OP_CMP_LT, 0)) >= 0;
  }
  errno = saved_errno;
  return accessible;
}

}  // namespace firsttouch
