// Gives many ranges of memory back to the kernel with few calls.
//
//   DropBatch batch;
//   for (const Slot& slot : idle) batch.Add(slot.start, slot.bytes);
//   const DropBatch::Result dropped = batch.Drop(kernel);
//   for (const Slot& slot : idle) {
//     if (int error = dropped.ErrorOf(slot.start, slot.bytes); error != 0) ...
//   }
//
// From Linux 6.13 that is one process_madvise(2) for up to 1024 ranges, and
// from 6.16 one TLB shootdown for all of them, instead of one for each range.
// On older kernels, or where a seccomp filter refuses the call, it is one
// madvise(2) per range.
//
// The ranges are dropped as by MADV_DONTNEED: private anonymous pages are
// missing again, and those of a private file mapping are the file's. In a
// private file mapping that userfaultfd protects against writes, the marker of
// a protected page stays (kernel.h).
//
// Not for signal handlers: allocates. Not thread-safe.

#ifndef FIRSTTOUCH_UFFD_BATCH_DROP_H_
#define FIRSTTOUCH_UFFD_BATCH_DROP_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

class DropBatch {
 public:
  // A range that could not be dropped.
  struct Failure {
    uintptr_t start;
    size_t bytes;
    int error;  // errno of madvise(2)
  };

  struct Result {
    uint64_t bytes_dropped = 0;
    // The number of system calls made, refused ones included.
    uint64_t calls = 0;
    // In ascending order. Ranges that are not listed have been dropped.
    std::vector<Failure> failures;

    bool ok() const { return failures.empty(); }
    // The errno of the first failure that overlaps [start, start + bytes); 0
    // where there is none.
    int ErrorOf(uintptr_t start, size_t bytes) const;
  };

  // The most ranges that one process_madvise(2) takes.
  static constexpr size_t kMostRanges = 1024;

  // Notes a range. Start and length are multiples of the page size; a range of
  // 0 bytes is ignored. Ranges may touch or overlap, and come in any order.
  void Add(uintptr_t start, size_t bytes);

  bool empty() const { return ranges_.empty(); }

  // Drops everything that was added since the last call. Ranges that touch are
  // merged, and fail as one; the failure of a range does not affect the others.
  Result Drop(Kernel& kernel);

 private:
  // Sorts the ranges, and merges those that touch.
  void Merge();

  std::vector<iovec> ranges_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_BATCH_DROP_H_
