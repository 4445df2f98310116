// A pool that has its memory from a supply and no Service: a reservation, the
// records of the slots, the locator's entry and the signal handler, as a
// Service has them. To test a supply through its interface
// (memory_supply.h). For tests only.

#ifndef FIRSTTOUCH_SERVICE_SUPPLIED_POOL_H_
#define FIRSTTOUCH_SERVICE_SUPPLIED_POOL_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/locator/locator.h"
#include "firsttouch/pool/ids.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/open_supply.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/page_states.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/service/this_thread.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

class SuppliedPoolForTest {
 public:
  static constexpr uint32_t kSlots = 2;
  static constexpr PageCount kPages{128};

  static LayoutOptions Layout() {
    return {.instances = kSlots,
            .max_memory_bytes = kPages.bytes(),
            .guard_before_bytes = 64 * 1024,
            .guard_after_bytes = 64 * 1024};
  }

  // Opens nothing yet. `kernel` outlives the object.
  explicit SuppliedPoolForTest(SupplyChoice choice,
                               Kernel& kernel = RealKernel())
      : kernel_(kernel),
        options_({.name = "supplied",
                  .layout = Layout(),
                  .supply = std::move(choice),
                  .trap_callback = JumpOutOfTrap}),
        layout_(*PoolLayout::Compute(options_.layout)) {}

  SuppliedPoolForTest(const SuppliedPoolForTest&) = delete;
  SuppliedPoolForTest& operator=(const SuppliedPoolForTest&) = delete;

  ~SuppliedPoolForTest() {
    if (supply_ != nullptr) supply_->Stop();
    if (registered_) UnregisterPool(&fault_pool_.entry);
    reservation_.reset();
    supply_.reset();
    if (installed_) UninstallFaultHandler().IgnoreError();
  }

  // What an opener is given.
  SuppliedPool Supplied() {
    return {.options = options_,
            .layout = layout_,
            .kernel = kernel_,
            .fault_pool = fault_pool_};
  }

  // All that a Service does before the first lease.
  absl::Status Start(SupplyOpener open = &OpenSupply) {
    if (absl::Status status = Attach(open); !status.ok()) return status;
    if (absl::Status status = RegisterPool(&fault_pool_.entry); !status.ok()) {
      return status;
    }
    registered_ = true;
    if (absl::Status status = InstallFaultHandler(); !status.ok()) {
      return status;
    }
    installed_ = true;
    if (absl::Status status = EnsureAlternateStack(); !status.ok()) {
      return status;
    }
    return supply_->Start();
  }

  // The part of it that ends with MemorySupply::Attach().
  absl::Status Attach(SupplyOpener open = &OpenSupply) {
    absl::StatusOr<std::unique_ptr<MemorySupply>> opened = open(Supplied());
    if (!opened.ok()) return opened.status();
    supply_ = *std::move(opened);
    absl::StatusOr<Reservation> reservation = Reservation::Create(
        RealKernel(), layout_, {.name = options_.name, .inaccessible = true});
    if (!reservation.ok()) return reservation.status();
    reservation_.emplace(*std::move(reservation));
    for (uint32_t i = 0; i < kSlots; ++i) {
      planes_.push_back(
          std::make_unique<ScratchMemory>(PageStates::BytesFor(kPages)));
      slots_[i].pages = PageStates(planes_.back()->data(), kPages);
      slots_[i].base =
          reservation_->base() + layout_.memory_offset_bytes(SlotIndex(i));
      slots_[i].lifecycle.Move(SlotLifecycle::kReturning);
    }
    fault_pool_.kernel = &kernel_;
    fault_pool_.slots = slots_;
    fault_pool_.name = options_.name.c_str();
    fault_pool_.trap_callback = options_.trap_callback;
    if (absl::Status status = supply_->Attach(*reservation_); !status.ok()) {
      return status;
    }
    PoolEntry& entry = fault_pool_.entry;
    entry.base = reservation_->base();
    entry.bytes = reservation_->bytes();
    entry.first_memory_offset_bytes = layout_.first_memory_offset_bytes();
    entry.slot_stride_bytes = layout_.slot_stride_bytes();
    entry.max_memory_bytes = layout_.memory_bytes();
    entry.unowned_guard_bytes = layout_.unowned_guard_bytes();
    entry.slots = kSlots;
    entry.first_size_bytes = &slots_[0].size_bytes;
    entry.size_stride_bytes = sizeof(SlotState);
    entry.owner = &fault_pool_;
    return absl::OkStatus();
  }

  MemorySupply& supply() { return *supply_; }
  FaultPool& fault_pool() { return fault_pool_; }
  SlotState& slot(uint32_t index = 0) { return slots_[index]; }

  // The steps of an acquire, in a Service's order.
  absl::Status Lease(const ImageRef& image, uint64_t pages,
                     uint32_t index = 0) {
    SlotState& slot = slots_[index];
    if (absl::Status status = supply_->Bind(slot, image, pages); !status.ok()) {
      if (slot.remap_wanted) Abandon(slot);
      return status;
    }
    slot.kept_pages = pages;
    if (slot.prefill_wanted) supply_->Prefill(slot, pages, kPages.value());
    slot.initial_bytes = pages * kPageBytes;
    slot.remap_wanted = false;
    slot.exceptions = 0;
    slot.size_bytes = slot.initial_bytes;
    slot.lifecycle.Move(SlotLifecycle::kLeased);
    return absl::OkStatus();
  }

  // Those of a growth.
  absl::Status Grow(uint64_t pages, uint32_t index = 0) {
    SlotState& slot = slots_[index];
    const MemorySupply::GrowthLock lock(*supply_, slot);
    if (absl::Status status = supply_->Open(slot, pages); !status.ok()) {
      return status;
    }
    const uint64_t before = slot.size_bytes.exchange(pages * kPageBytes);
    supply_->NoteGrown(slot, before, pages * kPageBytes);
    return absl::OkStatus();
  }

  // Those of a release.
  absl::Status Release(uint64_t most_private_pages = kPages.value(),
                       uint32_t index = 0) {
    SlotState& slot = slots_[index];
    slot.restorer = ThisThread();
    slot.lifecycle.Move(SlotLifecycle::kReturning);
    const uint64_t size_bytes = slot.size_bytes.exchange(0);
    supply_->StopFills(slot);
    const absl::Status status =
        supply_->Restore(slot, size_bytes, most_private_pages);
    slot.size_bytes = 0;
    return status;
  }

  // Those of a trim of a free slot.
  absl::Status Trim(uint32_t index = 0) {
    SlotState& slot = slots_[index];
    const PageSpan span = supply_->KeptSpan(slot);
    int error = 0;
    if (!span.empty()) {
      error = DropMappedPages(kernel_, AddressOf(slot, span.first_page),
                              (span.end_page - span.first_page) * kPageBytes)
                  .error;
    }
    return supply_->NoteDropped(slot, span, error);
  }

  volatile std::byte* Byte(uint64_t page, uint64_t offset = 0,
                           uint32_t index = 0) {
    return reinterpret_cast<volatile std::byte*>(
        AddressOf(slots_[index], page) + offset);
  }

 private:
  Kernel& kernel_;
  const ServiceOptions options_;
  const PoolLayout layout_;
  FaultPool fault_pool_;
  std::vector<std::unique_ptr<ScratchMemory>> planes_;
  SlotState slots_[kSlots];
  std::unique_ptr<MemorySupply> supply_;
  std::optional<Reservation> reservation_;
  bool registered_ = false;
  bool installed_ = false;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_SERVICE_SUPPLIED_POOL_H_
