// On the fault path: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include "firsttouch/uffd/fill.h"

#include <algorithm>
#include <cerrno>

#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// The successive stops without progress, and their waits. Reset() starts them
// again.
class Stalls {
 public:
  Stalls(Kernel& kernel, const FillPolicy& policy)
      : kernel_(kernel), policy_(policy) {}

  void Reset() { in_a_row_ = 0; }

  // Reads events or waits. False: the limit is reached.
  bool Next() {
    if (in_a_row_ >= policy_.max_stalls) return false;
    ++in_a_row_;
    if (in_a_row_ <= policy_.immediate_retries) return true;
    const uint32_t waits_before = in_a_row_ - policy_.immediate_retries - 1;
    const int first_ms = std::max(policy_.first_wait_ms, 1);
    const int cap_ms = std::max(policy_.wait_cap_ms, first_ms);
    int wait_ms = first_ms;
    for (uint32_t i = 0; i < waits_before && wait_ms < cap_ms; ++i) {
      wait_ms = wait_ms > cap_ms / 2 ? cap_ms : wait_ms * 2;
    }
    // Without a descriptor poll(2) is a sleep; a signal may cut it short, which
    // costs one more retry.
    kernel_.Poll(nullptr, 0, wait_ms);
    return true;
  }

 private:
  Kernel& kernel_;
  const FillPolicy& policy_;
  uint32_t in_a_row_ = 0;
};

// Runs `step(offset_bytes, bytes)`, one of the kernel's range calls, over the
// whole range. Goes on page by page where ENOENT says that the range is not in
// one mapping.
template <typename Step>
FillResult Fill(Kernel& kernel, int fd, uintptr_t start, size_t bytes,
                const FillPolicy& policy, Step step) {
  FillResult result;
  Stalls stalls(kernel, policy);
  size_t most = bytes;
  while (result.bytes_done < bytes) {
    const size_t asked = std::min(most, bytes - result.bytes_done);
    const RangeResult range = step(result.bytes_done, asked);
    if (range.bytes_done > 0) {
      result.bytes_done += static_cast<uint64_t>(range.bytes_done);
      stalls.Reset();
    }
    switch (range.error) {
      case 0:
        break;
      case EAGAIN:
        // With a count: continue from there at once.
        if (range.bytes_done > 0) break;
        ++result.stalls;
        if (!stalls.Next()) {
          result.error = EAGAIN;
          return result;
        }
        break;
      case EEXIST:
        // The page where the call stopped is there: another thread was faster.
        if (result.bytes_done >= bytes) break;
        if (policy.wake_present) {
          kernel.Wake(fd, start + result.bytes_done, kPageBytes);
        }
        result.bytes_done += kPageBytes;
        ++result.pages_present;
        stalls.Reset();
        break;
      case ENOENT:
        // No single mapping holds the range. Neighbours that look alike can be
        // separate mappings: a name, a lock or advice on a part keeps them
        // apart.
        if (asked > kPageBytes) {
          most = kPageBytes;
          continue;
        }
        [[fallthrough]];
      default:
        result.error = range.error;
        return result;
    }
    if (range.error == 0 && range.bytes_done == 0) {
      // Neither progress nor an error: no kernel answers like that.
      result.error = EIO;
      return result;
    }
  }
  return result;
}

}  // namespace

FillResult CopyRange(Kernel& kernel, int fd, uintptr_t dst, uintptr_t src,
                     size_t bytes, uint64_t mode, const FillPolicy& policy) {
  return Fill(kernel, fd, dst, bytes, policy,
              [&](uint64_t offset, size_t left) {
                return kernel.Copy(fd, dst + offset, src + offset, left, mode);
              });
}

FillResult ZeroRange(Kernel& kernel, int fd, uintptr_t start, size_t bytes,
                     uint64_t mode, const FillPolicy& policy) {
  return Fill(kernel, fd, start, bytes, policy,
              [&](uint64_t offset, size_t left) {
                return kernel.ZeroPage(fd, start + offset, left, mode);
              });
}

FillResult ContinueRange(Kernel& kernel, int fd, uintptr_t start, size_t bytes,
                         uint64_t mode, const FillPolicy& policy) {
  return Fill(kernel, fd, start, bytes, policy,
              [&](uint64_t offset, size_t left) {
                return kernel.Continue(fd, start + offset, left, mode);
              });
}

FillResult PoisonRange(Kernel& kernel, int fd, uintptr_t start, size_t bytes,
                       uint64_t mode, const FillPolicy& policy) {
  return Fill(kernel, fd, start, bytes, policy,
              [&](uint64_t offset, size_t left) {
                return kernel.Poison(fd, start + offset, left, mode);
              });
}

FillResult WriteProtectRange(Kernel& kernel, int fd, uintptr_t start,
                             size_t bytes, uint64_t mode,
                             const FillPolicy& policy) {
  return Fill(kernel, fd, start, bytes, policy,
              [&](uint64_t offset, size_t left) {
                return kernel.WriteProtect(fd, start + offset, left, mode);
              });
}

}  // namespace firsttouch
