// Pools in C.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/capi/layout.h"
#include "firsttouch/capi/registry.h"
#include "firsttouch/capi/stats_json.h"
#include "firsttouch/capi/status.h"
#include "firsttouch/capi/versioned.h"
#include "firsttouch/pool/slot_strategy.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/supply_kinds.h"

namespace firsttouch::capi {
namespace {

constexpr uint64_t kPoolFlags =
    FT_POOL_RETAINED_PAGES_LIMIT | FT_POOL_RESIDENT_BUDGET |
    FT_POOL_UNPUBLISHED | FT_POOL_IN_CORE_DUMP | FT_POOL_RETAINED_BYTES_PER_US;

absl::Status BadChoice(const char* field, int64_t value, const char* choices) {
  return absl::InvalidArgumentError(
      absl::StrCat("ft_pool_options::", field, " is ", value,
                   ", which is none of ", choices));
}

absl::Status ToOptional(const char* field, int32_t value,
                        std::optional<bool>* into) {
  if (value != FT_UNSET && value != FT_NO && value != FT_YES) {
    return BadChoice(field, value, "FT_UNSET, FT_NO, FT_YES");
  }
  if (value != FT_UNSET) *into = value == FT_YES;
  return absl::OkStatus();
}

absl::StatusOr<UserfaultfdOptions> UserfaultfdOf(
    const ft_pool_options& options) {
  UserfaultfdOptions userfaultfd;
  switch (options.backing) {
    case FT_BACKING_ANY:
      break;
    case FT_BACKING_SHARED:
      userfaultfd.backing = Backing::kShared;
      break;
    case FT_BACKING_COPIED:
      userfaultfd.backing = Backing::kCopied;
      break;
    default:
      return BadChoice("backing", options.backing, "FT_BACKING_*");
  }
  switch (options.faults) {
    case FT_FAULTS_IN_THREAD:
      break;
    case FT_FAULTS_IN_HANDLER_THREADS: {
      InHandlerThreads threads;
      if (options.handler_threads != 0) {
        threads.threads = options.handler_threads;
      }
      if (absl::Status status = ToOptional(
              "kernel_faults", options.kernel_faults, &threads.kernel_faults);
          !status.ok()) {
        return status;
      }
      userfaultfd.faults = threads;
      break;
    }
    default:
      return BadChoice("faults", options.faults, "FT_FAULTS_*");
  }
  switch (options.tracking) {
    case FT_TRACKING_ANY:
      break;
    case FT_TRACKING_SIGNAL:
      userfaultfd.tracking = Tracking::kSignal;
      break;
    case FT_TRACKING_ASYNC:
      userfaultfd.tracking = Tracking::kAsync;
      break;
    default:
      return BadChoice("tracking", options.tracking, "FT_TRACKING_*");
  }
  return userfaultfd;
}

absl::StatusOr<SupplyChoice> SupplyOf(const ft_pool_options& options) {
  absl::StatusOr<UserfaultfdOptions> userfaultfd = UserfaultfdOf(options);
  if (!userfaultfd.ok()) return userfaultfd.status();
  MappingOptions mappings;
  if (absl::Status status = ToOptional("scan", options.scan, &mappings.scan);
      !status.ok()) {
    return status;
  }
  switch (options.supply) {
    case FT_SUPPLY_ANY:
      return AnySupply{*userfaultfd};
    case FT_SUPPLY_USERFAULTFD:
      return *userfaultfd;
    case FT_SUPPLY_MAPPINGS:
      return mappings;
    default:
      return BadChoice("supply", options.supply, "FT_SUPPLY_*");
  }
}

// All but the layout and the callback.
absl::StatusOr<ServiceOptions> ServiceOptionsOf(
    const ft_pool_options& options) {
  if ((options.flags & ~kPoolFlags) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("ft_pool_options::flags has bits ",
                     absl::Hex(options.flags & ~kPoolFlags),
                     " that this library does not know"));
  }
  ServiceOptions asked;
  if (options.name != nullptr) asked.name = options.name;
  absl::StatusOr<SupplyChoice> supply = SupplyOf(options);
  if (!supply.ok()) return supply.status();
  asked.supply = *std::move(supply);
  switch (options.strategy) {
    case FT_STRATEGY_AFFINITY:
      break;
    case FT_STRATEGY_NEXT_AVAILABLE:
      asked.strategy = SlotStrategy::kNextAvailable;
      break;
    case FT_STRATEGY_RANDOM:
      asked.strategy = SlotStrategy::kRandom;
      break;
    default:
      return BadChoice("strategy", options.strategy, "FT_STRATEGY_*");
  }
  switch (options.signals) {
    case FT_SIGNALS_INSTALL:
      break;
    case FT_SIGNALS_HOST:
      asked.signals = SignalOwnership::kHost;
      break;
    default:
      return BadChoice("signals", options.signals, "FT_SIGNALS_*");
  }
  if (options.retained_cycles != 0) {
    asked.retained_cycles = options.retained_cycles;
  }
  if ((options.flags & FT_POOL_RETAINED_PAGES_LIMIT) != 0) {
    asked.retained_pages_limit = options.retained_pages_limit;
  }
  if ((options.flags & FT_POOL_RESIDENT_BUDGET) != 0) {
    asked.resident_budget_bytes = options.resident_budget_bytes;
  }
  if ((options.flags & FT_POOL_RETAINED_BYTES_PER_US) != 0) {
    asked.retained_bytes_per_us = options.retained_bytes_per_us;
  }
  asked.publish = (options.flags & FT_POOL_UNPUBLISHED) == 0;
  asked.include_in_core_dump = (options.flags & FT_POOL_IN_CORE_DUMP) != 0;
  return asked;
}

ft_status Create(const ft_pool_options& options, ft_pool* pool,
                 ft_error* error) {
  absl::StatusOr<ServiceOptions> asked = ServiceOptionsOf(options);
  if (!asked.ok()) return Fail(error, asked.status());
  if (const ft_status status =
          FromC("ft_pool_create", options.layout, &asked->layout, error);
      status != FT_OK) {
    return status;
  }
  auto record = std::make_unique<PoolRecord>();
  if (options.trap_callback != nullptr) {
    record->trap_callback = options.trap_callback;
    record->trap_user = options.trap_user;
    asked->trap_callback = &PoolRecord::OnPoolTrap;
    asked->trap_user = record.get();
  }
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(*std::move(asked));
  if (!service.ok()) return Fail(error, service.status());
  if (absl::Status status = record->Begin(*std::move(service)); !status.ok()) {
    return Fail(error, status);
  }
  const absl::StatusOr<ft_pool> added = AddPool(std::move(record));
  if (!added.ok()) return Fail(error, added.status());
  *pool = *added;
  return FT_OK;
}

ft_pool_info InfoOf(const Service& service) {
  return {
      .struct_size = sizeof(ft_pool_info),
      .base = service.base(),
      .pool_id = service.pool_id(),
      .supply = IsMappings(service.supply()) ? FT_SUPPLY_MAPPINGS
                                             : FT_SUPPLY_USERFAULTFD,
      .backing = service.backing() == Backing::kShared ? FT_BACKING_SHARED
                                                       : FT_BACKING_COPIED,
      .scan = service.supply() == Supply::kMappingsScan   ? FT_YES
              : service.supply() == Supply::kMappingsDrop ? FT_NO
                                                          : FT_UNSET,
      .serves_kernel_faults = service.serves_kernel_faults() ? 1U : 0U,
      .reserved = 0,
  };
}

// Calls body(Service&) with the pool of a handle.
template <typename Body>
ft_status WithPool(const char* function, ft_pool pool, ft_error* error,
                   Body body) {
  PoolRecord* const record = FindPool(pool);
  if (record == nullptr) {
    return FailHandle(error, function, "pool", pool.entry, pool.serial);
  }
  return Call(error, [&] { return body(record->service()); });
}

}  // namespace
}  // namespace firsttouch::capi

