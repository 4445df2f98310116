// The system calls that firsttouch makes on its memory, as one interface.
//
// RealKernel() is the machine's kernel; FakeKernel (fake_kernel.h, tests only)
// forwards to it and fails or delays calls on command. Everything above takes a
// Kernel&, so that policy is tested without privilege or luck.
//
// This is the raw layer, on the fault path: every method of RealKernel() is
// async-signal-safe, takes no lock, allocates nothing, logs nothing, uses no
// thread-local storage, and leaves the errno of the interrupted code alone (the
// error is in the result). All methods may be called from any thread at once.
// Turn results into absl::Status one layer up (uffd.h, fill.h).

#ifndef FIRSTTOUCH_UFFD_KERNEL_H_
#define FIRSTTOUCH_UFFD_KERNEL_H_

#include <poll.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "firsttouch/uffd/abi.h"

namespace firsttouch {

// The result of a call on a range of memory. A call that stops half-way has
// both: `bytes_done` bytes from the start of the range are done, and `error`
// says why it went no further.
struct RangeResult {
  // Bytes done from the start of the range; never negative, never more than
  // asked for. Where the kernel did nothing it writes a negative errno into its
  // field: this one is 0 then.
  int64_t bytes_done = 0;
  // 0: the whole range is done. Otherwise an errno.
  int error = 0;

  constexpr bool ok() const { return error == 0; }
};

// The result of any other call.
struct CallResult {
  // The value on success (a descriptor, a count, an address); 0 on failure.
  int64_t value = 0;
  // 0, or an errno.
  int error = 0;

  constexpr bool ok() const { return error == 0; }
};

// Interprets an ioctl's answer, for all ioctls. `returned` is 0 or a negative
// errno; `count` is the signed field that the kernel filled: bytes done, or a
// negative errno, or 0. Anything but 0 < count <= bytes means that nothing was
// done. A short count without an error is reported as EAGAIN, "go on from
// there".
constexpr RangeResult RangeResultFrom(int64_t returned, int64_t count,
                                      size_t bytes) {
  const bool sensible =
      count > 0 && static_cast<uint64_t>(count) <= static_cast<uint64_t>(bytes);
  const int64_t done = sensible ? count : 0;
  if (returned < 0) return {done, static_cast<int>(-returned)};
  if (static_cast<uint64_t>(done) == bytes) return {done, 0};
  return {done, 11 /* EAGAIN */};
}

// A kernel. Addresses and lengths are multiples of the page size unless stated
// otherwise.
class Kernel {
 public:
  virtual ~Kernel() = default;

  // Opens a userfaultfd through /dev/userfaultfd (6.1), close-on-exec. `flags`:
  // O_NONBLOCK, kUffdUserModeOnly. Value: the descriptor. Errors: ENOENT
  // (kernel before 6.1, or no device node in this container), EACCES (mode of
  // the node), EMFILE (descriptor table full).
  virtual CallResult OpenUserfaultfdDevice(int flags) noexcept = 0;

  // Opens a userfaultfd by userfaultfd(2) (4.3), close-on-exec; same flags.
  // Errors: EPERM (vm.unprivileged_userfaultfd is 0, or a seccomp filter),
  // ENOSYS (kernel without CONFIG_USERFAULTFD, or a seccomp filter), EINVAL
  // (kUffdUserModeOnly before 5.11), EMFILE.
  virtual CallResult OpenUserfaultfdSyscall(int flags) noexcept = 0;

  // The handshake (4.3): asks for `features`, and fills `*reply` with what the
  // kernel has. Once per descriptor: a second call is EINVAL, and so is a
  // feature that this kernel lacks; `*reply` is all zeroes then. To probe, use
  // a separate descriptor, with features 0.
  virtual CallResult Api(int fd, uint64_t features,
                         uffdio_api* reply) noexcept = 0;

  // Registers a range (4.3) for `mode` (kUffdRegister...). `*ioctls` (may be
  // null) gets the kUffdIoctl... bits that work on it, including bits unknown
  // here. Errors: EINVAL (a mapping that cannot have this mode, or no mapping),
  // EBUSY (registered with another userfaultfd), ENOMEM (too many mappings),
  // EPERM (a shared file without write permission).
  virtual CallResult Register(int fd, uintptr_t start, size_t bytes,
                              uint64_t mode, uint64_t* ioctls) noexcept = 0;

  // Ends a registration (4.3). Missing pages of the range read as zero from
  // then on.
  virtual CallResult Unregister(int fd, uintptr_t start,
                                size_t bytes) noexcept = 0;

