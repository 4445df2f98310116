// The properties of a pool's mappings that a plain mmap(2) does not give, in
// one place; and how their pages are dropped whatever the process has asked for
// its mappings as a whole.
//
//   kernel.Mmap(..., PROT_NONE, ...)          // nothing can be populated
//   kernel.Register(...)                      // where userfaultfd supplies it
//   SetMappingProperties(kernel, start, bytes, {})
//   kernel.Mprotect(start, bytes, PROT_READ | PROT_WRITE)
//
// THE ORDER matters. A process that has called mlockall(MCL_FUTURE), or has a
// library in front of mmap(2) that adds MAP_POPULATE, gets every new mapping
// populated at once. A page that is there never faults as missing: it would be
// accessible outside the bounds, and it would be the wrong page. The kernel
// does not populate a PROT_NONE mapping, but mprotect(2) populates one that is
// locked: so the mapping is made PROT_NONE, unlocked, and made accessible last.
//
// Thread safety: any thread, on ranges that no other thread changes meanwhile.
// Not for signal handlers.
#ifndef FIRSTTOUCH_UFFD_MAPPING_PROPERTIES_H_
#define FIRSTTOUCH_UFFD_MAPPING_PROPERTIES_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "firsttouch/uffd/kernel.h"

namespace firsttouch {

struct MappingProperties {
  // False: MADV_DONTDUMP.
  bool include_in_core_dump = false;
  // False: MADV_DONTFORK.
  bool inherit_on_fork = false;
  // False: MADV_NOHUGEPAGE. True: MADV_HUGEPAGE.
  bool huge_pages = false;
  // The range is without huge pages already: its mmap(2) had MAP_STACK, on a
  // kernel that NoHugePagesByMmap() is true of.
  bool no_huge_pages_by_mmap = false;
  // What ProcessMergesPages() has said, for callers that know.
  std::optional<bool> process_merges;
  // Pages may be in the range, and it may stay locked.
  bool may_be_populated = false;
};

// Whether mmap(2) with MAP_STACK gives a mapping without huge pages, on a
// kernel whose userfaultfd has these features (abi.h). (6.7; 6.8 is the first
// that can be told by a feature. Before, MAP_STACK means nothing.)
bool NoHugePagesByMmap(uint64_t available_features);

struct MappingResult {
  int error = 0;          // errno of the call that failed
  const char* call = "";  // its name
  uint32_t calls = 0;     // system calls that were made

  bool ok() const { return error == 0; }
};

// Gives the page-aligned range, which must be mapped, these properties:
//
//   MADV_DONTFORK        a child has no mapping there and dies on touch
//   MADV_DONTDUMP        a crash does not walk terabytes
//   MADV_NOHUGEPAGE      one touch never makes 2 MiB resident
//   MADV_UNMERGEABLE     where the process merges equal pages (KSM,
//                        PR_SET_MEMORY_MERGE): a merge takes the mark of a
//                        write-protected page away
//   not locked, and no page in it
//
// Advice that the kernel was built without is ignored for MADV_NOHUGEPAGE and
// MADV_UNMERGEABLE; for MADV_HUGEPAGE it is an error: EINVAL. Other errors are
// those of madvise(2) and munlock(2); the range may then have some of the
// properties.
MappingResult SetMappingProperties(Kernel& kernel, uintptr_t start,
                                   size_t bytes,
                                   const MappingProperties& properties);

// MADV_DONTNEED of a page-aligned range, even where it is locked (mlockall(2)
// with MCL_CURRENT, after the range was mapped), which MADV_DONTNEED itself
// refuses with EINVAL. The lock stays, except on kernels before 5.18, which
// lack MADV_DONTNEED_LOCKED. Errors: those of madvise(2).
CallResult DropMappedPages(Kernel& kernel, uintptr_t start, size_t bytes);

// Whether the kernel merges equal pages of every mapping of this process that
// is not MADV_UNMERGEABLE (PR_SET_MEMORY_MERGE, 6.4; systemd's MemoryKSM=yes).
// PR_SET_MEMORY_MERGE undoes the MADV_UNMERGEABLE of mappings that exist. One
// system call that takes no lock.
bool ProcessMergesPages();

// MADV_UNMERGEABLE of the range: pages that were merged become private again,
// but not write-protected. Does nothing on a kernel without KSM. Errors: those
// of madvise(2).
CallResult StopMerging(Kernel& kernel, uintptr_t start, size_t bytes);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_UFFD_MAPPING_PROPERTIES_H_