using firsttouch::Service;
using firsttouch::capi::Call;
using firsttouch::capi::Fail;
using firsttouch::capi::FailHandle;
using firsttouch::capi::FailNull;
using firsttouch::capi::GiveStruct;
using firsttouch::capi::GiveText;
using firsttouch::capi::RemovePool;
using firsttouch::capi::TakeStruct;
using firsttouch::capi::ToC;
using firsttouch::capi::ToJson;
using firsttouch::capi::WithPool;

ft_status ft_pool_create(const ft_pool_options* options, ft_pool* pool,
                         ft_error* error) noexcept {
  if (options == nullptr) return FailNull(error, __func__, "options");
  if (pool == nullptr) return FailNull(error, __func__, "pool");
  ft_pool_options room;
  if (const ft_status status = TakeStruct(__func__, room, &options, error);
      status != FT_OK) {
    return status;
  }
  if (options->layout == nullptr) {
    return FailNull(error, __func__, "ft_pool_options::layout");
  }
  return Call(error,
              [&] { return firsttouch::capi::Create(*options, pool, error); });
}

ft_status ft_pool_destroy(ft_pool pool, ft_error* error) noexcept {
  return Call(error, [&] {
    return RemovePool(pool) ? FT_OK
                            : FailHandle(error, "ft_pool_destroy", "pool",
                                         pool.entry, pool.serial);
  });
}

