// From a signal to the pool it belongs to.
//
// ON THE FAULT PATH: async-signal-safe, no lock, no allocation, no logging, no
// thread-local storage.

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>

#include "firsttouch/locator/lookup.h"
#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/fault_registers.h"
#include "firsttouch/service/handle_fault.h"
#include "firsttouch/service/raw_text.h"
#include "firsttouch/service/restore_page.h"
#include "firsttouch/service/this_thread.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/service/trap_guard.h"
#include "firsttouch/uffd/signal_mask.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

using TrapGuard = void (*)(const TrapInfo& trap);
std::atomic<TrapGuard> g_trap_guard{nullptr};
static_assert(std::atomic<TrapGuard>::is_always_lock_free);

// Restores the interrupted code's signal mask, before a step that may take long
// or leave by longjmp: a callback, or a wait.
void RestoreMask(const ucontext_t& context) {
  ChangeSignalMask(SIG_SETMASK, SignalSetOf(context.uc_sigmask));
}

void SayCannotSupply(const FaultPool& fault_pool, const Location& where,
                     const FaultResult& failed) {
  RawText()
      .Text("firsttouch: cannot supply the page at offset ")
      .Signed(where.offset_bytes)
      .Text(" of pool \"")
      .Text(fault_pool.name)
      .Text("\", instance ")
      .Number(where.instance)
      .Text(", memory ")
      .Number(where.memory)
      .Text(": ")
      .Text(failed.call)
      .Text(" failed with errno ")
      .Signed(failed.error)
      .Text("; going on would show wrong bytes")
      .WriteLine(STDERR_FILENO);
}

// The kernel disables an alternate stack with SS_AUTODISARM while a handler
// runs on it, and it would stay disabled after a callback that leaves by
// longjmp. So that the thread keeps it, it is put back without that flag. A
// handler that returns restores all of it with the interrupted code's context.
void KeepAlternateStack(const ucontext_t& context) {
  // Bit 31 (SS_AUTODISARM of <linux/signal.h>).
  constexpr unsigned kAutoDisarm = 1u << 31;
  stack_t stack = context.uc_stack;
  if (static_cast<unsigned>(stack.ss_flags) != kAutoDisarm) return;
  // Only the stack that this handler runs on: a host may have made up the
  // context.
  const uintptr_t here = reinterpret_cast<uintptr_t>(&stack);
  const auto low = reinterpret_cast<uintptr_t>(stack.ss_sp);
  if (here - low >= stack.ss_size) return;
  stack.ss_flags = 0;
  syscall(SYS_sigaltstack, &stack, nullptr);
}

// Adds to a last line what keeps faults from reaching a handler in this thread,
// if anything does.
void SayWhatKeepsSignals(RawText& text, const ucontext_t& context) {
  struct KernelAction {
    uintptr_t handler;
    unsigned long flags;
    uintptr_t restorer;
    uint64_t mask;
  };
  constexpr struct {
    int signal;
    const char* name;
  } kSignals[] = {{SIGBUS, "SIGBUS"}, {SIGSEGV, "SIGSEGV"}};
  for (const auto& [signal, name] : kSignals) {
    const uint64_t blocked = context.uc_sigmask.__val[0];
    if ((blocked >> (signal - 1) & 1) != 0) {
      text.Text("; ").Text(name).Text(" is blocked in this thread");
    }
    KernelAction action = {};
    if (syscall(SYS_rt_sigaction, signal, nullptr, &action,
                sizeof(action.mask)) == 0 &&
        action.handler <= 1) {  // SIG_DFL, SIG_IGN
      text.Text("; ").Text(name).Text(" has no handler any more");
    }
  }
}

// Reports a touch in the part of a guard that two memories can reach, where no
// callback took it.
void SayUnowned(const FaultPool& fault_pool, const Location& where,
                const TrapInfo& trap, const ucontext_t& context) {
  const uint32_t per_instance = fault_pool.entry.memories_per_instance;
  const uint32_t behind = where.slot + 1;
  RawText text;
  text.Text("firsttouch: out of bounds ")
      .Text(AccessName(trap.access))
      .Text(" in pool \"")
      .Text(fault_pool.name)
      .Text("\", in the guard between instance ")
      .Number(where.instance)
      .Text(", memory ")
      .Number(where.memory)
      .Text(" (offset ")
      .Signed(where.offset_bytes)
      .Text(") and instance ")
      .Number(behind / per_instance)
      .Text(", memory ")
      .Number(behind % per_instance)
      .Text(" (offset ")
      .Signed(where.offset_bytes -
              static_cast<int64_t>(fault_pool.entry.slot_stride_bytes))
      .Text("), which both can reach (address ")
      .Hex(trap.address)
      .Text(", instruction ")
      .Hex(trap.program_counter)
      .Text("); no trap callback of the service took it");
  SayWhatKeepsSignals(text, context);
  text.WriteLine(STDERR_FILENO);
}

