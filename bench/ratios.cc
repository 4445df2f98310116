// What firsttouch costs, as a multiple of the kernel's own way of the same
// thing, both measured in turn in this process.
//
//   bazel run -c opt //bench:ratios
//   bazel run -c opt //bench:ratios -- --format=json
//
// A ratio is taken within a round, of the best of some measurements of each
// side that are some ms apart; the table shows the median of the rounds' ratios
// and their quartiles. Exits with 0 whether a goal was reached or not: a busy
// machine must not fail a build.

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmark/benchmark.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/report.h"
#include "firsttouch/bench/report.pb.h"
#include "firsttouch/bench/timing.h"
#include "firsttouch/locator/locator.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/units.h"

ABSL_FLAG(int32_t, rounds, 21, "how often each pair is measured");
ABSL_FLAG(int32_t, repeats, 5,
          "measurements of each side in a round, of which the best counts");

namespace firsttouch::bench {
namespace {

// Prepares something, does it, and returns how long doing it took, in ns.
using Measure = std::function<double()>;

// First touches.

// Bytes that one measurement of a first touch covers, a byte in each page.
constexpr uint64_t kTouchBytes = 4 << 20;
constexpr uint64_t kFillBytes = 64 << 10;

// What is there at the first touch.
enum class Content : uint8_t { kImage, kZero };

// Pages of a pool.
struct PoolTouch {
  Content content = Content::kImage;
  Access access = Access::kRead;
  uint64_t fault_around_bytes = kFillBytes;
  Backing backing = Backing::kShared;
  Resolve resolve = Resolve::kInThread;
};

// What the kernel does by itself: anonymous memory, or a private mapping of the
// image's file (which the kernel maps 64 KiB at a time around a read).
struct KernelTouch {
  Content content = Content::kImage;
  Access access = Access::kRead;
};

ImageRef ImageFor(Content content) {
  return content == Content::kImage ? PatternImage(kTouchBytes) : nullptr;
}

void TouchEachPage(Access access, std::byte* base, uint64_t bytes) {
  if (access == Access::kRead) {
    ReadEachPage(base, bytes);
  } else {
    WriteEachPage(base, bytes);
  }
}

Measure MeasureTouch(const PoolTouch& touch) {
  const std::shared_ptr<Service> pool = MakePool(
      {.name = "touch",
       .layout = OneSlot(kTouchBytes, touch.fault_around_bytes),
       .supply = ChoiceOf(Supply::kUserfaultfd, touch.backing, touch.resolve),
       // Nothing is made private before it is touched.
       .retained_pages_limit = 0});
  return [=, image = ImageFor(touch.content)] {
    const Memory memory = ColdMemory(*pool, image, kTouchBytes);
    const uint64_t start = NowTicks();
    TouchEachPage(touch.access, memory.base(), kTouchBytes);
    return NsSince(start);
  };
}

Measure MeasureTouch(const KernelTouch& touch) {
  const auto mapping =
      std::make_shared<Mapping>(kTouchBytes, ImageFor(touch.content));
  return [=] {
    mapping->MapAnew();
    const uint64_t start = NowTicks();
    TouchEachPage(touch.access, mapping->base(), kTouchBytes);
    return NsSince(start);
  };
}

// memcpy from an image into fresh anonymous memory, 64 KiB at a time.
Measure MeasureCopy() {
  const auto mapping = std::make_shared<Mapping>(kTouchBytes);
  return [=, image = PatternImage(kTouchBytes)] {
    mapping->MapAnew();
    const uint64_t start = NowTicks();
    for (uint64_t at = 0; at < kTouchBytes; at += kFillBytes) {
      memcpy(mapping->base() + at, image->data() + at, kFillBytes);
    }
    return NsSince(start);
  };
}

// Leaving the bounds and coming back by siglongjmp, so many times. One thread
// traps at a time.
constexpr int kTraps = 200;

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

// Touches `address` kTraps times and comes back by g_back each time; in ns. The
// mask need not be saved: neither handler leaves one behind.
double TimeOfTraps(volatile std::byte* address, Access access) {
  // Kept over siglongjmp.
  volatile int left = kTraps;
  const volatile uint64_t start = NowTicks();
  while (left > 0) {
    left = left - 1;
    if (sigsetjmp(g_back, 0) != 0) continue;
    if (access == Access::kWrite) {
      *address = std::byte{1};
    } else {
      static_cast<void>(*address);
    }
  }
  return NsSince(start);
}

// By a touch behind the size of a memory in a pool.
Measure MeasurePoolTrap(Resolve resolve, Access access) {
  const std::shared_ptr<Service> pool = MakePool(
      {.name = "traps",
       .layout = OneSlot(kTouchBytes),
       .supply = ChoiceOf(Supply::kUserfaultfd, Backing::kShared, resolve),
       .trap_callback = JumpBack});
  const auto memory = std::make_shared<Memory>(
      OrDie(pool->Acquire({.size_bytes = kPageBytes})));
  return [=] {
    static_cast<void>(pool);  // the memory is in it
    return TimeOfTraps(memory->base() + 2 * kPageBytes, access);
  };
}

// The kernel's own way: a page made inaccessible by mprotect(2) once, before
// the measurement, and the leanest SIGSEGV handler that is still right: on an
// alternate stack, compares the address with one range and jumps, with no mask
// to save or restore. With `restore_mask` it also puts back the interrupted
// code's mask before it jumps, as a pool does: a host's handler may have been
// in front of it.
Measure MeasureKernelTrap(Access access, bool restore_mask) {
  const auto mapping = std::make_shared<Mapping>(4 * kPageBytes);
  OrDie(EnsureAlternateStack());
  std::byte* const guard = mapping->base() + 2 * kPageBytes;
  if (mprotect(guard, kPageBytes, PROT_NONE) != 0) Die("mprotect failed");
  return [=] {
    static_cast<void>(mapping);  // the guard is in it
    // In place of the pools' handler, not behind it.
    struct sigaction action = {};
    action.sa_sigaction = OnSegv;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    struct sigaction before;
    if (sigaction(SIGSEGV, &action, &before) != 0) Die("sigaction failed");
    g_guard = guard;
    g_restore_mask = restore_mask;
    const double ns = TimeOfTraps(guard, access);
    sigaction(SIGSEGV, &before, nullptr);
    return ns;
  };
}

// Lookups: from an address to the memory that it lies in.
constexpr int kLookups = 100 * 1024;

// Pools that exist in the locator only: nothing is mapped, nobody touches them.
class LocatorFixture {
 public:
  explicit LocatorFixture(uint32_t pools) : sizes_(pools * kSlots) {
    constexpr uint64_t kStrideBytes = (uint64_t{6} << 30) + (64 << 10);
    std::mt19937_64 random(1);
    uintptr_t next = uintptr_t{1} << 44;
    for (uint32_t p = 0; p < pools; ++p) {
      auto entry = std::make_unique<PoolEntry>();
      entry->base = next;
      entry->first_memory_offset_bytes = 2 << 20;
      entry->slot_stride_bytes = kStrideBytes;
      entry->max_memory_bytes = uint64_t{4} << 30;
      entry->slots = kSlots;
      entry->memories_per_instance = 2;
      entry->bytes = entry->first_memory_offset_bytes + kSlots * kStrideBytes;
      entry->first_size_bytes = &sizes_[p * kSlots];
      entry->size_stride_bytes = sizeof sizes_[0];
      OrDie(RegisterPool(entry.get()));
      next += (entry->bytes / kLocatorChunkBytes + 1) * kLocatorChunkBytes;
      pools_.push_back(std::move(entry));
    }
    for (std::atomic<uint64_t>& size : sizes_) size = random() >> 32;
    for (int i = 0; i < 1024; ++i) {
      const PoolEntry& entry = *pools_[random() % pools];
      addresses_.push_back(entry.base + random() % entry.bytes);
    }
  }
  LocatorFixture(const LocatorFixture&) = delete;
  LocatorFixture& operator=(const LocatorFixture&) = delete;
  ~LocatorFixture() {
    for (const auto& pool : pools_) UnregisterPool(pool.get());
  }