ft_status ft_pool_describe(ft_pool pool, char* buffer, size_t capacity,
                           size_t* length, ft_error* error) noexcept {
  const char* const function = __func__;
  return WithPool(function, pool, error, [&](const Service& service) {
    return GiveText(error, function, service.Describe(), buffer, capacity,
                    length);
  });
}

ft_status ft_pool_stats_json(ft_pool pool, char* buffer, size_t capacity,
                             size_t* length, ft_error* error) noexcept {
  const char* const function = __func__;
  return WithPool(function, pool, error, [&](const Service& service) {
    return GiveText(error, function, ToJson(service.Stats()), buffer, capacity,
                    length);
  });
}

ft_status ft_pool_fault_latency_ns(ft_pool pool, double part, uint64_t* ns,
                                   ft_error* error) noexcept {
  if (ns == nullptr) return FailNull(error, __func__, "ns");
  return WithPool(__func__, pool, error, [&](const Service& service) {
    if (!(part >= 0 && part <= 1)) {
      return Fail(error, FT_ERROR_INVALID_ARGUMENT,
                  absl::StrCat("ft_pool_fault_latency_ns: part is ", part,
                               " and must be from 0 to 1"));
    }
    *ns = service.Stats().FaultLatencyQuantileNs(part);
    return ft_status{FT_OK};
  });
}

ft_status ft_pool_trim(ft_pool pool, uint64_t* freed_bytes,
                       ft_error* error) noexcept {
  return WithPool(__func__, pool, error, [&](Service& service) {
    const absl::StatusOr<uint64_t> freed = service.Trim();
    if (!freed.ok()) return Fail(error, freed.status());
    if (freed_bytes != nullptr) *freed_bytes = *freed;
    return ft_status{FT_OK};
  });
}

ft_status ft_pool_get_info(ft_pool pool, ft_pool_info* info,
                           ft_error* error) noexcept {
  if (info == nullptr) return FailNull(error, __func__, "info");
  const char* const function = __func__;
  return WithPool(function, pool, error, [&](const Service& service) {
    return GiveStruct(function, firsttouch::capi::InfoOf(service), info, error);
  });
}

ft_status ft_pool_get_layout(ft_pool pool, ft_layout* layout,
                             ft_error* error) noexcept {
  if (layout == nullptr) return FailNull(error, __func__, "layout");
  const char* const function = __func__;
  return WithPool(function, pool, error, [&](const Service& service) {
    return GiveStruct(function, ToC(service.layout()), layout, error);
  });
}
