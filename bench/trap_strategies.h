// Leaving the bounds and coming back by siglongjmp: what trap and ratios
// measure.

#ifndef FIRSTTOUCH_BENCH_TRAP_STRATEGIES_H_
#define FIRSTTOUCH_BENCH_TRAP_STRATEGIES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "firsttouch/service/fault_pool.h"
#include "firsttouch/service/trap.h"

namespace firsttouch::bench {

class TrapStrategy {
 public:
  virtual ~TrapStrategy() = default;
  // Traps that many times.
  virtual void Trap(int times) = 0;
};

// A touch behind the size of a memory in a pool.
std::unique_ptr<TrapStrategy> MakePoolTrap(Resolve resolve, Access access);

// The kernel's own way: a page made inaccessible by mprotect(2) once, before
// the measurement, and the leanest SIGSEGV handler that is still right: on an
// alternate stack, compares the address with one range and jumps, with no mask
// to save or restore. With `restore_mask` it also puts back the interrupted
// code's mask before it jumps, as a pool does: a host's handler may have been
// in front of it.
std::unique_ptr<TrapStrategy> MakeKernelTrap(Access access, bool restore_mask);

struct NamedTrapStrategy {
  std::string name;
  std::function<std::unique_ptr<TrapStrategy>()> make;
};
std::vector<NamedTrapStrategy> AllTrapStrategies();

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_TRAP_STRATEGIES_H_
