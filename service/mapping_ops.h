// A slot's memory as the kernel's own mappings: what slot_ops.h and the fault
// path are to userfaultfd.
//
// A slot is up to four mappings, in this order:
//
//   [0, image's pages)   private mapping of the image, readable and writable
//   up to the size       anonymous, readable and writable
//   up to the next slot  PROT_NONE, one mapping with the guard behind it
//
// Older kernels (6.1 was seen to) do not merge what was touched and made
// inaccessible again with what never was, so that the third is two there.
//
// THE BOUND is where PROT_NONE begins: a touch there is SIGSEGV, and a trap.
// It moves by mprotect(2): up at growth, back where the next holder is smaller
// and for what was grown into. So a slot that goes from holder to holder of one
// size and one image makes no call for it, and a free slot stays accessible
// below the size of its last holder, with the initial bytes.
//
// THE HAND-OVER, mappings-scan: one PAGEMAP_SCAN (6.7) of the memory reports
// the pages that are private to this process; the others are the image's own,
// the kernel's page of zeroes, or not there. Private pages are all that can
// have changed. Their initial bytes are copied over them and they stay, so that
// the next holder writes them without a fault. They stay "private" for every
// later scan, too: a page that was ever changed is restored at each release,
// until there are more than the limit and the slot is dropped.
// mappings-drop: one MADV_DONTNEED, and all is as first mapped.
//
// THE WORKING SET (init/working_set.h): the same scan, at the first releases
// after a bind, tells which pages are there, and which of them are private; the
// kernel maps up to sixteen around one that is read. A slot that gets an image
// has the set's pages made private, or mapped, by MADV_POPULATE (5.14).
//
// A page of zeroes is not left out where an image is mapped: nothing but the
// kernel's merging of equal pages (KSM) puts one there, and only in the place
// of a page that somebody changed.

#ifndef FIRSTTOUCH_SERVICE_MAPPING_OPS_H_
#define FIRSTTOUCH_SERVICE_MAPPING_OPS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/service/fault_core.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch {

// For all slots of a pool. Each call is for one slot; what is said of callers
// is meant for each slot alone. None is for signal handlers.
class MappingOps {
 public:
  // For a pool all of whose reservation is PROT_NONE. `core` must outlive this.
  // `supply` is one of the mappings; `pagemap_fd` may be -1 for kMappingsDrop.
  MappingOps(const FaultCore& core, const PoolLayout& layout, Supply supply,
             int pagemap_fd, bool include_in_core_dump);

  MappingOps(const MappingOps&) = delete;
  MappingOps& operator=(const MappingOps&) = delete;

  // By the slot's owner, while nobody is in it. -------------------------------

  // Makes the memory that of `image` (null: zeroes), and accessible up to
  // `size_pages` exactly. No call where it was left so. An error that leaves
  // the slot's `remap_wanted` false has changed nothing; after any other it is
  // not accessible at all, as far as the kernel obeys, and the next call maps
  // all of it anew: Abandon (slot_ops.h) it before.
  absl::Status Prepare(SlotState& slot, const ImageRef& image,
                       uint64_t size_pages);

  // Restores the initial bytes below `keep_pages`, which are then the pages
  // that are accessible. With more than `hot_pages_limit` private pages, all of
  // them are dropped (mappings-scan). After an error it is not accessible, as
  // far as the kernel obeys: quarantine it.
  absl::Status Restore(SlotState& slot, uint64_t keep_pages,
                       uint64_t hot_pages_limit);

  // Takes note that the pages below `keep_pages`, all that the free slot keeps,
  // were dropped or, with an `error` of madvise(2), were not.
  absl::Status NoteDropped(SlotState& slot, uint64_t keep_pages, int error);

  // Private pages that it keeps.
  uint64_t KeptPages(const SlotState& slot) const {
    return Of(slot).private_pages;
  }

  // Maps all of an abandoned slot (slot_ops.h) anew, inaccessible.
  absl::Status Unbind(SlotState& slot);

  // Makes all of the slot inaccessible, as far as the kernel obeys.
  void Shut(SlotState& slot);

  // By holders, any number of threads at once. --------------------------------

  // One growth at a time; `ops` null: nothing.
  class GrowthLock {
   public:
    GrowthLock(MappingOps* ops, const SlotState& slot);
    ~GrowthLock();
    GrowthLock(const GrowthLock&) = delete;
    GrowthLock& operator=(const GrowthLock&) = delete;

   private:
    Mutex* const mutex_;
  };

  // Makes pages up to `end_page` accessible. Before the size says that they
  // are in bounds, and under the slot's GrowthLock, so that the bound never
  // lies beyond the size. Errors: the errno of mprotect(2); nothing has changed
  // then.
  absl::Status Open(SlotState& slot, uint64_t end_page);

  // Makes all that is accessible read-only, or writable again, under the
  // GrowthLock. Errors: the errno of mprotect(2).
  absl::Status SetWritable(SlotState& slot, bool writable);

  // Pages of a memory.
  struct Run {
    uint64_t first_page;
    uint64_t pages;
    bool is_private;  // may have other bytes than at first
  };
  // All pages below `end_page` that are there. Where no scan tells, those
  // whose bytes differ from the initial ones.
  std::vector<Run> Resident(const SlotState& slot, uint64_t end_page) const;

 private:
  // Owner's, but for what a growth changes under the lock.
  struct SlotMappings {
    Mutex growth;
    // Pages from the start that are accessible.
    uint64_t accessible_pages = 0;
    // Behind the last page that may be private while the slot is free.
    uint64_t private_end = 0;
    // How many are.
    uint64_t private_pages = 0;
    // Releases that the image's working set is yet to be told of.
    uint32_t releases_to_teach = 0;
  };

  SlotMappings& Of(const SlotState& slot) const {
    return slots_[&slot - core_.slots];
  }
  absl::Status Bind(SlotState& slot, const ImageRef& image);
  absl::Status MapAllAnew(SlotState& slot);
  absl::Status Drop(SlotState& slot, uint64_t first_page, uint64_t end_page);
  // Maps pages anew, from `file` or, with fd -1, anonymous, with every property
  // of the rest of the pool.
  absl::Status MapAnew(SlotState& slot, uint64_t first_page, uint64_t pages,
                       const Image::Mapping& file);
  absl::Status Protect(SlotState& slot, uint64_t first_page, uint64_t end_page,
                       int protection);
  // Has the pages of the working set ready that lie below `size_pages`. What
  // fails is left to the first touch.
  void Populate(SlotState& slot, uint64_t size_pages);
  // Copies the initial bytes back, or drops.
  absl::Status ScanAndRestore(SlotState& slot, uint64_t keep_pages,
                              uint64_t hot_pages_limit);
  // Hands every run below `end_page` that is there to `visit` until it says
  // false. Gives 0, or the errno of the scan.
  int Scan(const SlotState& slot, uint64_t end_page,
           absl::FunctionRef<bool(const Run&)> visit, uint64_t* calls) const;

  const FaultCore& core_;
  Kernel& kernel_;
  const uint64_t memory_bytes_;
  const Supply supply_;
  const int pagemap_fd_;
  const bool include_in_core_dump_;
  const std::unique_ptr<SlotMappings[]> slots_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_MAPPING_OPS_H_
