// Hosts with signal handlers of their own: in front of ours, behind it, instead
// of it.

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/tests/hostile/program.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::hostile {
namespace {

constexpr uint64_t kPages = 16;

// What the host's handlers saw.
struct Seen {
  int calls = 0;
  int signal = 0;
  int code = 0;
  void* address = nullptr;
  uintptr_t error_code = 0;
  bool usr1_blocked = false;
  bool usr2_blocked = false;
  bool itself_blocked = false;
  bool on_alternate_stack = false;
  FaultOutcome outcome = FaultOutcome::kResolved;
};
Seen g_seen;
sigjmp_buf g_jump;
struct sigaction g_chained[2];

void Note(int signal, siginfo_t* info) {
  ++g_seen.calls;
  g_seen.signal = signal;
  g_seen.code = info == nullptr ? 0 : info->si_code;
  g_seen.address = info == nullptr ? nullptr : info->si_addr;
  sigset_t mask;
  sigprocmask(SIG_SETMASK, nullptr, &mask);
  g_seen.usr1_blocked = sigismember(&mask, SIGUSR1) == 1;
  g_seen.usr2_blocked = sigismember(&mask, SIGUSR2) == 1;
  g_seen.itself_blocked = sigismember(&mask, signal) == 1;
  stack_t stack;
  sigaltstack(nullptr, &stack);
  g_seen.on_alternate_stack = (stack.ss_flags & SS_ONSTACK) != 0;
}

void HostHandler(int signal, siginfo_t* info, void*) {
  Note(signal, info);
  siglongjmp(g_jump, 1);
}

void HostHandlerOld(int signal) {
  Note(signal, nullptr);
  siglongjmp(g_jump, 1);
}

void HostHandlerThatReturns(int signal, siginfo_t* info, void*) {
  Note(signal, info);
}

// Put in front of ours: passes on what it does not know.
void HostHandlerInFront(int signal, siginfo_t* info, void* context) {
  ++g_seen.calls;
  const struct sigaction& next = g_chained[signal == SIGSEGV];
  next.sa_sigaction(signal, info, context);
}

// The only handler there is.
void HostHandlerThatAsks(int signal, siginfo_t* info, void* context) {
  g_seen.outcome = HandleFault(signal, info, context);
  if (g_seen.outcome == FaultOutcome::kResolved) return;
  Note(signal, info);
  siglongjmp(g_jump, 1);
}

struct sigaction Action(void (*handler)(int, siginfo_t*, void*)) {
  struct sigaction action = {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaddset(&action.sa_mask, SIGUSR1);
  return action;
}

void Install(int signal, const struct sigaction& action,
             struct sigaction* before = nullptr) {
  HOSTILE_CHECK_EQ(sigaction(signal, &action, before), 0);
}

// The action of `signal` is `wanted`, in every respect.
void ExpectAction(int signal, const struct sigaction& wanted) {
  struct sigaction present;
  HOSTILE_CHECK_EQ(sigaction(signal, nullptr, &present), 0);
  HOSTILE_CHECK(present.sa_sigaction == wanted.sa_sigaction);
  // The C library may add its own SA_RESTORER.
  constexpr int kRestorer = 0x04000000;
  HOSTILE_CHECK_EQ(present.sa_flags & ~kRestorer, wanted.sa_flags & ~kRestorer);
  for (int other = 1; other < NSIG; ++other) {
    HOSTILE_CHECK_EQ(sigismember(&present.sa_mask, other),
                     sigismember(&wanted.sa_mask, other));
  }
}

// Writes to a page that the host itself protected, and expects its handler to
// be called with exactly that.
void ExpectHostSeesFault() {
  void* const page =
      mmap(nullptr, kPageBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  HOSTILE_CHECK(page != MAP_FAILED);
  std::byte* const address = static_cast<std::byte*>(page) + 77;
  g_seen = Seen();
  if (sigsetjmp(g_jump, 1) == 0) {
    Poke(address, std::byte{1});
    Fail(__FILE__, __LINE__, "the host's fault did not happen");
  }
  HOSTILE_CHECK_EQ(g_seen.calls, 1);
  HOSTILE_CHECK_EQ(g_seen.signal, SIGSEGV);
  HOSTILE_CHECK_EQ(g_seen.code, SEGV_ACCERR);
  HOSTILE_CHECK(g_seen.address == address);
  HOSTILE_CHECK(g_seen.usr1_blocked);
  HOSTILE_CHECK(!g_seen.usr2_blocked);
  HOSTILE_CHECK(g_seen.itself_blocked);
  munmap(page, kPageBytes);

  // A null pointer.
  g_seen = Seen();
  if (sigsetjmp(g_jump, 1) == 0) {
    volatile uintptr_t null = 0;
    Peek(reinterpret_cast<const std::byte*>(null));
    Fail(__FILE__, __LINE__, "reading a null pointer did nothing");
  }
  HOSTILE_CHECK_EQ(g_seen.signal, SIGSEGV);
  HOSTILE_CHECK_EQ(g_seen.code, SEGV_MAPERR);
  HOSTILE_CHECK(g_seen.address == nullptr);
}

// Every page of a fresh memory, read and written.
void UsePool(Service& service) {
  Memory memory = Acquire(service, {.image = MakeImage(kPages / 2, 1),
                                    .size_bytes = kPages * kPageBytes});
  for (uint64_t page = 0; page < kPages; ++page) {
    std::byte* const at = memory.base() + page * kPageBytes;
    HOSTILE_CHECK(Peek(at) ==
                  (page < kPages / 2 ? PatternByte(1, page) : std::byte{0}));
    Poke(at, std::byte{6});
    HOSTILE_CHECK(Peek(at) == std::byte{6});
  }
  HOSTILE_CHECK_OK(memory.Release());
}

// Touches past the end, with a host that gets what nobody else wants.
void ExpectHostSeesTrap(Service& service) {
  Memory memory = Acquire(service, {.size_bytes = kPageBytes});
  std::byte* const end = memory.base() + kPageBytes;
  g_seen = Seen();
  if (sigsetjmp(g_jump, 1) == 0) {
    Peek(end);
    Fail(__FILE__, __LINE__, "no trap");
  }
  HOSTILE_CHECK_EQ(g_seen.calls, 1);
  HOSTILE_CHECK(g_seen.signal == SIGBUS || g_seen.signal == SIGSEGV);
  HOSTILE_CHECK(g_seen.address == end);
  HOSTILE_CHECK(g_seen.on_alternate_stack);
  HOSTILE_CHECK_OK(memory.Release());
}

}  // namespace

void HostHandlerBefore(const Setting& setting) {
  // Handlers of unlike kinds, so that a mix-up would show.
  struct sigaction bus = Action(HostHandler);
  bus.sa_flags |= SA_RESTART;
  sigaddset(&bus.sa_mask, SIGHUP);
  const struct sigaction segv = Action(HostHandler);
  Install(SIGBUS, bus);
  Install(SIGSEGV, segv);
  for (int round = 0; round < 2; ++round) {
    std::unique_ptr<Service> first = MakeService(PoolOptions(setting));
    std::unique_ptr<Service> second = MakeService(PoolOptions(setting));
    UsePool(*first);
    ExpectHostSeesFault();
    ExpectHostSeesTrap(*second);
    first = nullptr;
    // One is left: still in front.
    UsePool(*second);
    ExpectHostSeesFault();
    second = nullptr;
    ExpectAction(SIGBUS, bus);
    ExpectAction(SIGSEGV, segv);
  }
  ExpectHostSeesFault();

  // A signal that somebody sent is the host's, and it may return from it.
  Install(SIGSEGV, Action(HostHandlerThatReturns));
  {
    std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
    g_seen = Seen();
    HOSTILE_CHECK_EQ(raise(SIGSEGV), 0);
    HOSTILE_CHECK_EQ(g_seen.calls, 1);
    HOSTILE_CHECK_EQ(g_seen.code, SI_TKILL);
    UsePool(*service);
  }
  // A handler of the old kind, without siginfo.
  struct sigaction old = {};
  old.sa_handler = HostHandlerOld;
  old.sa_flags = SA_ONSTACK;
  Install(SIGSEGV, old);
  {
    std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
    g_seen = Seen();
    if (sigsetjmp(g_jump, 1) == 0) {
      volatile uintptr_t null = 0;
      Peek(reinterpret_cast<const std::byte*>(null));
    }
    HOSTILE_CHECK_EQ(g_seen.calls, 1);
    HOSTILE_CHECK_EQ(g_seen.signal, SIGSEGV);
  }
  ExpectAction(SIGSEGV, old);
  // An ignored signal that is sent stays ignored.
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  Install(SIGBUS, ignore);
  {
    std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
    HOSTILE_CHECK_EQ(raise(SIGBUS), 0);
    UsePool(*service);
  }
  ExpectAction(SIGBUS, ignore);
}

void HostHandlerAfter(const Setting& setting) {
  const struct sigaction front = Action(HostHandlerInFront);
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  Install(SIGBUS, front, &g_chained[0]);
  Install(SIGSEGV, front, &g_chained[1]);
  g_seen = Seen();
  UsePool(*service);
  // Only faults that are signals come by.
  if (setting.resolve == Resolve::kInThread && !setting.by_mappings()) {
    HOSTILE_CHECK(g_seen.calls > 0);
  }

  // Traps come through it too.
  Memory memory =
      Acquire(*service, {.size_bytes = kPageBytes, .trap_callback = CatchTrap});
  TrapInfo trap;
  HOSTILE_CHECK(Traps([&] { Peek(memory.base() + kPageBytes + 5); }, &trap));
  HOSTILE_CHECK_EQ(trap.offset_bytes, static_cast<int64_t>(kPageBytes + 5));
  HOSTILE_CHECK_OK(memory.Release());

  // It stands in front: taking ours out would cut it off.
  const absl::Status refused = UninstallFaultHandler();
  HOSTILE_CHECK(refused.code() == absl::StatusCode::kFailedPrecondition);
  service = nullptr;
  ExpectAction(SIGBUS, front);
  ExpectAction(SIGSEGV, front);

  // A later pool works behind it.
  service = MakeService(PoolOptions(setting));
  UsePool(*service);
}

void HostOwnsHandlers(const Setting& setting) {
  const struct sigaction host = Action(HostHandlerThatAsks);
  Install(SIGBUS, host);
  Install(SIGSEGV, host);
  ServiceOptions options = PoolOptions(setting);
  options.signals = SignalOwnership::kHost;
  {
    std::unique_ptr<Service> service = MakeService(options);
    ExpectAction(SIGBUS, host);
    ExpectAction(SIGSEGV, host);

    UsePool(*service);
    HOSTILE_CHECK(g_seen.outcome == FaultOutcome::kResolved);

    ExpectHostSeesFault();
    HOSTILE_CHECK(g_seen.outcome == FaultOutcome::kNotMine);

    ExpectHostSeesTrap(*service);
    HOSTILE_CHECK(g_seen.outcome == FaultOutcome::kUnhandledTrap);
  }
  ExpectAction(SIGBUS, host);
  ExpectAction(SIGSEGV, host);
  ExpectHostSeesFault();
  HOSTILE_CHECK(g_seen.outcome == FaultOutcome::kNotMine);
}

void ForeignFaultDies(const Setting& setting) {
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  UsePool(*service);
  volatile uintptr_t null = 16;
  Peek(reinterpret_cast<const std::byte*>(null));
}

}  // namespace firsttouch::hostile
