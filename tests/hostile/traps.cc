// Traps in numbers, and traps inside traps.

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "firsttouch/tests/hostile/program.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::hostile {
namespace {

constexpr uint64_t kSize = 16 * kPageBytes;

// What the callbacks below know.
sigjmp_buf g_jump;
TrapInfo g_trap;
std::byte* g_base = nullptr;
int g_depth = 0;
int g_deepest = 0;
std::byte g_seen{};

TrapAction JumpOut(const TrapInfo& trap) {
  g_trap = trap;
  siglongjmp(g_jump, 1);
}

// Touches memory itself: first a page that is only missing, then one outside.
TrapAction TouchAgain(const TrapInfo& trap) {
  ++g_depth;
  if (g_depth > g_deepest) g_deepest = g_depth;
  if (g_depth == 3) {
    g_depth = 0;
    JumpOut(trap);
  }
  g_seen = Peek(g_base + g_depth * kPageBytes);
  Poke(g_base + (g_depth + 8) * kPageBytes, std::byte{3});
  Peek(g_base + kSize + g_depth * kPageBytes);
  return TrapAction::kUnhandled;
}

TrapAction TouchForEver(const TrapInfo& trap) {
  Peek(g_base + kSize + static_cast<uint64_t>(trap.offset_bytes) % kPageBytes);
  return TrapAction::kUnhandled;
}

bool SameMask(const sigset_t& a, const sigset_t& b) {
  for (int signal = 1; signal < NSIG; ++signal) {
    if (sigismember(&a, signal) != sigismember(&b, signal)) return false;
  }
  return true;
}

// Touches outside the end, a read or a write, and looks at what was told.
__attribute__((noinline)) void TrapOnce(const Service& service,
                                        const Memory& memory, int i) {
  std::byte* const base = memory.base();
  const uint64_t offset = kSize + static_cast<uint64_t>(i) * 61;
  const bool write = i % 2 != 0;
  // The mask is not saved: the trap itself must leave it as it was.
  if (sigsetjmp(g_jump, 0) == 0) {
    if (write) {
      Poke(base + offset, std::byte{1});
    } else {
      Peek(base + offset);
    }
    Fail(__FILE__, __LINE__, absl::StrCat("no trap at offset ", offset));
  }
  HOSTILE_CHECK_EQ(g_trap.offset_bytes, static_cast<int64_t>(offset));
  HOSTILE_CHECK_EQ(g_trap.size_bytes, kSize);
  HOSTILE_CHECK_EQ(g_trap.address, reinterpret_cast<uintptr_t>(base + offset));
  HOSTILE_CHECK(g_trap.access == (write ? Access::kWrite : Access::kRead));
  HOSTILE_CHECK_EQ(g_trap.instance, memory.instance());
  HOSTILE_CHECK_EQ(g_trap.memory, memory.memory_index());
  HOSTILE_CHECK_EQ(g_trap.pool_id, service.pool_id());
  HOSTILE_CHECK(g_trap.leased);
  HOSTILE_CHECK(g_trap.user == &g_trap);
  HOSTILE_CHECK(std::strcmp(g_trap.pool_name, "hostile") == 0);
  HOSTILE_CHECK(g_trap.program_counter != 0);
}

// One round of traps inside traps.
__attribute__((noinline)) void NestOnce(Service& service,
                                        const ImageRef& image) {
  Memory memory = Acquire(
      service,
      {.image = image, .size_bytes = kSize, .trap_callback = TouchAgain});
  g_base = memory.base();
  g_deepest = 0;
  if (sigsetjmp(g_jump, 1) == 0) {
    Peek(g_base + kSize);
    Fail(__FILE__, __LINE__, "no trap");
  }
  HOSTILE_CHECK_EQ(g_deepest, 3);
  // The trap of the trap of the trap.
  HOSTILE_CHECK_EQ(g_trap.offset_bytes,
                   static_cast<int64_t>(kSize + 2 * kPageBytes));
  HOSTILE_CHECK(g_seen == PatternByte(1, 2));
  HOSTILE_CHECK(Peek(g_base + 9 * kPageBytes) == std::byte{3});
  HOSTILE_CHECK(Peek(g_base + 10 * kPageBytes) == std::byte{3});
  HOSTILE_CHECK(Peek(g_base + 11 * kPageBytes) == std::byte{0});
  HOSTILE_CHECK_OK(memory.Release());
}

}  // namespace

void ThousandTraps(const Setting& setting) {
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  Memory memory = Acquire(
      *service,
      {.size_bytes = kSize, .trap_callback = JumpOut, .trap_user = &g_trap});
  std::byte* const base = memory.base();
  sigset_t before, after;
  sigemptyset(&before);
  sigaddset(&before, SIGUSR2);
  HOSTILE_CHECK_EQ(pthread_sigmask(SIG_SETMASK, &before, nullptr), 0);
  for (int i = 0; i < 1000; ++i) TrapOnce(*service, memory, i);
  HOSTILE_CHECK_EQ(pthread_sigmask(SIG_SETMASK, nullptr, &after), 0);
  HOSTILE_CHECK(SameMask(before, after));
  HOSTILE_CHECK_EQ(service->Stats().traps, 1000u);
  // And the memory is still good.
  Poke(base, std::byte{5});
  HOSTILE_CHECK(Peek(base) == std::byte{5});
  HOSTILE_CHECK_OK(memory.Release());
}

void TrapsInTrap(const Setting& setting) {
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  const ImageRef image = MakeImage(8, 1);
  for (int round = 0; round < 100; ++round) NestOnce(*service, image);
  HOSTILE_CHECK_EQ(service->Stats().traps, 300u);
}

void TrapsInTrapForEver(const Setting& setting) {
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  Memory memory =
      Acquire(*service, {.size_bytes = kSize, .trap_callback = TouchForEver});
  g_base = memory.base();
  Peek(g_base + kSize);
}

}  // namespace firsttouch::hostile
