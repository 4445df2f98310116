#include "firsttouch/bench/trap_strategies.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

// One thread traps.
sigjmp_buf g_back;
const std::byte* g_guard;
bool g_restore_mask;

TrapAction JumpBack(const TrapInfo&) { siglongjmp(g_back, 1); }

void OnSegv(int signal, siginfo_t* info, void* ucontext) {
  const auto* const address = static_cast<const std::byte*>(info->si_addr);
  if (address >= g_guard && address < g_guard + kPageBytes) {
    if (g_restore_mask) {
      pthread_sigmask(SIG_SETMASK,
                      &static_cast<ucontext_t*>(ucontext)->uc_sigmask, nullptr);
    }
    siglongjmp(g_back, 1);
  }
  // Not ours: dies of it at the return.
  ::signal(signal, SIG_DFL);
}

// Touches `address` that many times and comes back by g_back each time. The
// mask need not be saved: neither handler leaves one behind.
void TouchAndReturn(volatile std::byte* address, Access access, int times) {
  // Kept over siglongjmp.
  volatile int left = times;
  while (left > 0) {
    left = left - 1;
    if (sigsetjmp(g_back, 0) != 0) continue;
    if (access == Access::kWrite) {
      *address = std::byte{1};
    } else {
      static_cast<void>(*address);
    }
  }
}

class InPool : public TrapStrategy {
 public:
  InPool(Resolve resolve, Access access)
      : access_(access),
        pool_(MakePool({.resolve = resolve, .trap_callback = JumpBack})),
        memory_(OrDie(pool_->Acquire({.size_bytes = kPageBytes}))) {}

  void Trap(int times) override {
    TouchAndReturn(memory_.base() + 2 * kPageBytes, access_, times);
  }

 private:
  const Access access_;
  const std::unique_ptr<Service> pool_;
  Memory memory_;
};

class ByKernel : public TrapStrategy {
 public:
  ByKernel(Access access, bool restore_mask)
      : access_(access), restore_mask_(restore_mask), mapping_(4 * kPageBytes) {
    OrDie(EnsureAlternateStack());
    guard_ = mapping_.base() + 2 * kPageBytes;
    if (mprotect(guard_, kPageBytes, PROT_NONE) != 0) Die("mprotect failed");
  }

  void Trap(int times) override {
    // In place of the pools' handler, not behind it.
    struct sigaction action = {};
    action.sa_sigaction = OnSegv;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    struct sigaction before;
    if (sigaction(SIGSEGV, &action, &before) != 0) Die("sigaction failed");
    g_guard = guard_;
    g_restore_mask = restore_mask_;
    TouchAndReturn(guard_, access_, times);
    sigaction(SIGSEGV, &before, nullptr);
  }

 private:
  const Access access_;
  const bool restore_mask_;
  Mapping mapping_;
  std::byte* guard_;
};

}  // namespace

std::unique_ptr<TrapStrategy> MakePoolTrap(Resolve resolve, Access access) {
  return std::make_unique<InPool>(resolve, access);
}

std::unique_ptr<TrapStrategy> MakeKernelTrap(Access access, bool restore_mask) {
  return std::make_unique<ByKernel>(access, restore_mask);
}

std::vector<NamedTrapStrategy> AllTrapStrategies() {
  std::vector<NamedTrapStrategy> strategies;
  for (Access access : {Access::kRead, Access::kWrite}) {
    const char* const verb = access == Access::kRead ? "read" : "write";
    for (Resolve resolve : {Resolve::kInThread, Resolve::kHandlerThread}) {
      strategies.push_back(
          {absl::StrCat(verb, "/pool/", ResolveName(resolve)),
           [resolve, access] { return MakePoolTrap(resolve, access); }});
    }
    for (bool restore_mask : {false, true}) {
      strategies.push_back({absl::StrCat(verb, "/kernel/mprotect+SIGSEGV",
                                         restore_mask ? "+mask" : ""),
                            [access, restore_mask] {
                              return MakeKernelTrap(access, restore_mask);
                            }});
    }
  }
  return strategies;
}

}  // namespace firsttouch::bench