// `failed`: for a touch in bounds, what could not be done about it.
FaultOutcome Trap(FaultPool& fault_pool, const Location& where,
                  uintptr_t address, ucontext_t& context,
                  const FaultResult& failed) {
  SlotState& slot = fault_pool.slots[where.slot];
  Count(slot.counters.traps);
  // Where the touch may belong to two memories, a callback of the wrong one may
  // jump to another thread's stack.
  const bool owned = where.place != Place::kGuardUnowned;
  TrapInfo trap;
  trap.pool_id = fault_pool.entry.pool_id;
  trap.pool_name = fault_pool.name;
  trap.instance = owned ? where.instance : kNoMemory;
  trap.memory = owned ? where.memory : kNoMemory;
  trap.leased = owned && slot.lifecycle.Load(std::memory_order_acquire) ==
                             SlotLifecycle::kLeased;
  trap.access = AccessOf(context);
  trap.error = failed.error;
  trap.offset_bytes = owned ? where.offset_bytes : 0;
  trap.size_bytes = owned ? where.size_bytes : 0;
  trap.address = address;
  trap.program_counter = ProgramCounter(context);
  trap.ucontext = &context;
  RestoreMask(context);
  KeepAlternateStack(context);
  trap.user = nullptr;
  if (const TrapGuard guard = g_trap_guard.load(std::memory_order_acquire);
      guard != nullptr) {
    guard(trap);
  }
  if (trap.leased && slot.trap_callback != nullptr) {
    trap.user = slot.trap_user;
    if (slot.trap_callback(trap) == TrapAction::kResume) {
      return FaultOutcome::kResolved;
    }
  }
  if (fault_pool.trap_callback != nullptr) {
    trap.user = fault_pool.trap_user;
    if (fault_pool.trap_callback(trap) == TrapAction::kResume) {
      return FaultOutcome::kResolved;
    }
  }
  if (failed.error != 0) {
    SayCannotSupply(fault_pool, where, failed);
    return FaultOutcome::kUnhandledTrap;
  }
  if (!owned) {
    SayUnowned(fault_pool, where, trap, context);
    return FaultOutcome::kUnhandledTrap;
  }
  RawText text;
  text.Text("firsttouch: out of bounds ")
      .Text(AccessName(trap.access))
      .Text(" in pool \"")
      .Text(fault_pool.name)
      .Text("\", instance ")
      .Number(trap.instance)
      .Text(", memory ")
      .Number(trap.memory)
      .Text(" (slot ")
      .Number(where.slot)
      .Text(trap.leased ? "): offset " : ", not held by anybody): offset ")
      .Signed(trap.offset_bytes)
      .Text(" is not below the size of ")
      .Number(trap.size_bytes)
      .Text(" bytes (address ")
      .Hex(trap.address)
      .Text(", instruction ")
      .Hex(trap.program_counter)
      .Text("); no trap callback took it");
  SayWhatKeepsSignals(text, context);
  text.WriteLine(STDERR_FILENO);
  return FaultOutcome::kUnhandledTrap;
}

// Whether a snapshot had made the memory read-only when it was written to; it
// is writable again on return. The wait holds no lock, and runs with the
// interrupted code's mask: a handler that interrupts it may leave by longjmp.
bool WasFrozen(SlotState& slot, const ucontext_t& context) {
  bool waited = false;
  while (slot.frozen.load(std::memory_order_acquire) != 0) {
    if (!waited) RestoreMask(context);
    syscall(SYS_futex, &slot.frozen, FUTEX_WAIT_PRIVATE, 1, nullptr);
    waited = true;
  }
  if (waited) return true;
  // Or the snapshot was over before we looked. This is assumed a limited number
  // of times: other code may have made the page read-only.
  uint32_t left = slot.late_writes.load(std::memory_order_relaxed);
  while (left != 0 && !slot.late_writes.compare_exchange_weak(
                          left, left - 1, std::memory_order_relaxed)) {
  }
  return left != 0;
}

// Whether a release, Reset or bind that restores the memory in this thread can
// go on after a touch that nothing else resolves: other code has unmapped the
// page or made it inaccessible (munmap, mremap, mprotect, MADV_GUARD_INSTALL),
// while the memory was held or idle, or its contents are not to be had any
// more. The page is made accessible, with any contents, and the slot is not
// used again.
bool GoesOnWithoutPage(FaultPool& fault_pool, SlotState& slot,
                       uintptr_t address) {
  const SlotLifecycle lifecycle =
      slot.lifecycle.Load(std::memory_order_acquire);
  if ((lifecycle != SlotLifecycle::kReturning &&
       lifecycle != SlotLifecycle::kParking) ||
      slot.restorer.load(std::memory_order_relaxed) != ThisThread()) {
    return false;
  }
  const uintptr_t page = RoundDownToPage(address);
  constexpr int kAccessible = PROT_READ | PROT_WRITE;
  // Nothing is mapped there, or not with these rights, or it cannot be filled.
  // MAP_FIXED_NOREPLACE spares anything that was mapped into a hole since.
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  constexpr int kMapFixedNoreplace = 0x100000;  // 4.17
  const bool was_hole = fault_pool.kernel
                            ->Mmap(page, kPageBytes, kAccessible,
                                   kFlags | kMapFixedNoreplace, -1, 0)
                            .ok();
  if (!was_hole) {
    // A page that is accessible and still faults can only be replaced.
    const bool replace = slot.lost_page.load(std::memory_order_relaxed) == page;
    const CallResult opened =
        replace ? fault_pool.kernel->Mmap(page, kPageBytes, kAccessible,
                                          kFlags | MAP_FIXED, -1, 0)
                : fault_pool.kernel->Mprotect(page, kPageBytes, kAccessible);
    if (!opened.ok()) return false;
  }
  slot.lost_page.store(page, std::memory_order_relaxed);
  slot.exceptions.fetch_or(kSlotLost, std::memory_order_relaxed);
  return true;
}

