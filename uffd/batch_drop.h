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
// Before, or where a seccomp filter refuses it: one madvise(2) a range.
//
// MADV_DONTNEED is what it does: private anonymous pages are missing again,
// those of a private file mapping are the file's. In a private file mapping
// that userfaultfd protects against writes, the marker of a protected page
// stays (kernel.h).
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
  // What could not be dropped.
  struct Failure {
    uintptr_t start;
    size_t bytes;
    int error;  // errno of madvise(2)
  };

  struct Result {
    uint64_t bytes_dropped = 0;
    // System calls that were made, refused ones included.
    uint64_t calls = 0;
    // In ascending order. What is not here has been dropped.
    std::vector<Failure> failures;

    bool ok() const { return failures.empty(); }
    // The errno of the first failure that overlaps [start, start + bytes); 0
    // where there is none.
    int ErrorOf(uintptr_t start, size_t bytes) const;
  };

  // Ranges that one process_madvise(2) takes.
  static constexpr size_t kMostRanges = 1024;

  // Notes a range. Multiples of the page size; 0 bytes are nothing. Ranges may
  // touch or overlap, and come in any order.
  void Add(uintptr_t start, size_t bytes);

  bool empty() const { return ranges_.empty(); }

  // Drops all that was added since the last time. Ranges that touch are one,
  // and fail as one; a range that fails does not keep the others.
  Result Drop(Kernel& kernel);

 private:
  // Sorts the ranges, and makes one of those that touch.
  void Merge();

  std::vector<iovec> ranges_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_BATCH_DROP_H_
