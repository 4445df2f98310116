#include "firsttouch/service/core.h"

#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/locator/locator.h"
#include "firsttouch/pool/limits.h"
#include "firsttouch/service/live_cores.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/uffd/proc.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr uint32_t kMaxHandlerThreads = 64;
// 4 MiB: below that nobody minds what a slot keeps.
constexpr uint64_t kMinHotPagesLimit = 1024;

std::string Pages(uint64_t bytes) {
  return absl::StrCat(bytes, " (", PagesRoundedUp(bytes).value(), " pages)");
}

std::atomic<uint32_t> g_next_pool_id{1};

// The values of FaultHandlerChanges() under which this thread's signals were
// found unblocked, and our handler was found in place.
thread_local uint32_t t_unblocked_at = 0;
thread_local uint32_t t_in_place_at = 0;

std::atomic<uint64_t> g_next_pool_number{1};

// Makes the thread ready for guest code, or says why it cannot be. Its signals
// are looked at once, and after each change that we know of.
absl::Status ReadyThread(SignalOwnership signals) {
  if (absl::Status status = EnsureAlternateStack(); !status.ok()) {
    return status;
  }
  const uint32_t changes = FaultHandlerChanges();
  if (t_unblocked_at != changes) {
    if (absl::Status status = CheckSignalsUnblocked(); !status.ok()) {
      return status;
    }
    t_unblocked_at = changes;
    Core::NoteThreadReady();
  }
  // The host's own handler is the host's to look after.
  if (signals == SignalOwnership::kInstall && t_in_place_at != changes) {
    if (absl::Status status = CheckFaultHandler(); !status.ok()) return status;
    t_in_place_at = changes;
  }
  return absl::OkStatus();
}

// Outlives every core: a release may still be leaving it when another thread
// deletes the core.
Mutex& OrphanMutex() {
  static Mutex* const mutex = new Mutex;
  return *mutex;
}

// In a forked child: the pools that the parent had are not mapped here, so that
// one of ours may come to lie where the locator still has one of them. A pool
// begins at a multiple of kLocatorChunkBytes, so that it covers the start of
// each of its chunks.
void ForgetPoolsOfParent(const PoolEntry& entry) {
  for (uint64_t at = 0; at < entry.bytes; at += kLocatorChunkBytes) {
    const PoolEntry* there = FindPool(entry.base + at);
    if (there != nullptr &&
        !static_cast<FaultCore*>(there->owner)->InOwnerProcess()) {
      UnregisterPool(there);
    }
  }
}

}  // namespace

Core::Core(ServiceOptions options, Kernel& kernel, const PoolLayout& layout)
    : steady_(g_next_pool_number.fetch_add(1, std::memory_order_relaxed),
              kernel),
      options_(std::move(options)),
      kernel_(kernel),
      layout_(layout) {
  steady_.parks = options_.strategy == SlotStrategy::kAffinity &&
                  layout.options().memories_per_instance == 1;
}

absl::StatusOr<std::unique_ptr<Core>> Core::Create(ServiceOptions options,
                                                   Kernel& kernel,
                                                   SupplyOpener open_supply) {
  if (absl::Status status = CheckPoolName(options.name); !status.ok()) {
    return status;
  }
  absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(options.layout);
  if (!layout.ok()) return layout.status();
  if (options.resolve == Resolve::kHandlerThread &&
      (options.handler_threads == 0 ||
       options.handler_threads > kMaxHandlerThreads)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "handler_threads ", options.handler_threads, " is not in 1 to ",
        kMaxHandlerThreads, ": with none, nobody would resolve a fault"));
  }
  if (options.resolve == Resolve::kInThread &&
      options.kernel_faults.value_or(false)) {
    return absl::InvalidArgumentError(
        "kernel_faults true needs resolve kHandlerThread: a fault that the "
        "kernel takes cannot be resolved by a signal in the thread; use "
        "Memory::MakeReady before system calls instead");
  }
  std::unique_ptr<Core> core(new Core(std::move(options), kernel, *layout));
  if (absl::Status status = core->Start(open_supply); !status.ok())
    return status;
  return core;
}

