#include "firsttouch/service/service_pool.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/locator/locator.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/service/live_pools.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/publish.h"
#include "firsttouch/service/reclaim.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

std::atomic<uint32_t> g_next_pool_id{1};

std::atomic<uint64_t> g_next_pool_number{1};

// Called in a forked child: the pools that the parent had are not mapped here,
// so that one of ours may be placed where the locator still has one of them. A
// pool begins at a multiple of kLocatorChunkBytes, so that it covers the start
// of each of its chunks.
void ForgetPoolsOfParent(const PoolEntry& entry) {
  for (uint64_t at = 0; at < entry.bytes; at += kLocatorChunkBytes) {
    const PoolEntry* there = FindPool(entry.base + at);
    if (there != nullptr &&
        !static_cast<FaultPool*>(there->owner)->InOwnerProcess()) {
      UnregisterPool(there);
    }
  }
}

}  // namespace

std::string InPages(uint64_t bytes) {
  return absl::StrCat(bytes, " (", PagesRoundedUp(bytes).value(), " pages)");
}

ServicePool::ServicePool(ServiceOptions pool_options, Kernel& pool_kernel,
                         const PoolLayout& pool_layout)
    : steady(g_next_pool_number.fetch_add(1, std::memory_order_relaxed),
             pool_kernel),
      options(std::move(pool_options)),
      kernel(pool_kernel),
      layout(pool_layout) {
  steady.parks = options.strategy == SlotStrategy::kAffinity &&
                 layout.options().memories_per_instance == 1;
}

absl::StatusOr<std::unique_ptr<ServicePool>> ServicePool::Create(
    ServiceOptions options, Kernel& kernel, SupplyOpener open_supply) {
  if (absl::Status status = CheckPoolName(options.name); !status.ok()) {
    return status;
  }
  absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(options.layout);
  if (!layout.ok()) return layout.status();
  std::unique_ptr<ServicePool> pool(
      new ServicePool(std::move(options), kernel, *layout));
  if (absl::Status status = pool->Start(open_supply); !status.ok())
    return status;
  return pool;
}

absl::Status ServicePool::MapBookKeeping() {
  const PageCount pages = PagesRoundedUp(layout.memory_bytes());
  absl::StatusOr<std::unique_ptr<ControlBlock>> created =
      ControlBlock::Create(kernel, RealMemfdCalls(), options.name,
                           {.slots = layout.slots(),
                            .slot_bytes = sizeof(SlotState),
                            .page_states_bytes = PageStates::BytesFor(pages)},
                           options.publish);
  if (!created.ok()) return created.status();
  control = *std::move(created);

  for (uint32_t i = 0; i < layout.slots(); ++i) {
    new (control->slot_record(i)) SlotState;
  }
  slots = {std::launder(reinterpret_cast<SlotState*>(control->slot_record(0))),
           DestroySlots{layout.slots()}};
  for (uint32_t i = 0; i < layout.slots(); ++i) {
    SlotState& slot = slots[i];
    slot.base = reservation->base() + layout.memory_offset_bytes(SlotIndex(i));
    slot.pages = PageStates(control->page_states(i), pages);
  }
  return absl::OkStatus();
}

absl::Status ServicePool::Start(SupplyOpener open_supply) {
  absl::StatusOr<std::unique_ptr<MemorySupply>> opened =
      open_supply({.options = options,
                   .layout = layout,
                   .kernel = kernel,
                   .fault_pool = fault_pool});
  if (!opened.ok()) return opened.status();
  supply = *std::move(opened);
  // What is written below, whatever the memories' size.
  const uint64_t memories = layout.options().memories_per_instance;
  const uint64_t record_bytes =
      SlotAllocator::kBytesPerSlot + memories * sizeof(SlotState);
  if (absl::Status status =
          CheckBookKeeping(layout, record_bytes, ReadMemoryFacts());
      !status.ok()) {
    return status;
  }
  allocator.emplace(layout.options().instances, options.strategy);
  absl::StatusOr<Reservation> reserved =
      Reservation::Create(kernel, layout,
                          {.name = options.name,
                           .include_in_core_dump = options.include_in_core_dump,
                           .inaccessible = true});
  if (!reserved.ok()) return reserved.status();
  reservation.emplace(*std::move(reserved));
  if (absl::Status status = MapBookKeeping(); !status.ok()) return status;

  fault_pool.kernel = &kernel;
  fault_pool.fault_around_pages =
      layout.options().fault_around_bytes / kPageBytes;
  fault_pool.slots = slots.get();
  fault_pool.name = options.name.c_str();
  fault_pool.trap_callback = options.trap_callback;
  fault_pool.trap_user = options.trap_user;
  if (absl::Status status = supply->Attach(*reservation); !status.ok()) {
    return status;
  }
  if (absl::Status status = reservation->CheckEmpty(); !status.ok()) {
    return status;
  }
  steady.max_cycles = supply->traits().steady_cycles;

  PoolEntry& entry = fault_pool.entry;
  entry.base = reservation->base();
  entry.bytes = reservation->bytes();
  entry.first_memory_offset_bytes = layout.first_memory_offset_bytes();
  entry.slot_stride_bytes = layout.slot_stride_bytes();
  entry.max_memory_bytes = layout.memory_bytes();
  entry.unowned_guard_bytes = layout.unowned_guard_bytes();
  entry.slots = layout.slots();
  entry.memories_per_instance = layout.options().memories_per_instance;
  entry.first_size_bytes = &slots[0].size_bytes;
  entry.size_stride_bytes = sizeof(SlotState);
  entry.owner = &fault_pool;
  entry.pool_id = g_next_pool_id.fetch_add(1, std::memory_order_relaxed);
  ForgetPoolsOfParent(entry);
  if (absl::Status status = RegisterPool(&entry); !status.ok()) return status;
  registered = true;

  if (absl::Status status = CheckSignalsUnblocked(); !status.ok()) {
    return status;
  }
  if (options.signals == SignalOwnership::kInstall) {
    if (absl::Status status = InstallFaultHandler(); !status.ok()) {
      return status;
    }
    handler_installed = true;
  }
  if (absl::Status status = supply->Start(); !status.ok()) return status;
  if (options.resident_budget_bytes.value_or(0) > 0) {
    absl::StatusOr<std::unique_ptr<BackgroundReclaim>> reclaim =
        BackgroundReclaim::Start(options.name, [this] {
          const uint64_t budget = *options.resident_budget_bytes;
          bool more = false;
          TrimTo(*this, budget, &more).IgnoreError();
          return more;
        });
    if (!reclaim.ok()) return reclaim.status();
    background_reclaim = *std::move(reclaim);
    steady.has_background_reclaim = true;
  }
  PublishPool(*this);
  LivePools::Add(this);
  return absl::OkStatus();
}

