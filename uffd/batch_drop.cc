#include "firsttouch/uffd/batch_drop.h"

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"

namespace firsttouch {
namespace {

uintptr_t StartOf(const iovec& range) {
  return reinterpret_cast<uintptr_t>(range.iov_base);
}

uintptr_t EndOf(const iovec& range) { return StartOf(range) + range.iov_len; }

}  // namespace

int DropBatch::Result::ErrorOf(uintptr_t start, size_t bytes) const {
  for (const Failure& failure : failures) {
    if (failure.start < start + bytes &&
        start < failure.start + failure.bytes) {
      return failure.error;
    }
  }
  return 0;
}

void DropBatch::Add(uintptr_t start, size_t bytes) {
  if (bytes == 0) return;
  ranges_.push_back({reinterpret_cast<void*>(start), bytes});
}

void DropBatch::Merge() {
  std::sort(ranges_.begin(), ranges_.end(), [](const iovec& a, const iovec& b) {
    return StartOf(a) < StartOf(b);
  });
  size_t kept = 0;
  for (const iovec& range : ranges_) {
    if (kept > 0 && StartOf(range) <= EndOf(ranges_[kept - 1])) {
      iovec& before = ranges_[kept - 1];
      before.iov_len = std::max(EndOf(before), EndOf(range)) - StartOf(before);
    } else {
      ranges_[kept++] = range;
    }
  }
  ranges_.resize(kept);
}

DropBatch::Result DropBatch::Drop(Kernel& kernel) {
  Merge();
  std::vector<iovec> ranges = std::exchange(ranges_, {});
  Result result;
  size_t next = 0;
  // One range alone is cheaper by madvise(2), and works everywhere.
  bool together = true;
  while (next < ranges.size()) {
    if (together && ranges.size() - next > 1) {
      const CallResult done = kernel.ProcessMadvise(
          &ranges[next], std::min(ranges.size() - next, kMostRanges),
          kMadvDontNeed);
      ++result.calls;
      // The kernel says how far it got, but not what stopped it: the next call,
      // which begins there, returns that error.
      uint64_t bytes = done.ok() ? static_cast<uint64_t>(done.value) : 0;
      if (bytes > 0) {
        result.bytes_dropped += bytes;
        while (next < ranges.size() && bytes >= ranges[next].iov_len) {
          bytes -= ranges[next++].iov_len;
        }
        if (bytes > 0 && next < ranges.size()) {
          ranges[next].iov_base = static_cast<char*>(ranges[next].iov_base) +
                                  static_cast<ptrdiff_t>(bytes);
          ranges[next].iov_len -= bytes;
        }
        continue;
      }
    }
    // Drops the range that the kernel stopped at, or each range where the
    // kernel does not know the batched call.
    const iovec& range = ranges[next++];
    const CallResult done =
        DropMappedPages(kernel, StartOf(range), range.iov_len);
    ++result.calls;
    if (done.ok()) {
      result.bytes_dropped += range.iov_len;
      together = false;
    } else {
      result.failures.push_back({StartOf(range), range.iov_len, done.error});
    }
  }
  return result;
}

}  // namespace firsttouch
