// What the hostile programs share.
//
// Each program is a function that attacks a pool, or uses it as carelessly as
// hosts do, and checks from the inside what it can. hostile_test.cc runs it as
// a child, once for each way of supplying memory, and judges from outside: by
// how the process ended and what it wrote.

#ifndef FIRSTTOUCH_TESTS_HOSTILE_PROGRAM_H_
#define FIRSTTOUCH_TESTS_HOSTILE_PROGRAM_H_

#include <setjmp.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/service/trap.h"

namespace firsttouch::hostile {

// How the pool supplies memory.
struct Setting {
  Backing backing = Backing::kCopied;
  Resolve resolve = Resolve::kInThread;
  Supply supply = Supply::kUserfaultfd;

  // Whether the kernel's own mappings do, without userfaultfd.
  bool by_mappings() const { return IsMappings(supply); }
};

struct Program {
  const char* name;
  // Returns when everything was as it must be; ends the process where not.
  void (*run)(const Setting& setting);
};

// Every program, in the files named after them.
void ReadPastEnd(const Setting& setting);
void WritePastEnd(const Setting& setting);
void ReadIntoGuard(const Setting& setting);
void ReadBeforeStart(const Setting& setting);
void ReadBelowANeighbour(const Setting& setting);
void JumpPastEnd(const Setting& setting);
void ReadAfterRelease(const Setting& setting);
void ReadSizeZero(const Setting& setting);
void LastTenant(const Setting& setting);
void Forks(const Setting& setting);
void ForkedChildTouches(const Setting& setting);
void ForkedChildMakesPool(const Setting& setting);
void ForkedChildOutlivesParent(const Setting& setting);
void OverflowsStack(const Setting& setting);
void OverflowsStackUnderHost(const Setting& setting);
void FaultsAtStackEnd(const Setting& setting);
void TrapsInTrap(const Setting& setting);
void TrapsInTrapForEver(const Setting& setting);
void ThousandTraps(const Setting& setting);
void HostHandlerBefore(const Setting& setting);
void HostHandlerAfter(const Setting& setting);
void HostOwnsHandlers(const Setting& setting);
void ForeignFaultDies(const Setting& setting);
void UserfaultfdClosed(const Setting& setting);
void ManyLeases(const Setting& setting);
void SplitMappings(const Setting& setting);
void RebindsNeighbours(const Setting& setting);
void MixedCycles(const Setting& setting);
void AbortsWithBigPool(const Setting& setting);
void ExitsWhileThreadsRun(const Setting& setting);
void DestroyedWhileBusy(const Setting& setting);

// The exit code by which a program says that this machine lacks something that
// it needs; a line on stdout names it.
inline constexpr int kSkipExitCode = 77;
[[noreturn]] void Skip(const std::string& missing);

// Ends the program with exit code 1 and the text on stderr.
[[noreturn]] void Fail(const char* file, int line, const std::string& text);

#define HOSTILE_CHECK(condition)                                              \
  do {                                                                        \
    if (!(condition)) {                                                       \
      ::firsttouch::hostile::Fail(__FILE__, __LINE__, "not so: " #condition); \
    }                                                                         \
  } while (false)

#define HOSTILE_CHECK_OK(expression)                          \
  do {                                                        \
    const absl::Status hostile_status = (expression);         \
    if (!hostile_status.ok()) {                               \
      ::firsttouch::hostile::Fail(__FILE__, __LINE__,         \
                                  hostile_status.ToString()); \
    }                                                         \
  } while (false)

#define HOSTILE_CHECK_EQ(a, b)                                        \
  do {                                                                \
    const auto hostile_a = (a);                                       \
    const decltype(hostile_a) hostile_b = (b);                        \
    if (!(hostile_a == hostile_b)) {                                  \
      ::firsttouch::hostile::Fail(                                    \
          __FILE__, __LINE__,                                         \
          ::absl::StrCat(#a " is ", hostile_a, ", not ", hostile_b)); \
    }                                                                 \
  } while (false)

// The options of a pool named "hostile": one instance with one memory of up to
// 64 pages and guards of 1 MiB, whose slot everybody gets in turn.
ServiceOptions PoolOptions(const Setting& setting);

// Makes the service; skips where the kernel refuses what the setting needs.
std::unique_ptr<Service> MakeService(ServiceOptions options);

// Acquires a memory or fails.
Memory Acquire(Service& service, const MemoryOptions& options);

// An image whose page p is filled with PatternByte(seed, p), except that every
// fourth page is zero.
ImageRef MakeImage(uint64_t pages, int seed);
std::byte PatternByte(int seed, uint64_t page);

// Touches one byte, in a way that no compiler removes.
std::byte Peek(const std::byte* address);
void Poke(std::byte* address, std::byte value);

// Runs `touch` and catches the trap that it causes. False when there was none.
// Only for memories, or services, whose trap callback is CatchTrap. Can be
// nested.
bool Traps(const std::function<void()>& touch, TrapInfo* info = nullptr);
TrapAction CatchTrap(const TrapInfo& trap);

// Counts from /proc/self.
int CountMappings();
int CountDescriptors();
int CountThreads();

}  // namespace firsttouch::hostile

#endif  // FIRSTTOUCH_TESTS_HOSTILE_PROGRAM_H_
