// The part of ServicePool that takes memories back: restoring them, at a
// release or Reset, where the slot goes then, and the end of the pool. What a
// release does in a steady cycle is in steady_path.cc.

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/memory_supply.h"
#include "firsttouch/service/service_pool.h"
#include "firsttouch/service/slot_record.h"
#include "firsttouch/service/slot_state.h"
#include "firsttouch/service/this_thread.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

// 1024 pages, 4 MiB: the least that a slot may keep where no limit is asked
// for.
constexpr uint64_t kMinRetainedPagesLimit = 1024;

// Outlives every pool: a release may still be leaving it when another thread
// deletes the pool.
Mutex& OrphanMutex() {
  static Mutex* const mutex = new Mutex;
  return *mutex;
}

}  // namespace

uint64_t ServicePool::RetainedPagesLimit(uint64_t keep_pages) const {
  if (options_.resident_budget_bytes == uint64_t{0}) return 0;
  return options_.retained_pages_limit.value_or(
      std::max(kMinRetainedPagesLimit, keep_pages / 2));
}

void ServicePool::DropWhatIsDistrusted() {
  if (!supply_->DistrustsPages()) return;
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    slots_[i].exceptions.fetch_or(kSlotDropped, std::memory_order_relaxed);
  }
  // Free ones keep pages for a lease that begins the steady way.
  TrimTo(0, nullptr).IgnoreError();
}

uint64_t ServicePool::EndLease(SlotState& slot) {
  const uint64_t size_bytes =
      slot.size_bytes.exchange(0, std::memory_order_seq_cst);
  supply_->StopFills(slot);
  return size_bytes;
}

absl::Status ServicePool::Restore(SlotState& slot) {
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

absl::Status ServicePool::RestoreAndNote(SlotState& slot, uint64_t size_bytes) {
  // Asks the kernel, so only where it was asked since the last restore: the end
  // of a sampling window, in a cycle without a fault, makes no system call
  // either.
  if (slot.filled.load(std::memory_order_relaxed) ||
      slot.tracking != Tracking::kSignal) {
    DropWhatIsDistrusted();
  }
  // No page that may have changed is restored in place then.
  const bool drops =
      (slot.exceptions.load(std::memory_order_relaxed) & kSlotDropped) != 0;
  absl::Status status = supply_->Restore(
      slot, size_bytes, drops ? 0 : RetainedPagesLimit(slot.kept_pages));
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

absl::Status ServicePool::Reset(SlotState& slot) {
  if (absl::Status status = CheckProcess(); !status.ok()) return status;
  if (absl::Status status = CheckUsable(slot); !status.ok()) return status;
  slot.restorer.store(ThisThread(), std::memory_order_relaxed);
  slot.resetting.store(true, std::memory_order_relaxed);
  slot.lifecycle.Move(SlotLifecycle::kReturning);
  absl::Status status = Restore(slot);
  if (status.ok()) {
    slot.size_bytes.store(slot.initial_bytes, std::memory_order_release);
  } else {
    // The size stays 0: every touch of a missing page traps.
    slot.exceptions.fetch_or(kSlotBroken, std::memory_order_relaxed);
  }
  slot.lifecycle.Move(SlotLifecycle::kLeased);
  slot.resetting.store(false, std::memory_order_relaxed);
  return status;
}

absl::Status ServicePool::ReleaseAny(SlotState& slot) {
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
    // A thread that waits, or that has dropped the image's last handle, does
    // not wait for this slot unless it is kParking.
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

void ServicePool::ReturnUnbound(SlotState& slot) {
  slot.lifecycle.Move(SlotLifecycle::kReturning);
  slot.exceptions.fetch_and(static_cast<uint8_t>(~kSlotImageUnused),
                            std::memory_order_relaxed);
  // Destroyed when the slot is given back.
  std::shared_ptr<const Image> image;
  if (slot.image != nullptr && !slot.image->in_use()) image = Unbind(slot);
  Return(slot,
         slot.place_lost ? SlotLifecycle::kQuarantined : SlotLifecycle::kFree);
}

void ServicePool::DropAtRelease(SlotState& slot) {
  slot.exceptions.fetch_or(kSlotDropped, std::memory_order_relaxed);
}

void ServicePool::Return(SlotState& slot, SlotLifecycle lifecycle) {
  // In this order: a thread that sees the slot out of kReturning sees this.
  slot.returning.fetch_add(1, std::memory_order_relaxed);
  if (lifecycle == SlotLifecycle::kQuarantined) ForgetIdle(slot);
  slot.lifecycle.Move(lifecycle);
  LetGo(slot, lifecycle == SlotLifecycle::kQuarantined);
  // The last touch of this object: from here on it may be deleted.
  slot.returning.fetch_sub(1, std::memory_order_release);
}

uint64_t ServicePool::AffinityKey(const SlotState& slot) {
  const uint64_t id = slot.image_id.load(std::memory_order_relaxed);
  return id == SlotState::kAbandoned ? 0 : id;
}

void ServicePool::LetGo(const SlotState& slot, bool failed) {
  const uint32_t members = layout_.options().memories_per_instance;
  const uint32_t instance = SlotNumber(slot) / members;
  allocator_->ReturnMember(instance, members,
                           AffinityKey(slots_[instance * members]), failed);
}

bool ServicePool::AnyHeld() const {
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    const SlotLifecycle lifecycle =
        slots_[i].lifecycle.Load(std::memory_order_acquire);
    // One that is returning will take the mutex of all pools yet.
    if (lifecycle == SlotLifecycle::kLeased ||
        lifecycle == SlotLifecycle::kReturning ||
        lifecycle == SlotLifecycle::kParking) {
      return true;
    }
  }
  return false;
}

void ServicePool::Orphan(std::unique_ptr<ServicePool> pool) {
  if (!pool->fault_pool_.InOwnerProcess()) {
    // A forked child: threads of the parent that were in the middle of a
    // release are not here to finish it. Nothing of the pool is the child's
    // anyway.
    static_cast<void>(pool.release());
    return;
  }
  pool->steady_.orphaned.store(true, std::memory_order_release);
  pool->steady_.fence.Heavy();
  for (uint32_t i = 0; i < pool->layout_.slots(); ++i) {
    const SlotState& slot = pool->slots_[i];
    // A release that has not seen the mark. A Reset is none: the release after
    // it sees the mark, and a memory that is reset in a loop would leave hardly
    // a moment in which it is not kReturning.
    const auto is_returning = [&slot] {
      const SlotLifecycle lifecycle =
          slot.lifecycle.Load(std::memory_order_acquire);
      return lifecycle == SlotLifecycle::kParking ||
             (lifecycle == SlotLifecycle::kReturning &&
              !slot.resetting.load(std::memory_order_relaxed));
    };
    // In this order: see Return().
    while (is_returning() ||
           slot.returning.load(std::memory_order_acquire) != 0) {
      sched_yield();
    }
  }
  MutexLock lock(&OrphanMutex());
  if (!pool->AnyHeld()) return;
  pool->last_release_deletes_ = true;
  static_cast<void>(pool.release());
}

void ServicePool::ReleaseOrphan(SlotState& slot) {
  // Nobody will acquire the slot again: there is nothing to restore. A touch
  // that comes too late traps all the same.
  slot.size_bytes.store(0, std::memory_order_seq_cst);
  supply_->Shut(slot);
  std::unique_ptr<ServicePool> last;
  MutexLock lock(&OrphanMutex());
  slot.lifecycle.Move(SlotLifecycle::kFree);
  if (last_release_deletes_ && !AnyHeld()) last.reset(this);
}

}  // namespace firsttouch