// If the fault is in a guarded read (restore_page.h), ends that read: it read a
// page of an image whose file was cut short.
bool EndGuardedRead(ucontext_t& context) {
  const uintptr_t end = EndOfGuardedRead(ProgramCounter(context));
  if (end == 0) return false;
  FailGuardedRead(context, end);
  return true;
}

}  // namespace

void SetTrapGuard(TrapGuard guard) noexcept {
  g_trap_guard.store(guard, std::memory_order_release);
}

FaultOutcome HandleFault(int signal, siginfo_t* info, void* ucontext) noexcept {
  // Other signals were sent by a process (kill, sigqueue).
  const bool page_fault =
      (signal == SIGBUS &&
       (info->si_code == BUS_ADRERR || info->si_code == BUS_MCEERR_AR)) ||
      (signal == SIGSEGV &&
       (info->si_code == SEGV_ACCERR || info->si_code == SEGV_MAPERR));
  if (!page_fault) return FaultOutcome::kNotMine;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  const PoolEntry* entry = FindPool(address);
  auto& context = *static_cast<ucontext_t*>(ucontext);
  if (entry == nullptr) {
    return EndGuardedRead(context) ? FaultOutcome::kResolved
                                   : FaultOutcome::kNotMine;
  }
  FaultPool& fault_pool = *static_cast<FaultPool*>(entry->owner);
  // In a forked child the pool is not mapped, and the userfaultfd, if it was
  // inherited, would change the parent.
  if (!fault_pool.InOwnerProcess()) return FaultOutcome::kNotMine;
  // A kernel with CONFIG_MEMORY_FAILURE reports a poisoned page as a hardware
  // memory error; without UFFDIO_POISON it can only be a real one.
  const bool may_be_poisoned =
      fault_pool.resolve == Resolve::kHandlerThread && fault_pool.poison;
  if (signal == SIGBUS && info->si_code == BUS_MCEERR_AR && !may_be_poisoned) {
    return FaultOutcome::kNotMine;
  }

  const int saved_errno = errno;
  const Location where = LocateIn(*entry, address);
  const auto goes_on = [&] {
    if (!GoesOnWithoutPage(fault_pool, fault_pool.slots[where.slot], address) &&
        !EndGuardedRead(context)) {
      return false;
    }
    errno = saved_errno;
    return true;
  };
  FaultResult result{FaultResult::Kind::kOutOfBounds, 0, ""};
  uint64_t start_ns = 0;
  if (where.in_bounds && signal == SIGSEGV &&
      AccessOf(context) == Access::kWrite &&
      WasFrozen(fault_pool.slots[where.slot], context)) {
    errno = saved_errno;
    return FaultOutcome::kResolved;
  }
  if (where.in_bounds) {
    start_ns = MonotonicNanos();
    const SignalSet interrupted_mask = SignalSetOf(context.uc_sigmask);
    result = fault_pool.resolve_signal(
        fault_pool,
        {.signal = signal,
         .address = address,
         .touch = {.slot = where.slot,
                   .offset_bytes = static_cast<uint64_t>(where.offset_bytes),
                   .access = AccessOf(context),
                   .protection = IsProtectionFault(context),
                   .interrupted_mask = &interrupted_mask}});
  }
  if (result.kind != FaultResult::Kind::kResolved &&
      result.kind != FaultResult::Kind::kGone && goes_on()) {
    return FaultOutcome::kResolved;
  }
  FaultOutcome outcome = FaultOutcome::kResolved;
  switch (result.kind) {
    case FaultResult::Kind::kResolved:
      fault_pool.shards[where.slot % FaultPool::kShards].latency.Add(
          MonotonicNanos() - start_ns);
      break;
    case FaultResult::Kind::kOutOfBounds:
      outcome = Trap(fault_pool, where, address, context, {});
      break;
    case FaultResult::Kind::kGone:
      break;
    case FaultResult::Kind::kNotOurs:
      outcome = FaultOutcome::kNotMine;
      break;
    case FaultResult::Kind::kNoContents:
      outcome = Trap(fault_pool, where, address, context, result);
      break;
    case FaultResult::Kind::kFailed:
      SayCannotSupply(fault_pool, where, result);
      outcome = FaultOutcome::kUnhandledTrap;
      break;
  }
  errno = saved_errno;
  return outcome;
}

}  // namespace firsttouch
