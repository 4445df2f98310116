#include "firsttouch/init/memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <limits>
#include <new>

namespace firsttouch {
namespace {

// Runs `call`, which answers -1 and sets errno on failure, until a signal does
// not interrupt it; leaves errno as it was.
template <typename Call>
MemfdResult Run(Call call) noexcept {
  const int saved = errno;
  MemfdResult result;
  do {
    errno = 0;
    result.value = static_cast<int64_t>(call());
    result.error = result.value == -1 ? errno : 0;
  } while (result.error == EINTR);
  if (result.error != 0) result.value = 0;
  errno = saved;
  return result;
}

class RealCalls final : public MemfdCalls {
 public:
  MemfdResult Create(const char* name, unsigned flags) noexcept override {
    return Run([&] { return memfd_create(name, flags); });
  }

  MemfdResult Truncate(int fd, uint64_t bytes) noexcept override {
    return Run([&] { return ftruncate(fd, static_cast<off_t>(bytes)); });
  }

  MemfdResult Write(int fd, const void* from, size_t bytes,
                    uint64_t offset) noexcept override {
    return Run(
        [&] { return pwrite(fd, from, bytes, static_cast<off_t>(offset)); });
  }

  MemfdResult Read(int fd, void* into, size_t bytes,
                   uint64_t offset) noexcept override {
    return Run(
        [&] { return pread(fd, into, bytes, static_cast<off_t>(offset)); });
  }

  MemfdResult PunchHole(int fd, uint64_t offset,
                        uint64_t bytes) noexcept override {
    return Run([&] {
      return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       static_cast<off_t>(offset), static_cast<off_t>(bytes));
    });
  }

  MemfdResult AllocatedBytes(int fd) noexcept override {
    struct stat status = {};
    MemfdResult result = Run([&] { return fstat(fd, &status); });
    // st_blocks counts in 512 bytes, whatever st_blksize says.
    if (result.ok()) result.value = int64_t{status.st_blocks} * 512;
    return result;
  }

  MemfdResult AddSeals(int fd, int seals) noexcept override {
    return Run([&] { return fcntl(fd, F_ADD_SEALS, seals); });
  }

  MemfdResult MapReadOnly(int fd, size_t bytes, int flags) noexcept override {
    // Inaccessible at first, and unlocked: under mlockall(MCL_FUTURE) the
    // kernel would populate it, which fills every hole of the file.
    const MemfdResult mapped = Run([&] {
      return reinterpret_cast<intptr_t>(
          mmap(nullptr, bytes, PROT_NONE, flags, fd, 0));
    });
    if (!mapped.ok()) return mapped;
    auto* const address = reinterpret_cast<void*>(mapped.value);
    const MemfdResult opened = Run([&] {
      const int unlocked = munlock(address, bytes);
      return unlocked != 0 ? unlocked : mprotect(address, bytes, PROT_READ);
    });
    if (opened.ok()) return mapped;
    Run([&] { return munmap(address, bytes); });
    return opened;
  }

  MemfdResult Unmap(uintptr_t address, size_t bytes) noexcept override {
    return Run([&] { return munmap(reinterpret_cast<void*>(address), bytes); });
  }

  MemfdResult Advise(uintptr_t address, size_t bytes,
                     int advice) noexcept override {
    return Run([&] {
      return madvise(reinterpret_cast<void*>(address), bytes, advice);
    });
  }

  MemfdResult Close(int fd) noexcept override {
    // Not repeated: on Linux the descriptor is gone even after EINTR.
    const int saved = errno;
    MemfdResult result;
    if (close(fd) != 0) result.error = errno;
    errno = saved;
    return result;
  }

  MemfdResult FileSizeLimit() noexcept override {
    struct rlimit limit = {};
    MemfdResult result = Run([&] { return getrlimit(RLIMIT_FSIZE, &limit); });
    if (!result.ok()) return result;
    constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
    result.value = limit.rlim_cur > static_cast<uint64_t>(kNone)
                       ? kNone
                       : static_cast<int64_t>(limit.rlim_cur);
    return result;
  }
};

}  // namespace

MemfdCalls& RealMemfdCalls() {
  alignas(RealCalls) static unsigned char storage[sizeof(RealCalls)];
  static MemfdCalls* const calls = new (storage) RealCalls;
  return *calls;
}

}  // namespace firsttouch
