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
#include "firsttouch/service/signals.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

std::atomic<uint32_t> g_next_pool_id{1};

std::atomic<uint64_t> g_next_pool_number{1};

// In a forked child: the pools that the parent had are not mapped here, so that
// one of ours may come to lie where the locator still has one of them. A pool
// begins at a multiple of kLocatorChunkBytes, so that it covers the start of
// each of its chunks.
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

std::string ServicePool::InPages(uint64_t bytes) {
  return absl::StrCat(bytes, " (", PagesRoundedUp(bytes).value(), " pages)");
}

ServicePool::ServicePool(ServiceOptions options, Kernel& kernel,
                         const PoolLayout& layout)
    : steady_(g_next_pool_number.fetch_add(1, std::memory_order_relaxed),
              kernel),
      options_(std::move(options)),
      kernel_(kernel),
      layout_(layout) {
  steady_.parks = options_.strategy == SlotStrategy::kAffinity &&
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
  const PageCount pages = PagesRoundedUp(layout_.memory_bytes());
  absl::StatusOr<std::unique_ptr<ControlBlock>> control =
      ControlBlock::Create(kernel_, RealMemfdCalls(), options_.name,
                           {.slots = layout_.slots(),
                            .slot_bytes = sizeof(SlotState),
                            .page_states_bytes = PageStates::BytesFor(pages)},
                           options_.publish);
  if (!control.ok()) return control.status();
  control_ = *std::move(control);

  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    new (control_->slot_record(i)) SlotState;
  }
  slots_ = {
      std::launder(reinterpret_cast<SlotState*>(control_->slot_record(0))),
      DestroySlots{layout_.slots()}};
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    SlotState& slot = slots_[i];
    slot.base =
        reservation_->base() + layout_.memory_offset_bytes(SlotIndex(i));
    slot.pages = PageStates(control_->page_states(i), pages);
  }
  return absl::OkStatus();
}

absl::Status ServicePool::Start(SupplyOpener open_supply) {
  absl::StatusOr<std::unique_ptr<MemorySupply>> supply =
      open_supply({.options = options_,
                   .layout = layout_,
                   .kernel = kernel_,
                   .fault_pool = fault_pool_});
  if (!supply.ok()) return supply.status();
  supply_ = *std::move(supply);
  // What is written below, whatever the memories' size.
  const uint64_t memories = layout_.options().memories_per_instance;
  const uint64_t record_bytes =
      SlotAllocator::kBytesPerSlot + memories * sizeof(SlotState);
  if (absl::Status status =
          CheckBookKeeping(layout_, record_bytes, ReadMemoryFacts());
      !status.ok()) {
    return status;
  }
  allocator_.emplace(layout_.options().instances, options_.strategy);
  absl::StatusOr<Reservation> reservation = Reservation::Create(
      kernel_, layout_,
      {.name = options_.name,
       .include_in_core_dump = options_.include_in_core_dump,
       .inaccessible = true});
  if (!reservation.ok()) return reservation.status();
  reservation_.emplace(*std::move(reservation));
  if (absl::Status status = MapBookKeeping(); !status.ok()) return status;

  fault_pool_.kernel = &kernel_;
  fault_pool_.fault_around_pages =
      layout_.options().fault_around_bytes / kPageBytes;
  fault_pool_.slots = slots_.get();
  fault_pool_.name = options_.name.c_str();
  fault_pool_.trap_callback = options_.trap_callback;
  fault_pool_.trap_user = options_.trap_user;
  if (absl::Status status = supply_->Attach(*reservation_); !status.ok()) {
    return status;
  }
  if (absl::Status status = reservation_->CheckEmpty(); !status.ok()) {
    return status;
  }
  steady_.max_cycles = supply_->traits().steady_cycles;

  PoolEntry& entry = fault_pool_.entry;
  entry.base = reservation_->base();
  entry.bytes = reservation_->bytes();
  entry.first_memory_offset_bytes = layout_.first_memory_offset_bytes();
  entry.slot_stride_bytes = layout_.slot_stride_bytes();
  entry.max_memory_bytes = layout_.memory_bytes();
  entry.unowned_guard_bytes = layout_.unowned_guard_bytes();
  entry.slots = layout_.slots();
  entry.memories_per_instance = layout_.options().memories_per_instance;
  entry.first_size_bytes = &slots_[0].size_bytes;
  entry.size_stride_bytes = sizeof(SlotState);
  entry.owner = &fault_pool_;
  entry.pool_id = g_next_pool_id.fetch_add(1, std::memory_order_relaxed);
  ForgetPoolsOfParent(entry);
  if (absl::Status status = RegisterPool(&entry); !status.ok()) return status;
  registered_ = true;

  if (absl::Status status = CheckSignalsUnblocked(); !status.ok()) {
    return status;
  }
  if (options_.signals == SignalOwnership::kInstall) {
    if (absl::Status status = InstallFaultHandler(); !status.ok()) {
      return status;
    }
    handler_installed_ = true;
  }
  if (absl::Status status = supply_->Start(); !status.ok()) return status;
  if (options_.resident_budget_bytes.value_or(0) > 0) {
    absl::StatusOr<std::unique_ptr<BackgroundReclaim>> reclaim =
        BackgroundReclaim::Start(options_.name, [this] {
          const uint64_t budget = *options_.resident_budget_bytes;
          bool more = false;
          TrimTo(budget, &more).IgnoreError();
          return more;
        });
    if (!reclaim.ok()) return reclaim.status();
    background_reclaim_ = *std::move(reclaim);
    steady_.has_background_reclaim = true;
  }
  Publish();
  LivePools::Add(this);
  return absl::OkStatus();
}

