#include "firsttouch/service/plain_supply.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/in_bounds_faults.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// Pages of a slot below `accessible` can be touched; pages from `used` on were
// never accessible. Inaccessible pages below `used` are zero.
class PlainSupply final : public MemorySupply {
 public:
  explicit PlainSupply(const SuppliedPool& pool)
      : pool_(pool),
        slots_(std::make_unique<PlainSlot[]>(pool.layout.slots())) {}

  absl::Status Attach(const Reservation&) override {
    pool_.fault_pool.resolve = Resolve::kInThread;
    pool_.fault_pool.resolve_signal = &ResolveSignalOfKernelsPage;
    return absl::OkStatus();
  }
  // No user can ask for this supply; the kind is the most similar one.
  SupplyTraits traits() const override {
    return {.kind = Supply::kMappingsDrop, .serves_kernel_faults = true};
  }
  std::string Describe() const override { return "supply: plain memory\n"; }

  absl::Status CheckImage(const Image& image) const override {
    return image.FetchAll();
  }

  absl::Status Bind(SlotState& slot, const ImageRef& image,
                    uint64_t size_pages) override {
    PlainSlot& plain = Of(slot);
    const bool all_anew = slot.remap_wanted;
    const uint64_t image_pages = image == nullptr ? 0 : image->pages().value();
    const bool binds = all_anew || slot.image != image;
    if (!binds && plain.accessible == size_pages) return absl::OkStatus();
    slot.remap_wanted = true;
    // Everything that the former image or lease can have left behind.
    const uint64_t end = std::max(
        {all_anew ? plain.used : plain.accessible, image_pages, size_pages});
    plain.used = std::max(plain.used, end);
    absl::Status status = Protect(slot, 0, end, kAccessible);
    if (status.ok() && binds) {
      if (all_anew) slot.image_id.store(0, std::memory_order_relaxed);
      if (slot.image != image) SetImage(slot, image);
      WriteInitialBytes(slot, end);
    }
    if (status.ok()) status = MoveBound(slot, end, size_pages);
    if (!status.ok()) Shut(slot);
    return status;
  }

  void Prefill(SlotState& slot, uint64_t, uint64_t) override {
    slot.prefill_wanted = false;
  }

  absl::Status Unbind(SlotState& slot) override {
    const uint64_t end = Of(slot).used;
    absl::Status status = Protect(slot, 0, end, kAccessible);
    if (!status.ok()) return status;
    WriteInitialBytes(slot, end);
    slot.image_id.store(0, std::memory_order_relaxed);
    return MoveBound(slot, end, 0);
  }

  absl::Status Restore(SlotState& slot, uint64_t size_bytes,
                       uint64_t) override {
    const uint64_t end = PagesRoundedUp(size_bytes).value();
    if ((slot.exceptions.load(std::memory_order_relaxed) & kSlotDropped) != 0) {
      const CallResult dropped =
          pool_.kernel.Madvise(slot.base, end * kPageBytes, MADV_DONTNEED);
      if (!dropped.ok()) {
        return absl::ErrnoToStatus(dropped.error, "MADV_DONTNEED");
      }
    }
    WriteInitialBytes(slot, end);
    CountOwned(slot.counters.pages_restored, end);
    absl::Status status = MoveBound(slot, end, slot.kept_pages);
    if (!status.ok()) Shut(slot);
    return status;
  }

  // No page could be given back: they all hold the image's bytes.
  uint64_t KeptPages(SlotState&) override { return 0; }
  PageSpan KeptSpan(const SlotState&) const override { return {}; }
  absl::Status NoteDropped(SlotState&, const PageSpan&, int) override {
    return absl::OkStatus();
  }

  void Shut(SlotState& slot) override {
    Protect(slot, 0, Of(slot).used, PROT_NONE).IgnoreError();
  }

  Mutex* GrowthMutex(const SlotState& slot) override {
    return &Of(slot).growth;
  }
  absl::Status Open(SlotState& slot, uint64_t end_page) override {
    PlainSlot& plain = Of(slot);
    if (end_page <= plain.accessible) return absl::OkStatus();
    absl::Status status =
        Protect(slot, plain.accessible, end_page, kAccessible);
    if (!status.ok()) return status;
    plain.accessible = end_page;
    plain.used = std::max(plain.used, end_page);
    return status;
  }

  absl::Status SetWritable(SlotState& slot, bool writable) override {
    return Protect(slot, 0, Of(slot).accessible,
                   writable ? kAccessible : PROT_READ);
  }

  absl::Status ForEachChangedPage(
      SlotState& slot, uint64_t end_page,
      absl::FunctionRef<void(uint64_t page)> visit) override {
    for (uint64_t page = 0; page < end_page; ++page) {
      if (HasChanged(slot, page)) visit(page);
    }
    return absl::OkStatus();
  }

  absl::Status MakeReady(SlotState&, uint64_t, uint64_t, Access) override {
    return absl::OkStatus();
  }

  MemoryPages CountPages(SlotState& slot) override {
    const uint64_t size_bytes = slot.size_bytes.load(std::memory_order_acquire);
    MemoryPages count;
    count.touched = PagesRoundedUp(size_bytes).value();
    count.writable = count.touched;
    for (uint64_t page = 0; page < count.touched; ++page) {
      count.changed += HasChanged(slot, page);
    }
    return count;
  }

 private:
  static constexpr int kAccessible = PROT_READ | PROT_WRITE;

  struct PlainSlot {
    Mutex growth;
    uint64_t accessible = 0;
    uint64_t used = 0;
  };

  PlainSlot& Of(const SlotState& slot) const {
    return slots_[SlotNumber(pool_.fault_pool, slot)];
  }

  static std::byte* PageOf(const SlotState& slot, uint64_t page) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): addresses of slots are numbers
    return reinterpret_cast<std::byte*>(slot.base + page * kPageBytes);
  }

  static bool HasChanged(const SlotState& slot, uint64_t page) {
    return memcmp(PageOf(slot, page), InitialPage(slot, page), kPageBytes) != 0;
  }

  static void WriteInitialBytes(const SlotState& slot, uint64_t end_page) {
    const uint64_t image_end = std::min(slot.image_pages, end_page);
    for (uint64_t page = 0; page < image_end; ++page) {
      memcpy(PageOf(slot, page), InitialPage(slot, page), kPageBytes);
    }
    memset(PageOf(slot, image_end), 0, (end_page - image_end) * kPageBytes);
  }

  // Pages below `end_page` are accessible before; pages from `bound` on are
  // inaccessible afterwards.
  absl::Status MoveBound(SlotState& slot, uint64_t end_page, uint64_t bound) {
    absl::Status status = Protect(slot, bound, end_page, PROT_NONE);
    if (status.ok()) Of(slot).accessible = bound;
    return status;
  }

  absl::Status Protect(SlotState& slot, uint64_t first_page, uint64_t end_page,
                       int protection) {
    if (first_page >= end_page) return absl::OkStatus();
    Count(slot.counters.kernel_calls);
    const CallResult done =
        pool_.kernel.Mprotect(slot.base + first_page * kPageBytes,
                              (end_page - first_page) * kPageBytes, protection);
    if (done.ok()) return absl::OkStatus();
    return absl::ErrnoToStatus(done.error, "mprotect");
  }

  const SuppliedPool pool_;
  const std::unique_ptr<PlainSlot[]> slots_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MemorySupply>> OpenPlainSupply(
    const SuppliedPool& pool) {
  return std::unique_ptr<MemorySupply>(std::make_unique<PlainSupply>(pool));
}

}  // namespace firsttouch
