// Guests at the end of their stack.

#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "firsttouch/service/signals.h"
#include "firsttouch/tests/hostile/program.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::hostile {
namespace {

// Uses up the stack. Never returns; written so that no compiler makes a loop of
// it or sees that it does not end.
__attribute__((noinline)) int Recurse(volatile char* above, int depth) {
  volatile char frame[512];
  frame[0] = above == nullptr ? 0 : *above;
  if (depth < 0) return frame[0];
  const int below = Recurse(frame, depth + 1);
  return below + frame[0];
}

void OnHostSignal(int signal, siginfo_t* info, void*) {
  // On the alternate stack: there is no other.
  static const char kText[] = "the host's handler was called\n";
  [[maybe_unused]] const ssize_t written =
      write(STDOUT_FILENO, kText, sizeof(kText) - 1);
  _exit(signal == SIGSEGV && info->si_addr != nullptr ? 7 : 8);
}

// Runs `body` on a thread with a stack of 256 KiB above a guard page.
struct Call {
  void (*body)(void*, std::byte* stack_low);
  void* argument;
  std::byte* stack_low;
};

void OnSmallStack(void (*body)(void*, std::byte*), void* argument) {
  constexpr size_t kStackBytes = 256 * 1024;
  void* const mapping =
      mmap(nullptr, kStackBytes + kPageBytes, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  HOSTILE_CHECK(mapping != MAP_FAILED);
  HOSTILE_CHECK_EQ(mprotect(mapping, kPageBytes, PROT_NONE), 0);
  Call call = {body, argument, static_cast<std::byte*>(mapping) + kPageBytes};
  pthread_attr_t attributes;
  HOSTILE_CHECK_EQ(pthread_attr_init(&attributes), 0);
  HOSTILE_CHECK_EQ(
      pthread_attr_setstack(&attributes, call.stack_low, kStackBytes), 0);
  pthread_t thread;
  const auto run = [](void* argument) -> void* {
    Call& call = *static_cast<Call*>(argument);
    call.body(call.argument, call.stack_low);
    return nullptr;
  };
  HOSTILE_CHECK_EQ(pthread_create(&thread, &attributes, run, &call), 0);
  HOSTILE_CHECK_EQ(pthread_join(thread, nullptr), 0);
  pthread_attr_destroy(&attributes);
  munmap(mapping, kStackBytes + kPageBytes);
}

// Takes the stack down to where less than a signal frame is left.
__attribute__((noinline)) void TouchWithoutStack(Memory& memory,
                                                 std::byte* stack_low) {
  volatile std::byte here{};
  const uintptr_t top = reinterpret_cast<uintptr_t>(&here);
  const uintptr_t low = reinterpret_cast<uintptr_t>(stack_low);
  constexpr size_t kLeftBytes = 600;
  volatile char* const rest =
      static_cast<volatile char*>(alloca(top - low - kLeftBytes));
  rest[0] = 1;
  // Missing pages of all kinds, touched without a call that would need stack.
  volatile std::byte* const base = memory.base();
  here = base[0];
  base[kPageBytes] = std::byte{9};
  here = base[20 * kPageBytes];
  base[21 * kPageBytes] = std::byte{9};
}

}  // namespace

void OverflowsStack(const Setting& setting) {
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  Memory memory = Acquire(*service, {.size_bytes = 4 * kPageBytes});
  HOSTILE_CHECK_OK(CheckAlternateStack());
  OnSmallStack(
      [](void*, std::byte*) {
        HOSTILE_CHECK_OK(EnsureAlternateStack());
        Recurse(nullptr, 0);
      },
      nullptr);
}

void OverflowsStackUnderHost(const Setting& setting) {
  struct sigaction action = {};
  action.sa_sigaction = OnHostSignal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  HOSTILE_CHECK_EQ(sigaction(SIGSEGV, &action, nullptr), 0);
  OverflowsStack(setting);
}

void FaultsAtStackEnd(const Setting& setting) {
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  Memory memory = Acquire(
      *service, {.image = MakeImage(8, 1), .size_bytes = 40 * kPageBytes});
  OnSmallStack(
      [](void* argument, std::byte* stack_low) {
        HOSTILE_CHECK_OK(EnsureAlternateStack());
        TouchWithoutStack(*static_cast<Memory*>(argument), stack_low);
      },
      &memory);
  HOSTILE_CHECK(Peek(memory.base()) == PatternByte(1, 0));
  HOSTILE_CHECK(Peek(memory.base() + kPageBytes) == std::byte{9});
  HOSTILE_CHECK(Peek(memory.base() + kPageBytes + 1) == PatternByte(1, 1));
  HOSTILE_CHECK(Peek(memory.base() + 20 * kPageBytes) == std::byte{0});
  HOSTILE_CHECK(Peek(memory.base() + 21 * kPageBytes) == std::byte{9});
}

}  // namespace firsttouch::hostile
