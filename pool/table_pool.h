// A pool of tables: arrays of fixed-size elements (function references,
// handles) that a sandbox has besides its memories, and whose every access is
// checked against the table's length. Handed out with every byte zero.
//
//   absl::StatusOr<std::unique_ptr<TablePool>> pool = TablePool::Create(
//       {.name = "funcrefs", .tables = 64, .max_elements =
//       10'000});
//   absl::StatusOr<TableLease> table = (*pool)->Acquire(/*elements=*/100);
//   void** functions = reinterpret_cast<void**>(table->data());
//   absl::Status grown = table->Grow(200);
//
// All tables are one reservation, laid out by PoolLayout without guards: an
// index is always checked. They are not in core dumps. A child of fork(2) does
// not inherit them: there a touch of a table is SIGSEGV, Acquire and Grow fail,
// and the pool and its leases can be destroyed in any order.
//
// Thread safety: all methods of TablePool from any thread; a lease belongs to
// one owner at a time. Not async-signal-safe.
#ifndef FIRSTTOUCH_POOL_TABLE_POOL_H_
#define FIRSTTOUCH_POOL_TABLE_POOL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/slot_strategy.h"
#include "firsttouch/uffd/process_mark.h"

namespace firsttouch {

class Kernel;
class Reservation;
class SlotAllocator;

struct TablePoolOptions {
  // Shown in /proc/PID/maps, as ReservationOptions::name.
  std::string name;
  // At least 1.
  uint32_t tables = 0;
  // The most elements a table can have; at least 1.
  uint64_t max_elements = 0;
  // Bytes of an element; at least 1. A table begins at a page boundary, so
  // elements are aligned as their size allows.
  uint64_t element_bytes = sizeof(void*);
  // At release, this many bytes at the start are set to zero and stay resident;
  // the pages of the table beyond are given back to the kernel.
  uint64_t keep_resident_bytes = 65536;
  SlotStrategy strategy = SlotStrategy::kNextAvailable;
};

class TablePool;

// A table while it is leased. Gives it back when destroyed.
class TableLease {
 public:
  TableLease(TableLease&& other) noexcept;
  TableLease& operator=(TableLease&& other) noexcept;
  TableLease(const TableLease&) = delete;
  TableLease& operator=(const TableLease&) = delete;
  ~TableLease() { Release(); }

  // First element; page aligned. nullptr after Release or a move. Stays the
  // same when the table grows.
  std::byte* data() const { return data_; }
  // 0 after Release or a move.
  uint64_t elements() const { return elements_; }

  // Makes the table longer; the new elements are zero. InvalidArgument if
  // `elements` is less than now or more than max_elements, FailedPrecondition
  // after Release or a move and in a child of fork(2).
  absl::Status Grow(uint64_t elements);

  // Sets the table to zero and gives it back; does nothing the second time, or
  // in a child of fork(2). Cleans only elements(), which is what the owner may
  // write. A table that the kernel refuses to clean is quarantined: never
  // handed out again, and counted.
  void Release();

 private:
  friend class TablePool;
  TableLease(TablePool* pool, uint32_t slot, std::byte* data, uint64_t elements)
      : pool_(pool), slot_(slot), data_(data), elements_(elements) {}

  TablePool* pool_ = nullptr;
  ProcessMark made_by_ = ProcessMark::Here();
  uint32_t slot_ = 0;
  std::byte* data_ = nullptr;
  uint64_t elements_ = 0;
};

class TablePool {
 public:
  // Errors: InvalidArgument for options (the text names the option, its value
  // and the rule); others as Reservation::Create.
  static absl::StatusOr<std::unique_ptr<TablePool>> Create(
      const TablePoolOptions& options);

  TablePool(const TablePool&) = delete;
  TablePool& operator=(const TablePool&) = delete;
  // Unmaps the tables. Ends the process with a line on stderr if one is leased
  // in the process that made the pool.
  ~TablePool();

  // A table of `elements` (0 is legal) with every byte zero. InvalidArgument if
  // that is more than max_elements; ResourceExhausted if no table is free
  // before `deadline`; by default it does not wait. FailedPrecondition in a
  // child of fork(2).
  absl::StatusOr<TableLease> Acquire(
      uint64_t elements, absl::Time deadline = absl::InfinitePast());

  // max_memory_bytes of the layout is a table's bytes, rounded up to a page.
  const PoolLayout& layout() const { return layout_; }
  // The first address of the pool.
  uintptr_t base() const;
  uint64_t max_elements() const { return max_elements_; }
  uint64_t element_bytes() const { return element_bytes_; }
  uint32_t capacity() const;
  uint32_t in_use() const;
  uint32_t quarantined() const;

 private:
  friend absl::StatusOr<std::unique_ptr<TablePool>> CreateTablePool(
      Kernel& kernel, const TablePoolOptions& options);
  friend class TableLease;
  TablePool(Kernel& kernel, const PoolLayout& layout, Reservation reservation,
            const TablePoolOptions& options);
  // Checks that this is the process that made the pool, and the number of
  // elements.
  absl::Status Check(uint64_t elements) const;
  void Release(uint32_t slot, std::byte* data, uint64_t elements);

  Kernel& kernel_;
  const PoolLayout layout_;
  const std::unique_ptr<const Reservation> reservation_;
  const uint64_t max_elements_;
  const uint64_t element_bytes_;
  const uint64_t keep_resident_bytes_;
  const std::unique_ptr<SlotAllocator> slots_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_TABLE_POOL_H_