  // The fill calls. Each wakes the threads that wait for these pages, unless
  // the mode says DontWake. Common errors: EEXIST (the page at start +
  // bytes_done is there already), EAGAIN (stopped half-way, or an event is
  // unread, or mappings change: go on from bytes_done), ENOENT (the range is
  // not one registered range), ESRCH (the process has gone), EINVAL.
  //
  // Copies bytes into missing pages (4.3; kUffdCopyWp 5.7). `src` needs no
  // alignment.
  virtual RangeResult Copy(int fd, uintptr_t dst, uintptr_t src, size_t bytes,
                           uint64_t mode) noexcept = 0;
  // Maps the kernel's zero page, read-only until written (4.3); not for
  // memory registered for minor faults only.
  virtual RangeResult ZeroPage(int fd, uintptr_t start, size_t bytes,
                               uint64_t mode) noexcept = 0;
  // Maps pages that the mapped file has (5.13; memfds 5.14; kUffdContinueWp
  // 6.4). EFAULT for a page that the file lacks.
  virtual RangeResult Continue(int fd, uintptr_t start, size_t bytes,
                               uint64_t mode) noexcept = 0;
  // Makes every later touch of missing pages a SIGBUS (6.6).
  virtual RangeResult Poison(int fd, uintptr_t start, size_t bytes,
                             uint64_t mode) noexcept = 0;
  // Sets (kUffdWriteProtectWp) or clears write protection (5.7). All or
  // nothing: bytes_done is 0 or `bytes`.
  virtual RangeResult WriteProtect(int fd, uintptr_t start, size_t bytes,
                                   uint64_t mode) noexcept = 0;

  // Wakes the threads that wait for pages of the range (4.3); they fault again
  // where a page is still missing.
  virtual CallResult Wake(int fd, uintptr_t start, size_t bytes) noexcept = 0;

  // Reads up to `capacity` messages. Value: their number. EAGAIN: none (on a
  // non-blocking descriptor). EINVAL: before the handshake.
  virtual CallResult ReadEvents(int fd, uffd_msg* messages,
                                size_t capacity) noexcept = 0;

  // poll(2). Value: the number of descriptors that are ready; 0 after
  // `timeout_ms` (negative: wait forever). EINTR: a signal.
  virtual CallResult Poll(pollfd* fds, size_t count,
                          int timeout_ms) noexcept = 0;

  // PAGEMAP_SCAN (6.7) on a descriptor of /proc/self/pagemap. Value: regions
  // written to arg->vec. A full vector is no error: go on from arg->walk_end.
  // ENOTTY: kernel before 6.7. EPERM: kPmScanWpMatching on memory that is not
  // registered for WP with WP_ASYNC.
  virtual CallResult PagemapScan(int pagemap_fd, PmScanArg* arg) noexcept = 0;

  // mmap(2), munmap(2), mprotect(2), madvise(2), munlock(2). Mmap's value is
  // the address.
  virtual CallResult Mmap(uintptr_t addr, size_t bytes, int prot, int flags,
                          int fd, uint64_t offset) noexcept = 0;
  virtual CallResult Munmap(uintptr_t start, size_t bytes) noexcept = 0;
  virtual CallResult Mprotect(uintptr_t start, size_t bytes,
                              int prot) noexcept = 0;
  virtual CallResult Madvise(uintptr_t start, size_t bytes,
                             int advice) noexcept = 0;
  virtual CallResult Munlock(uintptr_t start, size_t bytes) noexcept = 0;

  // madvise(2) on many ranges of the calling process (MADV_DONTNEED from 6.13;
  // EINVAL before). At most IOV_MAX (1024) ranges. Value: the bytes advised,
  // which may be fewer than asked for.
  virtual CallResult ProcessMadvise(const iovec* ranges, size_t count,
                                    int advice) noexcept = 0;

  virtual CallResult Close(int fd) noexcept = 0;

  // A second descriptor for the same file, close-on-exec, numbered `minimum` or
  // above. Value: the descriptor.
  virtual CallResult DupCloexec(int fd, int minimum) noexcept = 0;

  // A non-blocking close-on-exec eventfd with count 0. Value: the descriptor.
  virtual CallResult EventFd() noexcept = 0;

  // membarrier(2) (4.3; the private expedited commands 4.14). EPERM: this
  // process has not registered for the command. ENOSYS, EPERM: a seccomp
  // filter.
  virtual CallResult Membarrier(int command) noexcept = 0;

  // Opens /proc/self/pagemap, close-on-exec. Value: the descriptor. It shows
  // the process that opened it, even in a forked child.
  virtual CallResult OpenPagemap() noexcept = 0;
};

// The kernel of this machine. Constant-initialized and never destroyed, so that
// static constructors, exit handlers and signal handlers may use it.
Kernel& RealKernel();

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_KERNEL_H_