ServicePool::~ServicePool() {
  LivePools::Remove(this);
  if (!InOwnerProcess()) {
    // A forked child: the mappings are not there, and neither are the threads.
    // What these objects hold is leaked; a supply leaks its own parts.
    static_cast<void>(background_reclaim.release());
    static_cast<void>(slots.release());
    static_cast<void>(control.release());
    if (registered) UnregisterPool(&fault_pool.entry);
    return;
  }
  // First nothing places pages any more (no guest code runs either), then the
  // memory is unmapped, and only then the userfaultfd that guards it is closed.
  background_reclaim.reset();
  if (supply != nullptr) supply->Stop();
  if (registered) UnregisterPool(&fault_pool.entry);
  reservation.reset();
  supply.reset();
  if (handler_installed) {
    // Refused when another handler was installed in front of ours: ours stays,
    // since that one may pass signals on to it.
    UninstallFaultHandler().IgnoreError();
  }
}

absl::Status ServicePool::CheckProcess() const {
  if (InOwnerProcess()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "pool \"", options.name,
      "\" belongs to the process that made it; this is a child of fork(2), "
      "which has neither its memory nor its userfaultfd: make a Service of "
      "its own in the child"));
}

ServiceStats ServicePool::Stats() const {
  ServiceStats stats;
  uint64_t parked = 0;
  for (uint32_t i = 0; i < layout.slots(); ++i) {
    AddSlotCounters(slots[i].counters, stats);
    const SlotLifecycle lifecycle =
        slots[i].lifecycle.Load(std::memory_order_relaxed);
    const bool is_parked = lifecycle == SlotLifecycle::kParked ||
                           lifecycle == SlotLifecycle::kTrimmingParked;
    parked += is_parked;
    if (is_parked || lifecycle == SlotLifecycle::kFree ||
        lifecycle == SlotLifecycle::kTrimming) {
      stats.idle_private_bytes +=
          slots[i].idle.pages.load(std::memory_order_relaxed) * kPageBytes;
    }
  }
  for (const FaultPool::Shard& shard : fault_pool.shards) {
    for (int i = 0; i < LatencyHistogram::kBuckets; ++i) {
      stats.fault_latency[i] +=
          shard.latency.bucket[i].load(std::memory_order_relaxed);
    }
  }
  stats.slots = layout.slots();
  const uint64_t per_instance = layout.options().memories_per_instance;
  const uint64_t in_use = allocator->in_use() * per_instance;
  // The two counts are from slightly different moments.
  stats.slots_in_use = in_use - std::min(in_use, parked);
  stats.slots_quarantined = allocator->quarantined() * per_instance;
  return stats;
}

std::string ServicePool::Describe() const {
  const LayoutOptions& asked = layout.options();
  return absl::StrCat(
      "pool \"", options.name, "\" at 0x", absl::Hex(reservation->base()), ": ",
      asked.instances, " instances of ", asked.memories_per_instance,
      " memories of at most ", InPages(asked.max_memory_bytes), ", ",
      layout.reservation_bytes(), " bytes reserved\n",
      control->published()
          ? std::string("control block: pooldump finds the pool\n")
          : absl::StrCat("control block: pooldump does not find the pool (",
                         control->why(), ")\n"),
      supply->Describe(),
      "slots: ", std::string(SlotStrategyName(options.strategy)), "\n");
}

}  // namespace firsttouch