absl::Status Core::MapBookKeeping() {
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

absl::Status Core::Start(SupplyOpener open_supply) {
  absl::StatusOr<std::unique_ptr<MemorySupply>> supply =
      open_supply({.options = options_,
                   .layout = layout_,
                   .kernel = kernel_,
                   .fault_core = fault_core_});
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

  fault_core_.kernel = &kernel_;
  fault_core_.granule_pages = layout_.options().granule_bytes / kPageBytes;
  fault_core_.slots = slots_.get();
  fault_core_.name = options_.name.c_str();
  fault_core_.trap_callback = options_.trap_callback;
  fault_core_.trap_user = options_.trap_user;
  if (absl::Status status = supply_->Attach(*reservation_); !status.ok()) {
    return status;
  }
  if (absl::Status status = reservation_->CheckEmpty(); !status.ok()) {
    return status;
  }
  steady_.handovers = supply_->traits().steady_handovers;

  PoolEntry& entry = fault_core_.entry;
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
  entry.owner = &fault_core_;
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
    absl::StatusOr<std::unique_ptr<Janitor>> janitor =
        Janitor::Start(options_.name, [this] {
          const uint64_t budget = *options_.resident_budget_bytes;
          bool more = false;
          TrimTo(budget, &more).IgnoreError();
          return more;
        });
    if (!janitor.ok()) return janitor.status();
    janitor_ = *std::move(janitor);
    steady_.has_janitor = true;
  }
  Publish();
  LiveCores::Add(this);
  return absl::OkStatus();
}

Core::~Core() {
  LiveCores::Remove(this);
  if (!InOwnerProcess()) {
    // A forked child: the mappings are not there, and neither are the threads.
    // Whatever these objects hold is left; what a supply has of it, the supply
    // leaves.
    static_cast<void>(janitor_.release());
    static_cast<void>(slots_.release());
    static_cast<void>(control_.release());
    if (registered_) UnregisterPool(&fault_core_.entry);
    return;
  }
  // First nobody places pages any more (no guest code runs either), then the
  // memory goes, and only then what guards it.
  janitor_.reset();
  if (supply_ != nullptr) supply_->Stop();
  if (registered_) UnregisterPool(&fault_core_.entry);
  reservation_.reset();
  supply_.reset();
  if (handler_installed_) {
    // Refused when somebody has installed a handler in front of ours: ours
    // stays, as the one he chains to.
    UninstallFaultHandler().IgnoreError();
  }
}

absl::Status Core::CheckProcess() const {
  if (InOwnerProcess()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "pool \"", options_.name,
      "\" belongs to the process that made it; this is a child of fork(2), "
      "which has neither its memory nor its userfaultfd: make a Service of "
      "its own in the child"));
}

absl::Status Core::CheckUsable(const SlotState& slot) {
  if ((slot.exceptions.load(std::memory_order_relaxed) & kSlotBroken) == 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      "an earlier Reset or Snapshot of this memory failed: release it");
}

absl::Status Core::CheckMemoryOptions(const MemoryOptions& options) const {
  if (options.initial_bytes() > layout_.memory_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "size_bytes ", Pages(options.initial_bytes()),
        " exceeds max_memory_bytes ", Pages(layout_.memory_bytes()),
        " of pool \"", options_.name,
        "\": ask for less, or raise LayoutOptions::max_memory_bytes"));
  }
  if (options.image != nullptr &&
      options.image->size_bytes() > options.initial_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "image \"", options.image->name(), "\" of ",
        Pages(options.image->size_bytes()), " bytes is larger than size_bytes ",
        Pages(options.initial_bytes()),
        " of the memory: raise MemoryOptions::size_bytes"));
  }
  if (options.image != nullptr) {
    if (absl::Status status = options.image->CheckProcess(); !status.ok()) {
      return status;
    }
  }
  if (options.image == nullptr) return absl::OkStatus();
  return supply_->CheckImage(*options.image);
}

