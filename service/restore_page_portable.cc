// On the steady path: see restore_page.h. For machines without a file of their
// own beside this one. The kernel reads what may be unreadable, one call per
// page: correct everywhere, and slow.

#if !defined(__x86_64__) || defined(FIRSTTOUCH_PORTABLE)

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "firsttouch/service/restore_page.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

bool RestorePage(std::byte* to, const std::byte* from, bool /*downwards*/,
                 bool* unreadable) {
  std::byte wanted[kPageBytes];
  if (!CopyGuarded(wanted, from, kPageBytes)) {
    *unreadable = true;
    return true;
  }
  if (std::memcmp(to, wanted, kPageBytes) == 0) return false;
  std::memcpy(to, wanted, kPageBytes);
  return true;
}

bool RestoreZeroPage(std::byte* to, bool /*downwards*/) {
  if (std::all_of(to, to + kPageBytes,
                  [](std::byte byte) { return byte == std::byte{0}; })) {
    return false;
  }
  std::memset(to, 0, kPageBytes);
  return true;
}

bool CopyGuarded(std::byte* to, const std::byte* from, size_t bytes) {
  const int saved_errno = errno;
  const iovec local = {to, bytes};
  const iovec remote = {const_cast<std::byte*>(from), bytes};
  const ssize_t copied = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
  errno = saved_errno;
  return copied == static_cast<ssize_t>(bytes);
}

bool DiffersFrom(const std::byte* page, const std::byte* initial) {
  std::byte copy[kPageBytes];
  return !CopyGuarded(copy, initial, kPageBytes) ||
         std::memcmp(page, copy, kPageBytes) != 0;
}

// No instruction here takes a fault that cannot be resolved.
uintptr_t EndOfGuardedRead(uintptr_t) noexcept { return 0; }

}  // namespace firsttouch

#endif  // !__x86_64__ || FIRSTTOUCH_PORTABLE