  // Calls `look_up` with each address, kLookups times in all; in ns.
  template <typename LookUp>
  double Time(LookUp look_up) const {
    const uint64_t start = NowTicks();
    for (int done = 0; done < kLookups; done += addresses_.size()) {
      for (uintptr_t address : addresses_) look_up(address);
    }
    return NsSince(start);
  }

 private:
  static constexpr uint32_t kSlots = 64;
  std::vector<std::atomic<uint64_t>> sizes_;
  std::vector<std::unique_ptr<PoolEntry>> pools_;
  std::vector<uintptr_t> addresses_;
};

// Where none waits for the one before: the processor overlaps them.
Measure MeasureOverlapping(std::shared_ptr<LocatorFixture> fixture) {
  return [=] {
    return fixture->Time(
        [](uintptr_t address) { benchmark::DoNotOptimize(Locate(address)); });
  };
}

// Where each waits for the one before.
Measure MeasureOneByOne(std::shared_ptr<LocatorFixture> fixture) {
  return [=] {
    // Always zero, which the compiler cannot know: the next address waits for
    // the last result.
    uint64_t none = 0;
    benchmark::DoNotOptimize(none);
    uint64_t last = 0;
    const double ns = fixture->Time([&](uintptr_t address) {
      const Location location = Locate(address + (last & none));
      last = location.in_bounds ? location.page : location.size_bytes;
    });
    benchmark::DoNotOptimize(last);
    return ns;
  };
}

// Growing a memory by 64 KiB, so many times, with a write to each new page. The
// kernel's own way is a reservation that is opened by mprotect(2).
constexpr uint64_t kSteps = 32;
constexpr uint64_t kGrownBytes = (kSteps + 1) * kFillBytes;

Measure MeasureGrow() {
  const std::shared_ptr<Service> pool =
      MakePool({.name = "grow",
                .layout = OneSlot(kGrownBytes),
                .supply = ChoiceOf(Supply::kUserfaultfd, Backing::kShared)});
  return [=] {
    Memory memory = ColdMemory(*pool, nullptr, kFillBytes);
    const uint64_t start = NowTicks();
    for (uint64_t size = kFillBytes; size < kGrownBytes; size += kFillBytes) {
      OrDie(memory.Grow(size + kFillBytes));
      WriteEachPage(memory.base() + size, kFillBytes);
    }
    return NsSince(start);
  };
}

Measure MeasureGrowByMprotect() {
  const auto mapping = std::make_shared<Mapping>(kGrownBytes);
  return [=] {
    mapping->MapAnew();
    const auto set = [&](uint64_t from, uint64_t bytes, int access) {
      if (mprotect(mapping->base() + from, bytes, access) != 0) {
        Die("mprotect failed");
      }
    };
    set(kFillBytes, kGrownBytes - kFillBytes, PROT_NONE);
    const uint64_t start = NowTicks();
    for (uint64_t size = kFillBytes; size < kGrownBytes; size += kFillBytes) {
      set(size, kFillBytes, PROT_READ | PROT_WRITE);
      WriteEachPage(mapping->base() + size, kFillBytes);
    }
    return NsSince(start);
  };
}

struct Contest {
  std::string name;
  std::string ours_name;
  std::string theirs_name;
  // What a cost is told for, and how many of these a measurement does.
  std::string unit;
  double units;
  Measure ours;
  Measure theirs;  // may be empty: `goal` is in ns then
  std::optional<double> goal;
};

// The same with a fault handler that blocks no signal while it works.
Measure WithoutMask(Measure measure) {
  return [measure = std::move(measure)] {
    struct sigaction installed = {};
    sigaction(SIGBUS, nullptr, &installed);
    struct sigaction unmasked = installed;
    sigemptyset(&unmasked.sa_mask);
    sigaction(SIGBUS, &unmasked, nullptr);
    const double ns = measure();
    sigaction(SIGBUS, &installed, nullptr);
    return ns;
  };
}

std::vector<Contest> Contests() {
  constexpr uint64_t kPages = kTouchBytes / kPageBytes;
  constexpr uint64_t kFills = kTouchBytes / kFillBytes;
  std::vector<Contest> contests;

  contests.push_back({"read image pages, shared", "CONTINUE, up to 1 MiB",
                      "private file mapping", "4 KiB page", kPages,
                      MeasureTouch(PoolTouch{}), MeasureTouch(KernelTouch{}),
                      1.3});
  contests.push_back(
      {"write image pages, shared", "COPY, up to 64 KiB", "copy-on-write fault",
       "4 KiB page", kPages, MeasureTouch(PoolTouch{.access = Access::kWrite}),
       MeasureTouch(KernelTouch{.access = Access::kWrite}), std::nullopt});

  for (Access access : {Access::kRead, Access::kWrite}) {
    const std::string name =
        absl::StrCat("fill 64 KiB by ", AccessName(access), ", copied");
    const PoolTouch copied{.access = access, .backing = Backing::kCopied};
    PoolTouch handler = copied;
    handler.resolve = Resolve::kHandlerThread;
    contests.push_back({name, "COPY in-thread", "memcpy into fresh memory",
                        "64 KiB", kFills, MeasureTouch(copied), MeasureCopy(),
                        0.8});
    contests.push_back({name, "COPY in-thread", "COPY by handler thread",
                        "64 KiB", kFills, MeasureTouch(copied),
                        MeasureTouch(handler), 0.45});
  }
  contests.push_back({"write zero pages", "COPY, up to 64 KiB",
                      "anonymous fault", "4 KiB page", kPages,
                      MeasureTouch(PoolTouch{.content = Content::kZero,
                                             .access = Access::kWrite}),
                      MeasureTouch(KernelTouch{.content = Content::kZero,
                                               .access = Access::kWrite}),
                      std::nullopt});

  const PoolTouch single_pages{.access = Access::kWrite,
                               .fault_around_bytes = kPageBytes};
  PoolTouch single_zeroes = single_pages;
  single_zeroes.content = Content::kZero;
  contests.push_back(
      {"write image pages, one by one", "COPY of a page", "copy-on-write fault",
       "4 KiB page", kPages, MeasureTouch(single_pages),
       MeasureTouch(KernelTouch{.access = Access::kWrite}), std::nullopt});
  contests.push_back({"write zero pages, one by one", "a fault for each",
                      "anonymous fault", "4 KiB page", kPages,
                      MeasureTouch(single_zeroes),
                      MeasureTouch(KernelTouch{.content = Content::kZero,
                                               .access = Access::kWrite}),
                      std::nullopt});
  contests.push_back({"write image pages, one by one", "with sa_mask",
                      "without sa_mask", "fault", kPages,
                      MeasureTouch(single_pages),
                      WithoutMask(MeasureTouch(single_pages)), std::nullopt});

  for (Access access : {Access::kRead, Access::kWrite}) {
    for (bool restore_mask : {false, true}) {
      contests.push_back(
          {absl::StrCat("trap by ", AccessName(access)), "SIGBUS, in-thread",
           restore_mask ? "the same, mask restored" : "mprotect + SIGSEGV",
           "trap and siglongjmp", kTraps,
           MeasurePoolTrap(Resolve::kInThread, access),
           MeasureKernelTrap(access, restore_mask), 1.2});
    }
  }

  const auto fixture = std::make_shared<LocatorFixture>(16);
  contests.push_back({"locate an address", "16 pools, overlapping", "",
                      "lookup", kLookups, MeasureOverlapping(fixture), nullptr,
                      5.0});
  contests.push_back({"locate an address", "16 pools, one by one", "", "lookup",
                      kLookups, MeasureOneByOne(fixture), nullptr,
                      std::nullopt});
  contests.push_back({"grow, and write to what is new", "Memory::Grow",
                      "mprotect", "64 KiB", kSteps, MeasureGrow(),
                      MeasureGrowByMprotect(), std::nullopt});
  return contests;
}

// For one unit, the least disturbed of some measurements.
double BestOf(const Measure& measure, int repeats, double units) {
  double best = measure();
  for (int i = 1; i < repeats; ++i) best = std::min(best, measure());
  return best / units;
}

RatioReport Run(int rounds, int repeats) {
  RatioReport report;
  *report.mutable_machine() = ThisMachine();
  report.set_rounds(rounds);
  const std::vector<Contest> contests = Contests();
  std::vector<std::vector<Ratio>> samples(contests.size());
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < contests.size(); ++i) {
      const Contest& contest = contests[i];
      Ratio& sample = samples[i].emplace_back();
      sample.set_name(contest.name);
      sample.set_ours(contest.ours_name);
      sample.set_theirs(contest.theirs_name);
      sample.set_unit(contest.unit);
      const double ours = BestOf(contest.ours, repeats, contest.units);
      sample.set_ours_ns(ours);
      sample.set_ratio(ours);
      if (contest.theirs == nullptr) continue;
      const double theirs = BestOf(contest.theirs, repeats, contest.units);
      sample.set_theirs_ns(theirs);
      sample.set_ratio(ours / theirs);
    }
  }
  for (size_t i = 0; i < contests.size(); ++i) {
    Ratio& ratio = *report.add_ratios();
    ratio = MedianRow(samples[i]);
    std::vector<double> ratios;
    for (const Ratio& sample : samples[i]) ratios.push_back(sample.ratio());
    ratio.set_lower_quartile(Quantile(ratios, 0.25));
    ratio.set_upper_quartile(Quantile(ratios, 0.75));
    if (!contests[i].goal.has_value()) continue;
    ratio.set_goal(*contests[i].goal);
    ratio.set_reached(ratio.ratio() <= ratio.goal());
  }
  return report;
}