absl::StatusOr<uint32_t> Core::TakeInstance(const MemoryOptions& first) {
  const uint64_t key = first.image == nullptr ? 0 : first.image->id();
  if (!steady_.parks) return TakeFromAllocator(key, first.deadline);
  absl::StatusOr<uint32_t> slot = TakeFromAllocator(key, absl::InfinitePast());
  if (slot.ok()) return slot;
  // What other threads keep for themselves is free, too. Why this misses
  // nothing is said in core.h.
  steady_.waiting.fetch_add(1, std::memory_order_seq_cst);
  std::optional<uint32_t> parked = ClaimAnyParked(/*surely=*/false);
  if (!parked.has_value()) {
    steady_.fence.Heavy();
    parked = ClaimAnyParked(/*surely=*/true);
  }
  if (!parked.has_value()) slot = TakeFromAllocator(key, first.deadline);
  steady_.waiting.fetch_sub(1, std::memory_order_relaxed);
  if (parked.has_value()) return *parked;
  return slot;
}

absl::StatusOr<uint32_t> Core::TakeFromAllocator(uint64_t key,
                                                 absl::Time deadline) {
  absl::StatusOr<SlotAllocator::Pick> pick = allocator_->Acquire(key, deadline);
  if (!pick.ok()) {
    return absl::Status(pick.status().code(),
                        absl::StrCat("pool \"", options_.name,
                                     "\": ", pick.status().message()));
  }
  return pick->slot;
}

std::optional<uint32_t> Core::ClaimAnyParked(bool surely) {
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    SlotState& slot = slots_[i];
    SlotLifecycle lifecycle = slot.lifecycle.Load(std::memory_order_acquire);
    while (surely && (lifecycle == SlotLifecycle::kParking ||
                      lifecycle == SlotLifecycle::kTrimmingParked)) {
      sched_yield();
      lifecycle = slot.lifecycle.Load(std::memory_order_acquire);
    }
    if (lifecycle == SlotLifecycle::kParked && slot.lifecycle.TakeParked())
      return i;
  }
  return std::nullopt;
}

absl::Status Core::PrepareSlot(SlotState& slot, const MemoryOptions& options) {
  const uint64_t size_pages = PagesRoundedUp(options.initial_bytes()).value();
  DropWhatIsDistrusted();
  if (absl::Status status = supply_->Bind(slot, options.image, size_pages);
      !status.ok()) {
    return status;
  }
  PublishImage(slot);
  slot.kept_pages = size_pages;
  if (slot.prefill_wanted) {
    supply_->Prefill(slot, size_pages, HotPagesLimit(size_pages));
    NoteIdle(slot);
  }
  slot.initial_bytes = options.initial_bytes();
  slot.remap_wanted = false;
  slot.exceptions.store(0, std::memory_order_relaxed);
  Lease(slot, options);
  return absl::OkStatus();
}

void Core::AbandonSlot(SlotState& slot) {
  Abandon(slot);
  slot.initial_bytes = 0;
  // So that it is prepared for its next holder, whatever is asked for.
  slot.other_tracking_wanted = true;
  ForgetIdle(slot);
  PublishImage(slot);
}

void Core::GiveUp(SlotState& slot) {
  if (slot.place_lost) {
    Return(slot, SlotLifecycle::kQuarantined);
    return;
  }
  if (slot.remap_wanted) AbandonSlot(slot);
  Return(slot, SlotLifecycle::kFree);
}

std::shared_ptr<const Image> Core::Unbind(SlotState& slot) {
  std::shared_ptr<const Image> image = slot.image;
  AbandonSlot(slot);
  // After an error all is mapped anew before the next holder, and only then
  // does the kernel let go, too.
  if (supply_->Unbind(slot).ok()) slot.remap_wanted = false;
  return image;
}

