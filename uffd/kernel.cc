// The real kernel. On the fault path: async-signal-safe, no lock, no
// allocation, no logging, no thread-local storage (not even errno, which is
// why the calls are made without libc where the machine is known).

#include "firsttouch/uffd/kernel.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <ctime>
#include <type_traits>

#include "firsttouch/uffd/mutex.h"

#if defined(__x86_64__)
#include "firsttouch/uffd/raw_call_x86_64.h"
#else
#include "firsttouch/uffd/raw_call_portable.h"
#endif

#ifdef FIRSTTOUCH_THREAD_SANITIZER
#include <sys/mman.h>
#endif

namespace firsttouch {
namespace {

template <typename T>
int64_t Word(T value) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(value));
  } else {
    return static_cast<int64_t>(value);
  }
}

inline int64_t RawIoctl(int fd, unsigned long request, void* argument) {
  return RawCall(SYS_ioctl, fd, Word(request), Word(argument));
}

inline CallResult ToResult(int64_t returned) {
  if (returned < 0) return {0, static_cast<int>(-returned)};
  return {returned, 0};
}

// Both are from Linux 5.x; Debian 12's libc has the numbers, older ones do not.
constexpr int64_t kSysPidfdOpen = 434;
constexpr int64_t kSysProcessMadvise = 440;

class MachineKernel final : public Kernel {
 public:
  constexpr MachineKernel() = default;

  CallResult OpenUserfaultfdDevice(int flags) noexcept override {
    const int64_t device = RawCall(SYS_openat, AT_FDCWD, Word(kUffdDevicePath),
                                   O_RDWR | O_CLOEXEC);
    if (device < 0) return ToResult(device);
    const int64_t fd =
        RawCall(SYS_ioctl, device, Word(kUffdIocNew), flags | O_CLOEXEC);
    RawCall(SYS_close, device);
    return ToResult(fd);
  }

  CallResult OpenUserfaultfdSyscall(int flags) noexcept override {
    return ToResult(RawCall(SYS_userfaultfd, flags | O_CLOEXEC));
  }

  CallResult Api(int fd, uint64_t features,
                 uffdio_api* reply) noexcept override {
    *reply = {};
    reply->api = kUffdApi;
    reply->features = features;
    return ToResult(RawIoctl(fd, kUffdioApi, reply));
  }

  CallResult Register(int fd, uintptr_t start, size_t bytes, uint64_t mode,
                      uint64_t* ioctls) noexcept override {
    uffdio_register argument{};
    argument.range.start = start;
    argument.range.len = bytes;
    argument.mode = mode;
    const int64_t returned = RawIoctl(fd, kUffdioRegister, &argument);
    if (ioctls != nullptr) *ioctls = returned < 0 ? 0 : argument.ioctls;
    return ToResult(returned);
  }

  CallResult Unregister(int fd, uintptr_t start,
                        size_t bytes) noexcept override {
    uffdio_range argument{start, bytes};
    return ToResult(RawIoctl(fd, kUffdioUnregister, &argument));
  }

  RangeResult Copy(int fd, uintptr_t dst, uintptr_t src, size_t bytes,
                   uint64_t mode) noexcept override {
    uffdio_copy argument{};
    argument.dst = dst;
    argument.src = src;
    argument.len = bytes;
    argument.mode = mode;
    const int64_t returned = RawIoctl(fd, kUffdioCopy, &argument);
    return RangeResultFrom(returned, argument.copy, bytes);
  }

  RangeResult ZeroPage(int fd, uintptr_t start, size_t bytes,
                       uint64_t mode) noexcept override {
    uffdio_zeropage argument{};
    argument.range.start = start;
    argument.range.len = bytes;
    argument.mode = mode;
    const int64_t returned = RawIoctl(fd, kUffdioZeroPage, &argument);
    return RangeResultFrom(returned, argument.zeropage, bytes);
  }

  RangeResult Continue(int fd, uintptr_t start, size_t bytes,
                       uint64_t mode) noexcept override {
    uffdio_continue argument{};
    argument.range.start = start;
    argument.range.len = bytes;
    argument.mode = mode;
    const int64_t returned = RawIoctl(fd, kUffdioContinue, &argument);
    return RangeResultFrom(returned, argument.mapped, bytes);
  }

  RangeResult Poison(int fd, uintptr_t start, size_t bytes,
                     uint64_t mode) noexcept override {
    UffdioPoison argument{};
    argument.range.start = start;
    argument.range.len = bytes;
    argument.mode = mode;
    const int64_t returned = RawIoctl(fd, kUffdioPoison, &argument);
    return RangeResultFrom(returned, argument.updated, bytes);
  }

  RangeResult WriteProtect(int fd, uintptr_t start, size_t bytes,
                           uint64_t mode) noexcept override {
    uffdio_writeprotect argument{};
    argument.range.start = start;
    argument.range.len = bytes;
    argument.mode = mode;
    const int64_t returned = RawIoctl(fd, kUffdioWriteProtect, &argument);
    if (returned < 0) return {0, static_cast<int>(-returned)};
    return {static_cast<int64_t>(bytes), 0};
  }

