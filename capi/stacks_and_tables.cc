// Stacks and tables in C.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/layout.h"
#include "firsttouch/capi/objects.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/capi/versioned.h"
#include "firsttouch/capi/wait.h"
#include "firsttouch/pool/slot_strategy.h"
#include "firsttouch/pool/stack_pool.h"
#include "firsttouch/pool/table_pool.h"

namespace firsttouch::capi {
namespace {

// A lease, and its pool, which lives as long.
struct Stack {
  std::shared_ptr<StackPool> pool;
  StackLease lease;
};
struct Table {
  std::shared_ptr<TablePool> pool;
  TableLease lease;
};

using StackPools = Objects<StackPool, ft_stack_pool, uint64_t{0xf5} << 56>;
using Stacks = Objects<Stack, ft_stack, uint64_t{0xf6} << 56>;
using TablePools = Objects<TablePool, ft_table_pool, uint64_t{0xf7} << 56>;
using Tables = Objects<Table, ft_table, uint64_t{0xf8} << 56>;

absl::StatusOr<SlotStrategy> StrategyOf(int32_t strategy) {
  switch (strategy) {
    case FT_STRATEGY_AFFINITY:
    case FT_STRATEGY_NEXT_AVAILABLE:
      return SlotStrategy::kNextAvailable;
    case FT_STRATEGY_RANDOM:
      return SlotStrategy::kRandom;
    default:
      return absl::InvalidArgumentError(absl::StrCat(
          "strategy is ", strategy, ", which is none of FT_STRATEGY_*"));
  }
}

ft_status Create(const ft_stack_pool_options& options, ft_stack_pool* pool,
                 ft_error* error) {
  const absl::StatusOr<SlotStrategy> strategy = StrategyOf(options.strategy);
  if (!strategy.ok()) return Fail(error, strategy.status());
  StackPoolOptions asked;
  if (options.name != nullptr) asked.name = options.name;
  asked.stacks = options.stacks;
  asked.stack_bytes = options.stack_bytes;
  if (options.guard_bytes != 0) asked.guard_bytes = options.guard_bytes;
  if (options.keep_resident_bytes != 0) {
    asked.keep_resident_bytes = options.keep_resident_bytes;
  }
  asked.strategy = *strategy;
  absl::StatusOr<std::unique_ptr<StackPool>> made = StackPool::Create(asked);
  if (!made.ok()) return Fail(error, made.status());
  *pool = StackPools::The().Add(*std::move(made));
  return FT_OK;
}

ft_status Create(const ft_table_pool_options& options, ft_table_pool* pool,
                 ft_error* error) {
  const absl::StatusOr<SlotStrategy> strategy = StrategyOf(options.strategy);
  if (!strategy.ok()) return Fail(error, strategy.status());
  TablePoolOptions asked;
  if (options.name != nullptr) asked.name = options.name;
  asked.tables = options.tables;
  asked.max_elements = options.max_elements;
  if (options.element_bytes != 0) asked.element_bytes = options.element_bytes;
  if (options.keep_resident_bytes != 0) {
    asked.keep_resident_bytes = options.keep_resident_bytes;
  }
  asked.strategy = *strategy;
  absl::StatusOr<std::unique_ptr<TablePool>> made = TablePool::Create(asked);
  if (!made.ok()) return Fail(error, made.status());
  *pool = TablePools::The().Add(*std::move(made));
  return FT_OK;
}

constexpr const char* kStackPool = "pool of stacks";
constexpr const char* kTablePool = "pool of tables";

// Gives what body(pool) has, a struct, of a pool of either kind.
template <typename Table, typename Handle, typename Given, typename Body>
ft_status Tell(const char* function, const char* kind, const char* parameter,
               Handle handle, Given* into, ft_error* error, Body body) {
  if (into == nullptr) return FailNull(error, function, parameter);
  return Call(error, [&] {
    const auto pool = Table::The().Find(handle);
    if (pool == nullptr) {
      return FailHandle(error, function, kind, handle.entry, handle.serial);
    }
    return GiveStruct(function, body(*pool), into, error);
  });
}

ft_stack_pool_info InfoOf(const StackPool& pool) {
  return {
      .struct_size = sizeof(ft_stack_pool_info),
      .base = pool.base(),
      .stacks = pool.capacity(),
      .in_use = pool.in_use(),
      .quarantined = pool.quarantined(),
      .guards = pool.guards() == StackPool::Guards::kMarkers
                    ? FT_GUARDS_MARKERS
                    : FT_GUARDS_MPROTECT,
  };
}

ft_table_pool_info InfoOf(const TablePool& pool) {
  return {
      .struct_size = sizeof(ft_table_pool_info),
      .base = pool.base(),
      .max_elements = pool.max_elements(),
      .element_bytes = pool.element_bytes(),
      .tables = pool.capacity(),
      .in_use = pool.in_use(),
      .quarantined = pool.quarantined(),
      .reserved = 0,
  };
}

// Takes an object out of its table, and so destroys it unless a call has it.
template <typename Table, typename Handle>
ft_status Drop(const char* function, const char* kind, Handle handle,
               ft_error* error) {
  return Call(error, [&] {
    if (Table::The().Remove(handle) == nullptr) {
      return FailHandle(error, function, kind, handle.entry, handle.serial);
    }
    return ft_status{FT_OK};
  });
}

}  // namespace
}  // namespace firsttouch::capi