absl::Status Core::CheckAcquireOne(const MemoryOptions& options) const {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  if (absl::Status status = ReadyThread(options_.signals); !status.ok()) {
    return status;
  }
  const uint32_t per_instance = layout_.options().memories_per_instance;
  if (per_instance != 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "pool \"", options_.name, "\" has memories_per_instance ", per_instance,
        ": an instance is acquired as a whole, by AcquireInstance"));
  }
  return CheckMemoryOptions(options);
}

absl::StatusOr<Memory> Core::AcquireAny(const MemoryOptions& options,
                                        SlotState* own) {
  if (absl::Status status = CheckAcquireOne(options); !status.ok()) {
    if (own != nullptr) Return(*own, SlotLifecycle::kFree);
    return status;
  }
  absl::StatusOr<uint32_t> instance =
      own != nullptr ? SlotNumber(*own) : TakeInstance(options);
  while (instance.ok() && !slots_[*instance].lifecycle.TakeFree()) {
    allocator_->Quarantine(*instance);
    instance = TakeInstance(options);
  }
  if (!instance.ok()) return instance.status();
  SlotState& slot = slots_[*instance];
  if (absl::Status status = PrepareSlot(slot, options); !status.ok()) {
    GiveUp(slot);
    return status;
  }
  return MemoryOf(slot);
}

absl::StatusOr<std::vector<Memory>> Core::AcquireInstance(
    std::span<const MemoryOptions> options) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  if (absl::Status status = ReadyThread(options_.signals); !status.ok()) {
    return status;
  }
  const uint32_t per_instance = layout_.options().memories_per_instance;
  if (options.size() != per_instance) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.size(), " memories asked for in pool \"", options_.name,
        "\", whose memories_per_instance is ", per_instance,
        ": give exactly one MemoryOptions for each"));
  }
  for (const MemoryOptions& one : options) {
    if (absl::Status status = CheckMemoryOptions(one); !status.ok()) {
      return status;
    }
  }
  SlotState* const own = ClaimOwn(options[0]);
  absl::StatusOr<uint32_t> instance =
      own != nullptr ? SlotNumber(*own) : TakeInstance(options[0]);
  if (!instance.ok()) return instance.status();
  std::vector<Memory> memories;
  memories.reserve(per_instance);
  absl::Status failure;
  for (uint32_t i = 0; i < per_instance; ++i) {
    SlotState& slot = slots_[*instance * per_instance + i];
    if (!slot.lifecycle.TakeFree()) {
      failure.Update(absl::InternalError(
          absl::StrCat("slot ", SlotNumber(slot), " of pool \"", options_.name,
                       "\" could not be trimmed and is quarantined")));
      LetGo(slot, /*failed=*/true);
      continue;
    }
    if (failure.ok()) failure = PrepareSlot(slot, options[i]);
    if (!failure.ok()) {
      GiveUp(slot);
      continue;
    }
    memories.push_back(MemoryOf(slot));
  }
  if (!failure.ok()) return failure;
  return memories;
}

absl::StatusOr<uint64_t> Core::GrowBy(SlotState& slot, uint64_t delta_bytes) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  const MemorySupply::GrowthLock lock(*supply_, slot);
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  uint64_t before = slot.size_bytes.load(std::memory_order_relaxed);
  do {
    if (delta_bytes > layout_.memory_bytes() ||
        before > layout_.memory_bytes() - delta_bytes) {
      return TooLarge(before, delta_bytes);
    }
    absl::Status status =
        supply_->Open(slot, PagesRoundedUp(before + delta_bytes).value());
    if (!status.ok()) return status;
  } while (!slot.size_bytes.compare_exchange_weak(before, before + delta_bytes,
                                                  std::memory_order_seq_cst));
  Count(slot.counters.grows);
  supply_->NoteGrown(slot, before, before + delta_bytes);
  return before;
}

