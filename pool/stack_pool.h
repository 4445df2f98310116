// A pool of stacks for code that must not run on the host's stacks: each has a
// guard below it, where an overflow ends the process, and is recycled without a
// byte of its last owner.
//
//   absl::StatusOr<std::unique_ptr<StackPool>> pool = StackPool::Create(
//       {.name = "fibers", .stacks = 64, .stack_bytes = 1 <<
//       20});
//   absl::StatusOr<StackLease> stack = (*pool)->Acquire();
//   ... makecontext, or a switch of your own, with stack->top() ...
//   stack->Release();      // not while anything runs on it
//
// All stacks are one reservation, laid out by PoolLayout:
//
//   | guard_bytes | stack_bytes | guard_bytes | stack_bytes | guard_bytes |
//                 ^             ^
//         base() of stack 0   top()
//
// Guards are markers in the page tables (MADV_GUARD_INSTALL, kernel 6.13), so
// the pool stays one mapping; on an older kernel they are mprotected, two
// mappings for each stack.
//
// A child of fork has its own copy of every stack (it may be running on one),
// and core dumps show them. Do not use the pool for a thread's alternate signal
// stack: its handler may run while the guard is being hit.
//
// Thread safety: all methods from any thread; a lease belongs to one owner at a
// time. Not async-signal-safe.
#ifndef FIRSTTOUCH_POOL_STACK_POOL_H_
#define FIRSTTOUCH_POOL_STACK_POOL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/pool/slot_strategy.h"

namespace firsttouch {

class Kernel;
class Reservation;
class SlotAllocator;

struct StackPoolOptions {
  // Shown in /proc/PID/maps, as ReservationOptions::name.
  std::string name;
  // At least 1.
  uint32_t stacks = 0;
  // The usable bytes of each stack; a multiple of the page size, at least one
  // page.
  uint64_t stack_bytes = 0;
  // The guard below each stack, and above the last; a multiple of the page
  // size, at least one page. A function whose frame is larger than this can
  // step over it: have the compiler probe (-fstack-clash-protection) or make it
  // larger.
  uint64_t guard_bytes = 65536;
  // At release, this many bytes at the top are set to zero and stay resident,
  // so that the next owner takes no fault for them; the rest is given back to
  // the kernel. More than stack_bytes means all.
  uint64_t keep_resident_bytes = 16384;
  SlotStrategy strategy = SlotStrategy::kNextAvailable;
};

class StackPool;

// A stack while it is leased. Gives it back when destroyed.
class StackLease {
 public:
  StackLease(StackLease&& other) noexcept;
  StackLease& operator=(StackLease&& other) noexcept;
  StackLease(const StackLease&) = delete;
  StackLease& operator=(const StackLease&) = delete;
  ~StackLease() { Release(); }

  // Lowest usable address; the guard ends here. Page aligned. nullptr after
  // Release or a move.
  std::byte* base() const { return base_; }
  // One past the highest address: where a stack that grows down begins. Page
  // aligned.
  std::byte* top() const { return base_ + bytes_; }
  // StackPoolOptions::stack_bytes; 0 after Release or a move.
  uint64_t bytes() const { return bytes_; }

  // Cleans the stack and gives it back; a second call does nothing. The caller
  // must not be running on it. A stack that the kernel refuses to clean is
  // quarantined: never handed out again, and counted.
  void Release();

 private:
  friend class StackPool;
  StackLease(StackPool* pool, uint32_t slot, std::byte* base, uint64_t bytes)
      : pool_(pool), slot_(slot), base_(base), bytes_(bytes) {}

  StackPool* pool_ = nullptr;
  uint32_t slot_ = 0;
  std::byte* base_ = nullptr;
  uint64_t bytes_ = 0;
};

class StackPool {
 public:
  enum class Guards {
    kMarkers,  // MADV_GUARD_INSTALL: no mapping of their own
    kMprotect  // PROT_NONE: two mappings for each stack
  };

  // Maps all stacks and installs their guards. Errors: InvalidArgument for
  // options (the text names the option, its value and the rule);
  // ResourceExhausted as Reservation::Create, and for guards by mprotect when
  // vm.max_map_count is too low; others with the call and its errno.
  static absl::StatusOr<std::unique_ptr<StackPool>> Create(
      const StackPoolOptions& options);

  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  // Unmaps the stacks. Ends the process with a line on stderr if one is leased:
  // the code that runs on it would have lost its stack.
  ~StackPool();

  // A stack with every byte zero. ResourceExhausted if none is free before
  // `deadline`; by default it does not wait.
  absl::StatusOr<StackLease> Acquire(
      absl::Time deadline = absl::InfinitePast());

  // max_memory_bytes of the layout is stack_bytes, both guards are guard_bytes.
  const PoolLayout& layout() const { return layout_; }
  // The first address of the pool.
  uintptr_t base() const;
  Guards guards() const { return guards_; }
  uint32_t capacity() const;
  uint32_t in_use() const;
  uint32_t quarantined() const;

 private:
  friend absl::StatusOr<std::unique_ptr<StackPool>> CreateStackPool(
      Kernel& kernel, const StackPoolOptions& options);
  friend class StackLease;
  StackPool(Kernel& kernel, const PoolLayout& layout, Reservation reservation,
            Guards guards, const StackPoolOptions& options);
  void Release(uint32_t slot, std::byte* base);

  Kernel& kernel_;
  const PoolLayout layout_;
  const std::unique_ptr<const Reservation> reservation_;
  const Guards guards_;
  const uint64_t keep_resident_bytes_;
  const std::unique_ptr<SlotAllocator> slots_;
};

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_STACK_POOL_H_
