// Memory as the kernel's own mappings, without userfaultfd.
//
// A slot is up to four mappings, in this order:
//
//   [0, image's pages)   private mapping of the image, readable and writable
//   up to the size       anonymous, readable and writable
//   up to the next slot  PROT_NONE, one mapping with the guard behind it
//
// Older kernels (6.1 was seen to) do not merge a range that was touched and
// made inaccessible again with one that was never touched, so that the third is
// two mappings there.
//
// THE BOUND is where PROT_NONE begins: a touch there is SIGSEGV, and a trap.
// mprotect(2) moves it: up when the memory grows, and back down when the next
// lease is smaller. So successive leases of one size and one image make no call
// for it, and a free slot stays accessible below the size of its last lease,
// with the initial bytes.
//
// THE RELEASE, mappings-scan: one PAGEMAP_SCAN (6.7) of the memory reports
// the pages that are private to this process; the others are the image's own,
// the kernel's zero page, or not there. Private pages are all that can
// have changed. Their initial bytes are copied over them and they stay, so that
// the next guest writes them without a fault. They stay "private" for every
// later scan, too: a page that was ever changed is restored at each release,
// until there are more than the limit and the slot is dropped.
// mappings-drop: one MADV_DONTNEED, and all is as first mapped.
//
// THE WORKING SET (init/working_set.h): the same scan, at the first releases
// after a bind, tells which pages are there, and which of them are private; the
// kernel maps up to sixteen around one that is read. A slot that gets an image
// has the set's pages made private, or mapped, by MADV_POPULATE (5.14).
//
// A zero page is not left out where an image is mapped: nothing but the
// kernel's merging of equal pages (KSM) puts one there, and only in the place
// of a page that was changed.

#ifndef FIRSTTOUCH_SERVICE_MAPPING_SUPPLY_H_
#define FIRSTTOUCH_SERVICE_MAPPING_SUPPLY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/pagemap.h"

namespace firsttouch {

// One class because it is one implementation of MemorySupply, which has most of
// its methods.
class MappingSupply final : public MemorySupply {
 public:
  // `supply` is one of the mappings, chosen for the `reason` that Describe()
  // gives. Where the kernel has no reliable PAGEMAP_SCAN, kMappingsScan becomes
  // kMappingsDrop if `may_choose` is set, and the reason then says so.
  //
  // Errors: FailedPrecondition where that is needed and `may_choose` is not
  // set; ResourceExhausted where no descriptor is left, or vm.max_map_count
  // leaves no room for the slots.
  static absl::StatusOr<std::unique_ptr<MappingSupply>> Open(
      const SuppliedPool& pool, Supply supply, std::string reason,
      bool may_choose);

  // MemorySupply; see there.
  // ----------------------------------------------------
  absl::Status Attach(const Reservation& reservation) override;
  SupplyTraits traits() const override {
    return {.kind = supply_, .serves_kernel_faults = true};
  }
  std::string Describe() const override;

  // The kernel may need any page at once: waits for all of them.
  absl::Status CheckImage(const Image& image) const override;
  // Makes no call where the slot is already as wanted. After an error here or
  // in Restore() the slot is not accessible at all, as far as the kernel obeys.
  absl::Status Bind(SlotState& slot, const ImageRef& image,
                    uint64_t size_pages) override;
  void Prefill(SlotState& slot, uint64_t size_pages,
               uint64_t most_pages) override;
  absl::Status Unbind(SlotState& slot) override;
  absl::Status Restore(SlotState& slot, uint64_t size_bytes,
                       uint64_t most_private_pages) override;
  uint64_t KeptPages(SlotState& slot) override {
    return Of(slot).private_pages;
  }
  PageSpan KeptSpan(const SlotState& slot) const override {
    return {0, slot.kept_pages, slot.kept_pages};
  }
  absl::Status NoteDropped(SlotState& slot, const PageSpan& span,
                           int error) override;
  void Shut(SlotState& slot) override;

  Mutex* GrowthMutex(const SlotState& slot) override {
    return &Of(slot).growth;
  }
  absl::Status Open(SlotState& slot, uint64_t end_page) override;
  absl::Status SetWritable(SlotState& slot, bool writable) override;
  absl::Status ForEachChangedPage(
      SlotState& slot, uint64_t end_page,
      absl::FunctionRef<void(uint64_t page)> visit) override;
  // The kernel resolves its own accesses as it does the guest's.
  absl::Status MakeReady(SlotState&, uint64_t, uint64_t, Access) override {
    return absl::OkStatus();
  }
  MemoryPages CountPages(SlotState& slot) override;

 private:
  // A run of neighbouring pages of a memory.
  struct Run {
    uint64_t first_page;
    uint64_t pages;
    bool is_private;  // may have other bytes than at first
  };

  // Written by the slot's owner, but for what a growth changes under the lock.
  struct SlotMappings {
    Mutex growth;
    // Pages from the start that are accessible.
    uint64_t accessible_pages = 0;
    // Behind the last page that may be private while the slot is free.
    uint64_t private_end = 0;
    // The number of pages below private_end that may be private.
    uint64_t private_pages = 0;
    // Releases that are still to teach the image's working set.
    uint32_t releases_to_teach = 0;
  };

  SlotMappings& Of(const SlotState& slot) const {
    return slots_[SlotNumber(fault_pool_, slot)];
  }
  MappingSupply(const SuppliedPool& pool, Supply supply, std::string reason);
  // Opens pagemap_, or settles for kMappingsDrop.
  absl::Status OpenScan(bool may_choose);
  absl::Status MapImage(SlotState& slot, const ImageRef& image);
  absl::Status MapAllAnew(SlotState& slot);
  absl::Status Drop(SlotState& slot, uint64_t first_page, uint64_t end_page);
  // Maps pages anew, from `file` or, with fd -1, anonymous, with every property
  // of the rest of the pool.
  absl::Status MapAnew(SlotState& slot, uint64_t first_page, uint64_t pages,
                       const Image::Mapping& file);
  absl::Status Protect(SlotState& slot, uint64_t first_page, uint64_t end_page,
                       int protection);
  // All pages below `end_page` that are there. Without a scan: the pages whose
  // bytes differ from the initial ones.
  std::vector<Run> Resident(const SlotState& slot, uint64_t end_page) const;
  // Restores private pages in place, or drops the slot's pages.
  absl::Status ScanAndRestore(SlotState& slot, uint64_t keep_pages,
                              uint64_t retained_pages_limit);
  // Calls `visit` for every run of resident pages below `end_page` until it
  // returns false. Returns 0, or the errno of the scan.
  int Scan(const SlotState& slot, uint64_t end_page,
           absl::FunctionRef<bool(const Run&)> visit, uint64_t* calls) const;

  FaultPool& fault_pool_;
  Kernel& kernel_;
  const ServiceOptions& options_;
  const PoolLayout& layout_;
  Supply supply_;
  std::string reason_;
  std::optional<Pagemap> pagemap_;
  const std::unique_ptr<SlotMappings[]> slots_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_MAPPING_SUPPLY_H_