ServicePool::~ServicePool() {
  LivePools::Remove(this);
  if (!InOwnerProcess()) {
    // A forked child: the mappings are not there, and neither are the threads.
    // Whatever these objects hold is left; what a supply has of it, the supply
    // leaves.
    static_cast<void>(background_reclaim_.release());
    static_cast<void>(slots_.release());
    static_cast<void>(control_.release());
    if (registered_) UnregisterPool(&fault_pool_.entry);
    return;
  }
  // First nobody places pages any more (no guest code runs either), then the
  // memory goes, and only then what guards it.
  background_reclaim_.reset();
  if (supply_ != nullptr) supply_->Stop();
  if (registered_) UnregisterPool(&fault_pool_.entry);
  reservation_.reset();
  supply_.reset();
  if (handler_installed_) {
    // Refused when somebody has installed a handler in front of ours: ours
    // stays, as the one he chains to.
    UninstallFaultHandler().IgnoreError();
  }
}

absl::Status ServicePool::CheckProcess() const {
  if (InOwnerProcess()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "pool \"", options_.name,
      "\" belongs to the process that made it; this is a child of fork(2), "
      "which has neither its memory nor its userfaultfd: make a Service of "
      "its own in the child"));
}

ServiceStats ServicePool::Stats() const {
  ServiceStats stats;
  uint64_t parked = 0;
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    AddSlotCounters(slots_[i].counters, stats);
    const SlotLifecycle lifecycle =
        slots_[i].lifecycle.Load(std::memory_order_relaxed);
    const bool is_parked = lifecycle == SlotLifecycle::kParked ||
                           lifecycle == SlotLifecycle::kTrimmingParked;
    parked += is_parked;
    if (is_parked || lifecycle == SlotLifecycle::kFree ||
        lifecycle == SlotLifecycle::kTrimming) {
      stats.idle_private_bytes +=
          slots_[i].idle_pages.load(std::memory_order_relaxed) * kPageBytes;
    }
  }
  for (const FaultPool::Shard& shard : fault_pool_.shards) {
    for (int i = 0; i < LatencyHistogram::kBuckets; ++i) {
      stats.fault_latency[i] +=
          shard.latency.bucket[i].load(std::memory_order_relaxed);
    }
  }
  stats.slots = layout_.slots();
  const uint64_t per_instance = layout_.options().memories_per_instance;
  const uint64_t in_use = allocator_->in_use() * per_instance;
  // The counts are of slightly different moments.
  stats.slots_in_use = in_use - std::min(in_use, parked);
  stats.slots_quarantined = allocator_->quarantined() * per_instance;
  return stats;
}

std::string ServicePool::Describe() const {
  const LayoutOptions& layout = layout_.options();
  return absl::StrCat(
      "pool \"", options_.name, "\" at 0x", absl::Hex(reservation_->base()),
      ": ", layout.instances, " instances of ", layout.memories_per_instance,
      " memories of at most ", InPages(layout.max_memory_bytes), ", ",
      layout_.reservation_bytes(), " bytes reserved\n",
      control_->published()
          ? std::string("control block: pooldump finds the pool\n")
          : absl::StrCat("control block: pooldump does not find the pool (",
                         control_->why(), ")\n"),
      supply_->Describe(),
      "slots: ", std::string(SlotStrategyName(options_.strategy)), "\n");
}

}  // namespace firsttouch
