#include "firsttouch/pool/table_pool.h"

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/reservation.h"
#include "firsttouch/pool/slot_allocator.h"
#include "firsttouch/pool/table_pool_with_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"

namespace firsttouch {
namespace {

absl::StatusOr<PoolLayout> LayoutOf(const TablePoolOptions& options) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (options.tables == 0) {
    return absl::InvalidArgumentError(
        "tables is 0; a table pool holds at least 1 table");
  }
  if (options.max_elements == 0 || options.element_bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_elements ", options.max_elements, " * element_bytes ",
        options.element_bytes, " is 0; a table has room for at least 1 byte"));
  }
  uint64_t bytes;
  if (__builtin_mul_overflow(options.max_elements, options.element_bytes,
                             &bytes) ||
      __builtin_add_overflow(bytes, page - 1, &bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_elements ", options.max_elements, " * element_bytes ",
        options.element_bytes, " does not fit 64 bits; lower one of them"));
  }
  bytes -= bytes % page;
  absl::StatusOr<PoolLayout> layout =
      PoolLayout::Compute({.instances = options.tables,
                           .max_memory_bytes = bytes,
                           .page_bytes = page,
                           .fault_around_bytes = page});
  if (!layout.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tables ", options.tables, " * max_elements ", options.max_elements,
        " * element_bytes ", options.element_bytes,
        " does not fit 64 bits; lower one of them"));
  }
  return layout;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TablePool>> TablePool::Create(
    const TablePoolOptions& options) {
  return CreateTablePool(RealKernel(), options);
}

absl::StatusOr<std::unique_ptr<TablePool>> CreateTablePool(
    Kernel& kernel, const TablePoolOptions& options) {
  absl::StatusOr<PoolLayout> layout = LayoutOf(options);
  if (!layout.ok()) return layout.status();
  absl::StatusOr<Reservation> reservation = Reservation::Create(
      kernel, *layout,
      {.name = options.name, .alignment_bytes = layout->options().page_bytes});
  if (!reservation.ok()) return reservation.status();
  return absl::WrapUnique(
      new TablePool(kernel, *layout, *std::move(reservation), options));
}

TablePool::TablePool(Kernel& kernel, const PoolLayout& layout,
                     Reservation reservation, const TablePoolOptions& options)
    : kernel_(kernel),
      layout_(layout),
      reservation_(std::make_unique<const Reservation>(std::move(reservation))),
      max_elements_(options.max_elements),
      element_bytes_(options.element_bytes),
      keep_resident_bytes_(options.keep_resident_bytes &
                           ~(layout.options().page_bytes - 1)),
      slots_(std::make_unique<SlotAllocator>(
          options.tables, options.strategy, SlotAllocator::kDefaultSeed,
          SlotAllocator::kShardPerCore, "TablePoolOptions::tables")) {}

TablePool::~TablePool() {
  if (!reservation_->IsMappedHere()) return;
  if (slots_->in_use() != 0) {
    std::fprintf(stderr,
                 "firsttouch: a TablePool is destroyed while %u of its tables "
                 "are leased\n",
                 slots_->in_use());
    std::abort();
  }
}

absl::Status TablePool::Check(uint64_t elements) const {
  if (!reservation_->IsMappedHere()) {
    return absl::FailedPreconditionError(
        "the tables belong to the process that made the TablePool; this is a "
        "child of fork(2), which does not have them: make a TablePool of its "
        "own in the child");
  }
  if (elements <= max_elements_) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a table of ", elements, " elements exceeds max_elements ",
                   max_elements_, "; raise TablePoolOptions::max_elements"));
}

absl::StatusOr<TableLease> TablePool::Acquire(uint64_t elements,
                                              absl::Time deadline) {
  if (absl::Status status = Check(elements); !status.ok()) return status;
  const absl::StatusOr<SlotAllocator::Pick> pick = slots_->Acquire(0, deadline);
  if (!pick.ok()) return pick.status();
  std::byte* data = reinterpret_cast<std::byte*>(
      reservation_->base() +
      layout_.memory_offset_bytes(SlotIndex(pick->slot)));
  return TableLease(this, pick->slot, data, elements);
}

void TablePool::Release(uint32_t slot, std::byte* data, uint64_t elements) {
  const uint64_t page = layout_.options().page_bytes;
  const uint64_t used = elements * element_bytes_;
  const uint64_t kept = std::min(used, keep_resident_bytes_);
  std::memset(data, 0, kept);
  if (used > kept) {
    const uint64_t dropped = (used - kept + page - 1) / page * page;
    if (!DropMappedPages(kernel_, reinterpret_cast<uintptr_t>(data + kept),
                         dropped)
             .ok()) {
      slots_->Quarantine(slot);
      return;
    }
  }
  slots_->Release(slot, 0);
}

TableLease::TableLease(TableLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)),
      made_by_(other.made_by_),
      slot_(other.slot_),
      data_(std::exchange(other.data_, nullptr)),
      elements_(std::exchange(other.elements_, 0)) {}

TableLease& TableLease::operator=(TableLease&& other) noexcept {
  if (this != &other) {
    Release();
    pool_ = std::exchange(other.pool_, nullptr);
    made_by_ = other.made_by_;
    slot_ = other.slot_;
    data_ = std::exchange(other.data_, nullptr);
    elements_ = std::exchange(other.elements_, 0);
  }
  return *this;
}

absl::Status TableLease::Grow(uint64_t elements) {
  if (pool_ == nullptr) {
    return absl::FailedPreconditionError("the table was released");
  }
  if (elements < elements_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a table of ", elements_, " elements cannot shrink to ", elements));
  }
  if (absl::Status status = pool_->Check(elements); !status.ok()) {
    return status;
  }
  elements_ = elements;
  return absl::OkStatus();
}

void TableLease::Release() {
  if (pool_ == nullptr) return;
  TablePool* const pool = std::exchange(pool_, nullptr);
  std::byte* const data = std::exchange(data_, nullptr);
  const uint64_t elements = std::exchange(elements_, 0);
  // In a child of fork(2) the table is not there, the pool may have been
  // destroyed, and one of its locks may be held forever.
  if (made_by_.IsHere()) pool->Release(slot_, data, elements);
}

uintptr_t TablePool::base() const { return reservation_->base(); }

uint32_t TablePool::capacity() const { return slots_->capacity(); }

uint32_t TablePool::in_use() const { return slots_->in_use(); }

uint32_t TablePool::quarantined() const { return slots_->quarantined(); }

}  // namespace firsttouch
