#include "firsttouch/uffd/mapping_properties.h"

#include <sys/mman.h>
#include <sys/prctl.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"

namespace firsttouch {
namespace {

// <linux/prctl.h>, 6.4.
constexpr int kPrGetMemoryMerge = 68;

// Advice that a kernel may have been built without.
bool IsOptional(int advice) {
  return advice == MADV_NOHUGEPAGE || advice == MADV_UNMERGEABLE;
}

}  // namespace

MappingResult SetMappingProperties(Kernel& kernel, uintptr_t start,
                                   size_t bytes,
                                   const MappingProperties& properties) {
  MappingResult result;
  const auto note = [&](const CallResult& done, const char* call) {
    ++result.calls;
    if (done.ok()) return true;
    result.error = done.error;
    result.call = call;
    return false;
  };
  const auto advise = [&](int advice, const char* name) {
    CallResult done = kernel.Madvise(start, bytes, advice);
    if (done.error == EINVAL && IsOptional(advice)) done = {};
    return note(done, name);
  };
  if (!properties.inherit_on_fork && !advise(MADV_DONTFORK, "MADV_DONTFORK")) {
    return result;
  }
  if (!properties.include_in_core_dump &&
      !advise(MADV_DONTDUMP, "MADV_DONTDUMP")) {
    return result;
  }
  if (!properties.no_huge_pages_by_mmap &&
      !(properties.huge_pages ? advise(MADV_HUGEPAGE, "MADV_HUGEPAGE")
                              : advise(MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE"))) {
    return result;
  }
  if (!properties.process_merges.has_value()) ++result.calls;
  const bool merges = properties.process_merges.has_value()
                          ? *properties.process_merges
                          : ProcessMergesPages();
  if (merges && !advise(MADV_UNMERGEABLE, "MADV_UNMERGEABLE")) return result;
  if (properties.may_be_populated) return result;
  // A mapping that is not locked takes MADV_DONTNEED.
  if (note(kernel.Madvise(start, bytes, kMadvDontNeed), "MADV_DONTNEED") ||
      result.error != EINVAL) {
    return result;
  }
  result.error = 0;
  if (note(kernel.Munlock(start, bytes), "munlock")) {
    note(kernel.Madvise(start, bytes, kMadvDontNeed), "MADV_DONTNEED");
  }
  return result;
}

bool NoHugePagesByMmap(uint64_t available_features) {
  return (available_features & kUffdFeatureMove) != 0;
}

CallResult DropMappedPages(Kernel& kernel, uintptr_t start, size_t bytes) {
  const CallResult dropped = kernel.Madvise(start, bytes, kMadvDontNeed);
  if (dropped.error != EINVAL) return dropped;
  const CallResult locked = kernel.Madvise(start, bytes, kMadvDontNeedLocked);
  if (locked.error != EINVAL) return locked;
  if (!kernel.Munlock(start, bytes).ok()) return dropped;
  return kernel.Madvise(start, bytes, kMadvDontNeed);
}

bool ProcessMergesPages() {
  const int saved_errno = errno;
  const bool merges = prctl(kPrGetMemoryMerge, 0, 0, 0, 0) == 1;
  errno = saved_errno;
  return merges;
}

CallResult StopMerging(Kernel& kernel, uintptr_t start, size_t bytes) {
  const CallResult done = kernel.Madvise(start, bytes, MADV_UNMERGEABLE);
  return done.error == EINVAL ? CallResult{} : done;
}

}  // namespace firsttouch