absl::Status Core::GrowTo(SlotState& slot, uint64_t new_size_bytes) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  const MemorySupply::GrowthLock lock(*supply_, slot);
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  uint64_t before = slot.size_bytes.load(std::memory_order_relaxed);
  do {
    if (new_size_bytes < before) {
      return absl::InvalidArgumentError(absl::StrCat(
          "new_size_bytes ", new_size_bytes, " is below the present size of ",
          before, " bytes: a memory does not shrink"));
    }
    if (new_size_bytes > layout_.memory_bytes()) {
      return TooLarge(before, new_size_bytes - before);
    }
    absl::Status status =
        supply_->Open(slot, PagesRoundedUp(new_size_bytes).value());
    if (!status.ok()) return status;
  } while (!slot.size_bytes.compare_exchange_weak(before, new_size_bytes,
                                                  std::memory_order_seq_cst));
  Count(slot.counters.grows);
  supply_->NoteGrown(slot, before, new_size_bytes);
  return absl::OkStatus();
}

absl::Status Core::TooLarge(uint64_t size_bytes, uint64_t delta_bytes) const {
  return absl::ResourceExhaustedError(
      absl::StrCat("growing from ", Pages(size_bytes), " by ", delta_bytes,
                   " bytes exceeds max_memory_bytes ",
                   Pages(layout_.memory_bytes()), " of pool \"", options_.name,
                   "\": raise LayoutOptions::max_memory_bytes"));
}

uint64_t Core::HotPagesLimit(uint64_t keep_pages) const {
  if (options_.resident_budget_bytes == uint64_t{0}) return 0;
  return options_.hot_pages_limit.value_or(
      std::max(kMinHotPagesLimit, keep_pages / 2));
}

void Core::DropWhatIsDistrusted() {
  if (!supply_->DistrustsPages()) return;
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    slots_[i].exceptions.fetch_or(kSlotDropped, std::memory_order_relaxed);
  }
  // Free ones keep pages for a holder who comes the steady way.
  TrimTo(0, nullptr).IgnoreError();
}

uint64_t Core::EndLease(SlotState& slot) {
  const uint64_t size_bytes =
      slot.size_bytes.exchange(0, std::memory_order_seq_cst);
  supply_->StopFills(slot);
  return size_bytes;
}

absl::Status Core::Restore(SlotState& slot) {
  slot.last_fault_page.store(~uint64_t{0}, std::memory_order_relaxed);
  absl::Status status = RestoreAndNote(slot, EndLease(slot));
  slot.size_bytes.store(0, std::memory_order_seq_cst);
  if ((slot.exceptions.load(std::memory_order_relaxed) & kSlotLost) != 0) {
    status.Update(absl::DataLossError(absl::StrCat(
        "a page at offset ",
        slot.lost_page.load(std::memory_order_relaxed) - slot.base, " of slot ",
        SlotNumber(slot), " in pool \"", options_.name,
        "\" was unmapped or made inaccessible by somebody else while the "
        "memory was held (munmap, mremap, mprotect, MADV_GUARD_INSTALL), or "
        "its contents are not to be had any more: the slot is not used again; "
        "leave the mappings of a pool alone")));
  }
  return status;
}

absl::Status Core::RestoreAndNote(SlotState& slot, uint64_t size_bytes) {
  // Asks the kernel, so only where it was asked since the last restore: the end
  // of a span, in a cycle without a fault, makes no system call either.
  if (slot.filled.load(std::memory_order_relaxed) ||
      slot.tracking != Tracking::kSignal) {
    DropWhatIsDistrusted();
  }
  // No page that may have changed is restored in place then.
  const bool drops =
      (slot.exceptions.load(std::memory_order_relaxed) & kSlotDropped) != 0;
  absl::Status status = supply_->Restore(
      slot, size_bytes, drops ? 0 : HotPagesLimit(slot.kept_pages));
  if (status.ok() && slot.demotion_due) {
    status = Demote(slot);
  } else if (status.ok() && !slot.cold_pages.empty()) {
    PutOffDemotion(slot);
  }
  if (!status.ok()) return status;
  NoteIdle(slot);
  if (options_.resident_budget_bytes == uint64_t{0} &&
      slot.idle_pages.load(std::memory_order_relaxed) != 0) {
    // Copied, and only read.
    status = DropKept(slot);
    NoteIdle(slot);
  }
  return status;
}

