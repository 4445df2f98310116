// Fills over a range that go on where the kernel stopped.
//
// UFFDIO_COPY and its relatives stop half-way for reasons that are not errors:
// a page is there already, an event waits to be read, a page table was freed
// under the copy. These loops resolve each of them, so that an error that
// remains in FillResult::error is final.
//
//   FillResult filled = ContinueRange(kernel, fd, start, bytes, 0, {});
//   if (!filled.ok()) ...  // pages below start + filled.bytes_done are there
//
// Raw layer, on the fault path: async-signal-safe, takes no lock, allocates
// nothing, logs nothing, uses no thread-local storage. A call that has to wait
// (only after EAGAIN without progress) waits in poll(2).

#ifndef FIRSTTOUCH_UFFD_FILL_H_
#define FIRSTTOUCH_UFFD_FILL_H_

#include <cstddef>
#include <cstdint>

#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// What to do when the kernel makes no progress. The defaults fit a pool whose
// userfaultfd asks for no events.
struct FillPolicy {
  // Stops in a row without progress before the fill gives up with EAGAIN. Any
  // progress resets the count and the waits.
  uint32_t max_stalls = 100;
  // This many of these stops retry at once.
  uint32_t immediate_retries = 4;
  // The wait after that, doubled each time, never above the cap. At least 1.
  int first_wait_ms = 1;
  int wait_cap_ms = 64;

  // Wakes the waiters of a page that turned out to be there (EEXIST). A thread
  // that resolves faults for others must set this: the thread that made the
  // page present may have done so before the waiter went to sleep. In SIGBUS
  // mode no thread waits.
  bool wake_present = false;
};

// How far a fill got.
struct FillResult {
  // Bytes from the start of the range that are there now, filled by this call
  // or already present. The whole range when ok().
  uint64_t bytes_done = 0;
  // Pages of these that were already there (EEXIST), and left alone.
  uint64_t pages_present = 0;
  // How many times the kernel said EAGAIN without progress.
  uint32_t stalls = 0;
  // 0, or what ended the fill: ENOENT (a page that is not registered), ESRCH
  // (the process has gone), EAGAIN (max_stalls), EFAULT (CONTINUE: the file has
  // no such page; COPY: the source is unreadable), ENOMEM, EINVAL.
  int error = 0;

  constexpr bool ok() const { return error == 0; }
  // Pages that this call has filled.
  constexpr uint64_t pages_filled() const {
    return bytes_done / kPageBytes - pages_present;
  }
};

// Each of these fills [start, start + bytes) and skips pages that are there.
// The range may lie in several mappings (the kernel's calls expect one: on
// ENOENT these functions go on page by page). `mode` is the call's own (abi.h).
// All are page aligned, except CopyRange's `src`. Kernel versions and errors of
// each call: see Kernel's method of the same name.
FillResult CopyRange(Kernel& kernel, int fd, uintptr_t dst, uintptr_t src,
                     size_t bytes, uint64_t mode, const FillPolicy& policy);
FillResult ZeroRange(Kernel& kernel, int fd, uintptr_t start, size_t bytes,
                     uint64_t mode, const FillPolicy& policy);
FillResult ContinueRange(Kernel& kernel, int fd, uintptr_t start, size_t bytes,
                         uint64_t mode, const FillPolicy& policy);
// Does not poison a page that is there.
FillResult PoisonRange(Kernel& kernel, int fd, uintptr_t start, size_t bytes,
                       uint64_t mode, const FillPolicy& policy);

// Sets or clears write protection on the whole range, retrying EAGAIN as above.
FillResult WriteProtectRange(Kernel& kernel, int fd, uintptr_t start,
                             size_t bytes, uint64_t mode,
                             const FillPolicy& policy);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_FILL_H_