std::string ToText(const RatioReport& report) {
  std::string text = MachineText(report.machine());
  absl::StrAppendFormat(
      &text, "%d rounds; ratio: median (quartiles) of ours / theirs\n\n",
      report.rounds());
  for (const Ratio& ratio : report.ratios()) {
    const bool alone = !ratio.has_theirs_ns();
    absl::StrAppend(&text, ratio.name(), ", per ", ratio.unit(), "\n");
    absl::StrAppendFormat(&text, "  %-24s %8s ns\n", ratio.ours(),
                          Short(ratio.ours_ns()));
    if (!alone) {
      absl::StrAppendFormat(&text, "  %-24s %8s ns\n", ratio.theirs(),
                            Short(ratio.theirs_ns()));
    }
    absl::StrAppendFormat(&text, "  %-24s %8s %s (%s to %s)",
                          alone ? "time" : "ratio", Short(ratio.ratio()),
                          alone ? "ns" : "  ", Short(ratio.lower_quartile()),
                          Short(ratio.upper_quartile()));
    if (ratio.has_goal()) {
      absl::StrAppend(&text, "  goal ", Short(ratio.goal()), ": ",
                      ratio.reached() ? "reached" : "NOT reached");
    }
    absl::StrAppend(&text, "\n\n");
  }
  return text;
}

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "Costs of firsttouch as multiples of the kernel's own.");
  absl::ParseCommandLine(argc, argv);
  CheckFormat();
  const int rounds = absl::GetFlag(FLAGS_rounds);
  const int repeats = absl::GetFlag(FLAGS_repeats);
  if (rounds < 1 || repeats < 1) {
    Die("--rounds and --repeats must be at least 1");
  }
  const RatioReport report = Run(rounds, repeats);
  return Print(report, ToText(report));
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