absl::Status Core::Reset(SlotState& slot) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  slot.restorer.store(ThisThread(), std::memory_order_relaxed);
  slot.lifecycle.Move(SlotLifecycle::kReturning);
  absl::Status status = Restore(slot);
  if (status.ok()) {
    slot.size_bytes.store(slot.initial_bytes, std::memory_order_release);
  } else {
    // The size stays 0: every touch of a missing page traps.
    slot.exceptions.fetch_or(kSlotBroken, std::memory_order_relaxed);
  }
  slot.lifecycle.Move(SlotLifecycle::kLeased);
  return status;
}

absl::Status Core::ReleaseAny(SlotState& slot) {
  // Nobody should wait for this, which may take long.
  slot.lifecycle.Move(SlotLifecycle::kReturning);
  if (slot.remap_wanted) {
    // A snapshot could not make it writable again; nothing else is amiss.
    EndLease(slot);
    AbandonSlot(slot);
    Return(slot, SlotLifecycle::kFree);
    return absl::OkStatus();
  }
  absl::Status status =
      (slot.exceptions.load(std::memory_order_relaxed) & kSlotBroken) != 0
          ? absl::FailedPreconditionError(
                "a Reset of this memory failed: its slot is quarantined")
          : Restore(slot);
  if (status.ok()) {
    CountOwned(slot.counters.handovers);
    MindBudget();
    slot.exceptions.fetch_and(static_cast<uint8_t>(~kSlotDropped),
                              std::memory_order_relaxed);
    slot.lifecycle.Move(SlotLifecycle::kParking);
    // Whoever waits, or has dropped the image's last handle, does not wait for
    // this slot unless it is kParking.
    steady_.fence.Light();
    if ((slot.exceptions.load(std::memory_order_relaxed) & kSlotImageUnused) !=
        0) {
      ReturnUnbound(slot);
      return status;
    }
    if (steady_.parks && steady_.waiting.load(std::memory_order_relaxed) == 0) {
      Park(slot);
      return status;
    }
  }
  Return(slot,
         status.ok() ? SlotLifecycle::kFree : SlotLifecycle::kQuarantined);
  return status;
}

void Core::ReturnUnbound(SlotState& slot) {
  slot.lifecycle.Move(SlotLifecycle::kReturning);
  slot.exceptions.fetch_and(static_cast<uint8_t>(~kSlotImageUnused),
                            std::memory_order_relaxed);
  // Destroyed when the slot is nobody's any more.
  std::shared_ptr<const Image> image;
  if (slot.image != nullptr && !slot.image->in_use()) image = Unbind(slot);
  Return(slot,
         slot.place_lost ? SlotLifecycle::kQuarantined : SlotLifecycle::kFree);
}

void Core::DropAtRelease(SlotState& slot) {
  slot.exceptions.fetch_or(kSlotDropped, std::memory_order_relaxed);
}

void Core::Return(SlotState& slot, SlotLifecycle lifecycle) {
  // In this order: whoever sees the slot out of kReturning sees this.
  slot.returning.fetch_add(1, std::memory_order_relaxed);
  if (lifecycle == SlotLifecycle::kQuarantined) ForgetIdle(slot);
  slot.lifecycle.Move(lifecycle);
  LetGo(slot, lifecycle == SlotLifecycle::kQuarantined);
  // The last touch of this object: from here on it may be deleted.
  slot.returning.fetch_sub(1, std::memory_order_release);
}

uint64_t Core::AffinityKey(const SlotState& slot) {
  const uint64_t id = slot.image_id.load(std::memory_order_relaxed);
  return id == SlotState::kAbandoned ? 0 : id;
}

void Core::LetGo(const SlotState& slot, bool failed) {
  const uint32_t members = layout_.options().memories_per_instance;
  const uint32_t instance = SlotNumber(slot) / members;
  allocator_->ReturnMember(instance, members,
                           AffinityKey(slots_[instance * members]), failed);
}