using firsttouch::StackLease;
using firsttouch::StackPool;
using firsttouch::TableLease;
using firsttouch::TablePool;
using firsttouch::capi::Call;
using firsttouch::capi::DeadlineAfter;
using firsttouch::capi::Drop;
using firsttouch::capi::Fail;
using firsttouch::capi::FailHandle;
using firsttouch::capi::FailNull;
using firsttouch::capi::Finish;
using firsttouch::capi::Stack;
using firsttouch::capi::StackPools;
using firsttouch::capi::Stacks;
using firsttouch::capi::Table;
using firsttouch::capi::TablePools;
using firsttouch::capi::Tables;
using firsttouch::capi::TakeStruct;
using firsttouch::capi::Tell;
using firsttouch::capi::ToC;

ft_status ft_stack_pool_create(const ft_stack_pool_options* options,
                               ft_stack_pool* pool, ft_error* error) noexcept {
  if (options == nullptr) return FailNull(error, __func__, "options");
  if (pool == nullptr) return FailNull(error, __func__, "pool");
  ft_stack_pool_options room;
  const ft_status status = TakeStruct(__func__, room, &options, error);
  if (status != FT_OK) return status;
  return Call(error,
              [&] { return firsttouch::capi::Create(*options, pool, error); });
}

ft_status ft_stack_pool_destroy(ft_stack_pool pool, ft_error* error) noexcept {
  return Drop<StackPools>(__func__, firsttouch::capi::kStackPool, pool, error);
}

ft_status ft_stack_pool_get_info(ft_stack_pool pool, ft_stack_pool_info* info,
                                 ft_error* error) noexcept {
  return Tell<StackPools>(
      __func__, firsttouch::capi::kStackPool, "info", pool, info, error,
      [](const StackPool& held) { return firsttouch::capi::InfoOf(held); });
}

ft_status ft_stack_pool_get_layout(ft_stack_pool pool, ft_layout* layout,
                                   ft_error* error) noexcept {
  return Tell<StackPools>(
      __func__, firsttouch::capi::kStackPool, "layout", pool, layout, error,
      [](const StackPool& held) { return ToC(held.layout()); });
}

ft_status ft_stack_acquire(ft_stack_pool pool, int64_t wait_ns, ft_stack* stack,
                           void** base, void** top, ft_error* error) noexcept {
  if (stack == nullptr) return FailNull(error, __func__, "stack");
  const char* const function = __func__;
  return Call(error, [&] {
    std::shared_ptr<StackPool> from = StackPools::The().Find(pool);
    if (from == nullptr) {
      return FailHandle(error, function, firsttouch::capi::kStackPool,
                        pool.entry, pool.serial);
    }
    absl::StatusOr<StackLease> lease = from->Acquire(DeadlineAfter(wait_ns));
    if (!lease.ok()) return Fail(error, lease.status());
    if (base != nullptr) *base = lease->base();
    if (top != nullptr) *top = lease->top();
    *stack = Stacks::The().Add(std::make_shared<Stack>(
        Stack{.pool = std::move(from), .lease = *std::move(lease)}));
    return ft_status{FT_OK};
  });
}

ft_status ft_stack_release(ft_stack stack, ft_error* error) noexcept {
  return Drop<Stacks>(__func__, "stack", stack, error);
}

ft_status ft_table_pool_create(const ft_table_pool_options* options,
                               ft_table_pool* pool, ft_error* error) noexcept {
  if (options == nullptr) return FailNull(error, __func__, "options");
  if (pool == nullptr) return FailNull(error, __func__, "pool");
  ft_table_pool_options room;
  const ft_status status = TakeStruct(__func__, room, &options, error);
  if (status != FT_OK) return status;
  return Call(error,
              [&] { return firsttouch::capi::Create(*options, pool, error); });
}

ft_status ft_table_pool_destroy(ft_table_pool pool, ft_error* error) noexcept {
  return Drop<TablePools>(__func__, firsttouch::capi::kTablePool, pool, error);
}

ft_status ft_table_pool_get_info(ft_table_pool pool, ft_table_pool_info* info,
                                 ft_error* error) noexcept {
  return Tell<TablePools>(
      __func__, firsttouch::capi::kTablePool, "info", pool, info, error,
      [](const TablePool& held) { return firsttouch::capi::InfoOf(held); });
}

ft_status ft_table_pool_get_layout(ft_table_pool pool, ft_layout* layout,
                                   ft_error* error) noexcept {
  return Tell<TablePools>(
      __func__, firsttouch::capi::kTablePool, "layout", pool, layout, error,
      [](const TablePool& held) { return ToC(held.layout()); });
}

ft_status ft_table_acquire(ft_table_pool pool, uint64_t elements,
                           int64_t wait_ns, ft_table* table, void** data,
                           ft_error* error) noexcept {
  if (table == nullptr) return FailNull(error, __func__, "table");
  const char* const function = __func__;
  return Call(error, [&] {
    std::shared_ptr<TablePool> from = TablePools::The().Find(pool);
    if (from == nullptr) {
      return FailHandle(error, function, firsttouch::capi::kTablePool,
                        pool.entry, pool.serial);
    }
    absl::StatusOr<TableLease> lease =
        from->Acquire(elements, DeadlineAfter(wait_ns));
    if (!lease.ok()) return Fail(error, lease.status());
    if (data != nullptr) *data = lease->data();
    *table = Tables::The().Add(std::make_shared<Table>(
        Table{.pool = std::move(from), .lease = *std::move(lease)}));
    return ft_status{FT_OK};
  });
}

ft_status ft_table_grow(ft_table table, uint64_t elements,
                        ft_error* error) noexcept {
  const char* const function = __func__;
  return Call(error, [&] {
    const std::shared_ptr<Table> held = Tables::The().Find(table);
    if (held == nullptr) {
      return FailHandle(error, function, "table", table.entry, table.serial);
    }
    return Finish(error, held->lease.Grow(elements));
  });
}

ft_status ft_table_release(ft_table table, ft_error* error) noexcept {
  return Drop<Tables>(__func__, "table", table, error);
}