  CallResult Wake(int fd, uintptr_t start, size_t bytes) noexcept override {
    uffdio_range argument{start, bytes};
    return ToResult(RawIoctl(fd, kUffdioWake, &argument));
  }

  CallResult ReadEvents(int fd, uffd_msg* messages,
                        size_t capacity) noexcept override {
    const int64_t returned = RawCall(SYS_read, fd, Word(messages),
                                     Word(capacity * sizeof(uffd_msg)));
    if (returned < 0) return ToResult(returned);
    return {returned / static_cast<int64_t>(sizeof(uffd_msg)), 0};
  }

  CallResult Poll(pollfd* fds, size_t count, int timeout_ms) noexcept override {
    // Not poll(2), which newer machines lack.
    timespec timeout{timeout_ms / 1000, timeout_ms % 1000 * 1'000'000};
    return ToResult(RawCall(SYS_ppoll, Word(fds), Word(count),
                            timeout_ms < 0 ? 0 : Word(&timeout), 0, 0));
  }

  CallResult PagemapScan(int pagemap_fd, PmScanArg* arg) noexcept override {
    return ToResult(RawIoctl(pagemap_fd, kPagemapScan, arg));
  }

  CallResult Mmap(uintptr_t addr, size_t bytes, int prot, int flags, int fd,
                  uint64_t offset) noexcept override {
#ifdef FIRSTTOUCH_THREAD_SANITIZER
    // The sanitizer must see memory begin and end; otherwise it takes an access
    // to a later mapping for a race with an earlier one. (Its interceptors
    // restore errno, and so does this.)
    const int saved = errno;
    void* result = ::mmap(reinterpret_cast<void*>(addr), bytes, prot, flags, fd,
                          static_cast<off_t>(offset));
    const CallResult answer = result == MAP_FAILED
                                  ? CallResult{0, errno}
                                  : CallResult{Word(result), 0};
    errno = saved;
    return answer;
#else
    return ToResult(RawCall(SYS_mmap, Word(addr), Word(bytes), prot, flags, fd,
                            Word(offset)));
#endif
  }

  CallResult Munmap(uintptr_t start, size_t bytes) noexcept override {
#ifdef FIRSTTOUCH_THREAD_SANITIZER
    const int saved = errno;
    const int result = ::munmap(reinterpret_cast<void*>(start), bytes);
    const CallResult answer{0, result == 0 ? 0 : errno};
    errno = saved;
    return answer;
#else
    return ToResult(RawCall(SYS_munmap, Word(start), Word(bytes)));
#endif
  }

  CallResult Mprotect(uintptr_t start, size_t bytes,
                      int prot) noexcept override {
    return ToResult(RawCall(SYS_mprotect, Word(start), Word(bytes), prot));
  }

  CallResult Madvise(uintptr_t start, size_t bytes,
                     int advice) noexcept override {
    return ToResult(RawCall(SYS_madvise, Word(start), Word(bytes), advice));
  }

  CallResult Munlock(uintptr_t start, size_t bytes) noexcept override {
    return ToResult(RawCall(SYS_munlock, Word(start), Word(bytes)));
  }

  CallResult ProcessMadvise(const iovec* ranges, size_t count,
                            int advice) noexcept override {
    const int64_t returned = RawCall(kSysProcessMadvise, kPidfdSelfProcess,
                                     Word(ranges), Word(count), advice, 0);
    if (returned != -EBADF) return ToResult(returned);
    // A kernel that does not know the number for "myself" yet. The descriptor
    // is not kept: after a fork or a closefrom(2) it could refer to something
    // else.
    const int64_t self = RawCall(kSysPidfdOpen, RawCall(SYS_getpid), 0);
    if (self < 0) return ToResult(self);
    const int64_t again =
        RawCall(kSysProcessMadvise, self, Word(ranges), Word(count), advice, 0);
    RawCall(SYS_close, self);
    return ToResult(again);
  }

  CallResult Close(int fd) noexcept override {
    return ToResult(RawCall(SYS_close, fd));
  }

  CallResult DupCloexec(int fd, int minimum) noexcept override {
    return ToResult(RawCall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, minimum));
  }

  CallResult EventFd() noexcept override {
    return ToResult(RawCall(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK));
  }

  CallResult Membarrier(int command) noexcept override {
    return ToResult(RawCall(SYS_membarrier, command, 0, 0));
  }

  CallResult OpenPagemap() noexcept override {
    return ToResult(RawCall(SYS_openat, AT_FDCWD, Word("/proc/self/pagemap"),
                            O_RDONLY | O_CLOEXEC));
  }
};

// Never destroyed: faults may still come while the process exits.
union NeverDestroyed {
  constexpr NeverDestroyed() : kernel() {}
  ~NeverDestroyed() {}
  MachineKernel kernel;
};
constinit NeverDestroyed machine;

}  // namespace

Kernel& RealKernel() { return machine.kernel; }

}  // namespace firsttouch