bool Core::AnyHeld() const {
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    const SlotLifecycle lifecycle =
        slots_[i].lifecycle.Load(std::memory_order_acquire);
    // One that is returning will take the mutex of all cores yet.
    if (lifecycle == SlotLifecycle::kLeased ||
        lifecycle == SlotLifecycle::kReturning ||
        lifecycle == SlotLifecycle::kParking) {
      return true;
    }
  }
  return false;
}

void Core::Orphan(std::unique_ptr<Core> core) {
  if (!core->fault_core_.InOwnerProcess()) {
    // A forked child: threads of the parent that were in the middle of a
    // release are not here to finish it. Nothing of the pool is the child's
    // anyway.
    static_cast<void>(core.release());
    return;
  }
  core->steady_.orphaned.store(true, std::memory_order_release);
  core->steady_.fence.Heavy();
  for (uint32_t i = 0; i < core->layout_.slots(); ++i) {
    const SlotState& slot = core->slots_[i];
    const auto is_returning = [&slot] {
      const SlotLifecycle lifecycle =
          slot.lifecycle.Load(std::memory_order_acquire);
      return lifecycle == SlotLifecycle::kReturning ||
             lifecycle == SlotLifecycle::kParking;
    };
    // In this order: see Return().
    while (is_returning() ||
           slot.returning.load(std::memory_order_acquire) != 0) {
      sched_yield();
    }
  }
  MutexLock lock(&OrphanMutex());
  if (!core->AnyHeld()) return;
  core->last_release_deletes_ = true;
  static_cast<void>(core.release());
}

void Core::ReleaseOrphan(SlotState& slot) {
  // Nobody will acquire the slot again: there is nothing to restore. A touch
  // that comes too late traps all the same.
  slot.size_bytes.store(0, std::memory_order_seq_cst);
  supply_->Shut(slot);
  std::unique_ptr<Core> last;
  MutexLock lock(&OrphanMutex());
  slot.lifecycle.Move(SlotLifecycle::kFree);
  if (last_release_deletes_ && !AnyHeld()) last.reset(this);
}

absl::Status Core::MakeReady(SlotState& slot, uint64_t offset_bytes,
                             uint64_t bytes, Access access) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  if (access == Access::kExecute) {
    return absl::InvalidArgumentError(
        "access kExecute: no page of a pool can be executed; use kRead or "
        "kWrite");
  }
  const uint64_t size_bytes = slot.size_bytes.load(std::memory_order_relaxed);
  if (offset_bytes > size_bytes || bytes > size_bytes - offset_bytes) {
    return absl::OutOfRangeError(absl::StrCat(
        "the range of ", bytes, " bytes at offset ", offset_bytes,
        " does not end within the memory's size of ", size_bytes, " bytes"));
  }
  if (bytes == 0) return absl::OkStatus();
  return supply_->MakeReady(slot, offset_bytes, bytes, access);
}

MemoryPages Core::CountPages(SlotState& slot) const {
  if (!InOwnerProcess()) return {};
  return supply_->CountPages(slot);
}

ServiceStats Core::Stats() const {
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
  for (const FaultCore::Shard& shard : fault_core_.shards) {
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

std::string Core::Describe() const {
  const LayoutOptions& layout = layout_.options();
  return absl::StrCat(
      "pool \"", options_.name, "\" at 0x", absl::Hex(reservation_->base()),
      ": ", layout.instances, " instances of ", layout.memories_per_instance,
      " memories of at most ", Pages(layout.max_memory_bytes), ", ",
      layout_.reservation_bytes(), " bytes reserved\n",
      control_->published()
          ? std::string("control block: pooldump finds the pool\n")
          : absl::StrCat("control block: pooldump does not find the pool (",
                         control_->why(), ")\n"),
      supply_->Describe(),
      "slots: ", std::string(SlotStrategyName(options_.strategy)), "\n");
}

}  // namespace firsttouch
