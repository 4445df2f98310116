// The system calls that building an image needs, behind an interface so that a
// test can make any of them fail.
//
// Async-signal-safe: each method is one system call (two where said), with no
// lock, no allocation, no logging and no thread-local storage beyond errno,
// which it leaves as it was.
//
// Fork: a memfd and its mappings are inherited like any others.

#ifndef FIRSTTOUCH_INIT_MEMFD_H_
#define FIRSTTOUCH_INIT_MEMFD_H_

#include <cstddef>
#include <cstdint>

namespace firsttouch {

// What a call gave back. `error` is an errno, 0 on success; `value` counts only
// then.
struct MemfdResult {
  int64_t value = 0;
  int error = 0;

  bool ok() const { return error == 0; }
};

class MemfdCalls {
 public:
  virtual ~MemfdCalls() = default;

  // memfd_create(2), Linux 3.17. value = the descriptor. EINVAL: a flag that
  // this kernel does not know, or a name above 249 bytes.
  virtual MemfdResult Create(const char* name, unsigned flags) noexcept = 0;

  // ftruncate(2).
  virtual MemfdResult Truncate(int fd, uint64_t bytes) noexcept = 0;

  // pwrite(2) and pread(2), repeated on EINTR. value = bytes done, perhaps
  // fewer than asked.
  virtual MemfdResult Write(int fd, const void* from, size_t bytes,
                            uint64_t offset) noexcept = 0;
  virtual MemfdResult Read(int fd, void* into, size_t bytes,
                           uint64_t offset) noexcept = 0;

  // fallocate(2) with PUNCH_HOLE | KEEP_SIZE: the range reads as zero and is
  // backed by nothing. Linux 3.5 for tmpfs.
  virtual MemfdResult PunchHole(int fd, uint64_t offset,
                                uint64_t bytes) noexcept = 0;

  // fstat(2). value = bytes of memory that back the file.
  virtual MemfdResult AllocatedBytes(int fd) noexcept = 0;

  // fcntl(F_ADD_SEALS). EBUSY, for F_SEAL_WRITE: a writable mapping exists, or
  // something other than mappings holds one of the pages.
  virtual MemfdResult AddSeals(int fd, int seals) noexcept = 0;

  // mmap(2) of the file from offset 0 with PROT_READ and the given flags.
  // value = the address. EPERM: before Linux 6.7 a shared mapping of a file
  // sealed against writing is refused even for reading.
  virtual MemfdResult MapReadOnly(int fd, size_t bytes, int flags) noexcept = 0;

  // munmap(2), madvise(2), close(2).
  virtual MemfdResult Unmap(uintptr_t address, size_t bytes) noexcept = 0;
  virtual MemfdResult Advise(uintptr_t address, size_t bytes,
                             int advice) noexcept = 0;
  virtual MemfdResult Close(int fd) noexcept = 0;

  // getrlimit(RLIMIT_FSIZE). value = the soft limit in bytes, INT64_MAX for
  // none.
  virtual MemfdResult FileSizeLimit() noexcept = 0;
};

// The kernel. Never destroyed.
MemfdCalls& RealMemfdCalls();

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_MEMFD_H_
