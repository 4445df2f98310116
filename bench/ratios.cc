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
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmark/benchmark.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/readings.h"
#include "firsttouch/bench/report.h"
#include "firsttouch/bench/report.pb.h"
#include "firsttouch/locator/locator.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/units.h"

ABSL_FLAG(int32_t, rounds, 21, "how often each pair is measured");
ABSL_FLAG(int32_t, repeats, 5,
          "measurements of each side in a round, of which the best counts");

namespace firsttouch::bench {
namespace {

// Prepares something, does it, and returns how long doing it took, in ns. Ends
// the program unless counters say that all of it took place meanwhile.
using Measure = std::function<double()>;

// What a counter has counted while something was timed.
void MustBe(const char* what, uint64_t counted, uint64_t least,
            uint64_t most = UINT64_MAX) {
  if (counted >= least && counted <= most) return;
  Die(absl::StrCat("what was timed did not take place: ", counted, " ", what,
                   " were counted, of at least ", least,
                   most == UINT64_MAX ? "" : absl::StrCat(", at most ", most)));
}

uint64_t FilledPages(const ServiceStats& stats) {
  return stats.pages_mapped + stats.pages_copied + stats.pages_zeroed +
         stats.pages_prefilled;
}

// Page faults that the kernel resolves by itself for `pages` pages: one each,
// or one for 16 that it maps around a read of a file.
constexpr uint64_t kFaultAroundPages = 16;

// First touches.

// Bytes that one measurement of a first touch covers, a byte in each page.
constexpr uint64_t kTouchBytes = 4 << 20;
constexpr uint64_t kTouchPages = kTouchBytes / kPageBytes;
// With what is there already at the end of a cold memory's image.
constexpr uint64_t kColdBytes = kTouchBytes + (64 << 10);
static_assert(kColdReadPages * kPageBytes <= kColdBytes - kTouchBytes);
constexpr uint64_t kFillBytes = 64 << 10;

// A first touch of memory of an image, or of zeroes; in a pool, or of what the
// kernel does by itself: anonymous memory, or a private mapping of the image's
// file (which the kernel maps 64 KiB at a time around a read).
struct Touch {
  Access access = Access::kRead;
  bool zeroes = false;
  uint64_t fault_around_bytes = kFillBytes;
  Backing backing = Backing::kShared;
  Resolve resolve = Resolve::kInThread;
};

double TimeOf(const Touch& touch, std::byte* base) {
  const uint64_t start = NowTicks();
  if (touch.access == Access::kRead) {
    ReadEachPage(base, kTouchBytes);
  } else {
    WriteEachPage(base, kTouchBytes);
  }
  return NsSince(start);
}

std::shared_ptr<Service> MakePool(ServiceOptions options) {
  return OrDie(Service::Create(std::move(options)));
}

ImageRef ImageOf(const Touch& touch) {
  return touch.zeroes ? nullptr : PatternImage(kColdBytes);
}

Measure InPool(const Touch& touch) {
  const auto pool = MakePool(
      {.name = "touch",
       .layout = OneSlot(kColdBytes, touch.fault_around_bytes),
       .supply = ChoiceOf(Supply::kUserfaultfd, touch.backing, touch.resolve),
       // Nothing is made private before it is touched.
       .retained_pages_limit = 0});
  return [=, image = ImageOf(touch)] {
    const Memory memory = ColdMemory(*pool, image, kColdBytes);
    const ServiceStats before = pool->Stats();
    const double ns = TimeOf(touch, memory.base());
    const ServiceStats after = pool->Stats();
    MustBe("faults", after.faults() - before.faults(), kTouchBytes >> 20);
    // A handler thread counts its last fill after it has let the guest go on.
    MustBe("pages", FilledPages(after) - FilledPages(before),
           touch.resolve == Resolve::kHandlerThread
               ? kTouchPages - kFillBytes / kPageBytes
               : kTouchPages);
    return ns;
  };
}

Measure InMapping(const Touch& touch) {
  const auto mapping = std::make_shared<Mapping>(kColdBytes, ImageOf(touch));
  return [=] {
    mapping->MapAnew();
    const uint64_t before = MinorFaults();
    const double ns = TimeOf(touch, mapping->base());
    MustBe("page faults", MinorFaults() - before,
           touch.access == Access::kRead ? kTouchPages / kFaultAroundPages
                                         : kTouchPages);
    return ns;
  };
}

// memcpy from an image into fresh anonymous memory, 64 KiB at a time.
Measure Copy() {
  const auto mapping = std::make_shared<Mapping>(kTouchBytes);
  return [=, image = PatternImage(kTouchBytes)] {
    mapping->MapAnew();
    const uint64_t before = MinorFaults();
    const uint64_t start = NowTicks();
    for (uint64_t at = 0; at < kTouchBytes; at += kFillBytes) {
      memcpy(mapping->base() + at, image->data() + at, kFillBytes);
    }
    const double ns = NsSince(start);
    MustBe("page faults", MinorFaults() - before, kTouchPages);
    return ns;
  };
}

// Leaving the bounds and coming back by siglongjmp, so many times. One thread
// traps at a time.
constexpr int kTraps = 200;

sigjmp_buf g_back;
const std::byte* g_guard;
bool g_restore_mask;
uint64_t g_traps;

TrapAction JumpBack(const TrapInfo&) {
  ++g_traps;
  siglongjmp(g_back, 1);
}

void OnSegv(int signal, siginfo_t* info, void* ucontext) {
  const auto* const address = static_cast<const std::byte*>(info->si_addr);
  if (address >= g_guard && address < g_guard + kPageBytes) {
    if (g_restore_mask) {
      pthread_sigmask(SIG_SETMASK,
                      &static_cast<ucontext_t*>(ucontext)->uc_sigmask, nullptr);
    }
    ++g_traps;
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
  g_traps = 0;
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
  const double ns = NsSince(start);
  MustBe("traps", g_traps, kTraps, kTraps);
  return ns;
}

// By a touch behind the size of a memory in a pool.
Measure TrapInPool(Access access) {
  const auto pool =
      MakePool({.name = "traps",
                .layout = OneSlot(kTouchBytes),
                .supply = ChoiceOf(Supply::kUserfaultfd, Backing::kShared),
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
Measure TrapInMapping(Access access, bool restore_mask) {
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

// Pools that exist in the locator only, for as long as the program runs:
// nothing is mapped, nobody touches them. Returns addresses in them.
std::vector<uintptr_t> AddressesInPools(uint32_t pools) {
  constexpr uint32_t kSlots = 64;
  constexpr uint64_t kStrideBytes = (uint64_t{6} << 30) + (64 << 10);
  auto* const sizes = new std::vector<std::atomic<uint64_t>>(pools * kSlots);
  std::mt19937_64 random(1);
  for (std::atomic<uint64_t>& size : *sizes) size = random() >> 32;
  std::vector<const PoolEntry*> entries;
  uintptr_t next = uintptr_t{1} << 44;
  for (uint32_t p = 0; p < pools; ++p) {
    auto* const entry = new PoolEntry;
    entry->base = next;
    entry->first_memory_offset_bytes = 2 << 20;
    entry->slot_stride_bytes = kStrideBytes;
    entry->max_memory_bytes = uint64_t{4} << 30;
    entry->slots = kSlots;
    entry->memories_per_instance = 2;
    entry->bytes = entry->first_memory_offset_bytes + kSlots * kStrideBytes;
    entry->first_size_bytes = &(*sizes)[p * kSlots];
    entry->size_stride_bytes = sizeof(*sizes)[0];
    OrDie(RegisterPool(entry));
    next += (entry->bytes / kLocatorChunkBytes + 1) * kLocatorChunkBytes;
    entries.push_back(entry);
  }
  std::vector<uintptr_t> addresses(1024);
  for (uintptr_t& address : addresses) {
    const PoolEntry& entry = *entries[random() % pools];
    address = entry.base + random() % entry.bytes;
  }
  return addresses;
}

// Looks them up, where none waits for the one before, so that the processor
// overlaps them; or where each does.
Measure LookUp(const std::vector<uintptr_t>& addresses, bool one_by_one) {
  return [=] {
    // Always zero, which the compiler cannot know: the next address waits for
    // the last result.
    uint64_t none = 0;
    benchmark::DoNotOptimize(none);
    uint64_t last = 0;
    const uint64_t start = NowTicks();
    for (int done = 0; done < kLookups; done += addresses.size()) {
      if (one_by_one) {
        for (uintptr_t address : addresses) {
          const Location location = Locate(address + (last & none));
          last = location.in_bounds ? location.page : location.size_bytes;
        }
      } else {
        for (uintptr_t address : addresses) {
          benchmark::DoNotOptimize(Locate(address));
        }
      }
    }
    const double ns = NsSince(start);
    benchmark::DoNotOptimize(last);
    return ns;
  };
}

// What is compared, how many units a measurement does, and both sides of it.
struct Contest {
  Ratio row;
  double units;
  Measure ours;
  Measure theirs;  // may be empty
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
  constexpr uint64_t kFills = kTouchBytes / kFillBytes;
  constexpr char kPage[] = "4 KiB page";
  constexpr Touch kRead;
  constexpr Touch kWrite = {.access = Access::kWrite};
  constexpr Touch kZeroes = {.access = Access::kWrite, .zeroes = true};
  constexpr Touch kSingle = {.access = Access::kWrite,
                             .fault_around_bytes = kPageBytes};
  constexpr Touch kSingleZeroes = {.access = Access::kWrite,
                                   .zeroes = true,
                                   .fault_around_bytes = kPageBytes};
  std::vector<Contest> contests;
  // With what is to be reached: a ratio, or ns where there is no other.
  const auto add = [&](const std::string& name, const std::string& unit,
                       double units, const std::string& ours_name,
                       const Measure& ours, const std::string& theirs_name,
                       const Measure& theirs,
                       std::optional<double> goal = std::nullopt) {
    Contest& contest = contests.emplace_back(Contest{{}, units, ours, theirs});
    contest.row.set_name(name);
    contest.row.set_ours(ours_name);
    contest.row.set_theirs(theirs_name);
    contest.row.set_unit(unit);
    if (goal.has_value()) contest.row.set_goal(*goal);
  };
  add("read image pages, shared", kPage, kTouchPages, "CONTINUE, up to 1 MiB",
      InPool(kRead), "private file mapping", InMapping(kRead), 1.3);
  add("write image pages, shared", kPage, kTouchPages, "COPY, up to 64 KiB",
      InPool(kWrite), "copy-on-write fault", InMapping(kWrite));
  for (Access access : {Access::kRead, Access::kWrite}) {
    const std::string name =
        absl::StrCat("fill 64 KiB by ", AccessName(access), ", copied");
    const Touch copied = {.access = access, .backing = Backing::kCopied};
    Touch handler = copied;
    handler.resolve = Resolve::kHandlerThread;
    add(name, "64 KiB", kFills, "COPY in-thread", InPool(copied),
        "memcpy into fresh memory", Copy(), 0.8);
    add(name, "64 KiB", kFills, "COPY in-thread", InPool(copied),
        "COPY by handler thread", InPool(handler), 0.45);
  }
  add("write zero pages", kPage, kTouchPages, "COPY, up to 64 KiB",
      InPool(kZeroes), "anonymous fault", InMapping(kZeroes));
  add("write image pages, one by one", kPage, kTouchPages, "COPY of a page",
      InPool(kSingle), "copy-on-write fault", InMapping(kWrite));
  add("write zero pages, one by one", kPage, kTouchPages, "a fault for each",
      InPool(kSingleZeroes), "anonymous fault", InMapping(kZeroes));
  add("write image pages, one by one", "fault", kTouchPages, "with sa_mask",
      InPool(kSingle), "without sa_mask", WithoutMask(InPool(kSingle)));
  for (Access access : {Access::kRead, Access::kWrite}) {
    for (bool mask : {false, true}) {
      add(absl::StrCat("trap by ", AccessName(access)), "trap and siglongjmp",
          kTraps, "SIGBUS, in-thread", TrapInPool(access),
          mask ? "the same, mask restored" : "mprotect + SIGSEGV",
          TrapInMapping(access, mask), 1.2);
    }
  }
  const std::vector<uintptr_t> addresses = AddressesInPools(16);
  add("locate an address", "lookup", kLookups, "16 pools, overlapping",
      LookUp(addresses, false), "", nullptr, 5);
  add("locate an address", "lookup", kLookups, "16 pools, one by one",
      LookUp(addresses, true), "", nullptr);
  return contests;
}

// For one unit, the least disturbed of some measurements.
double BestOf(const Measure& measure, int repeats, double units) {
  double best = measure();
  for (int i = 1; i < repeats; ++i) best = std::min(best, measure());
  return best / units;
}

void Run(int repeats, RatioReport& report) {
  const std::vector<Contest> contests = Contests();
  const auto measure = [&](size_t i) -> std::optional<Ratio> {
    const Contest& contest = contests[i];
    Ratio sample = contest.row;
    const double ours = BestOf(contest.ours, repeats, contest.units);
    sample.set_ours_ns(ours);
    sample.set_ratio(ours);
    if (contest.theirs == nullptr) return sample;
    const double theirs = BestOf(contest.theirs, repeats, contest.units);
    sample.set_theirs_ns(theirs);
    sample.set_ratio(ours / theirs);
    return sample;
  };
  const auto samples =
      TakeTurns<Ratio>(report.rounds(), contests.size(), measure);
  AddMedians(samples, report.mutable_ratios());
  for (size_t i = 0; i < contests.size(); ++i) {
    Ratio& ratio = *report.mutable_ratios(static_cast<int>(i));
    std::vector<double> ratios;
    for (const Ratio& sample : samples[i]) ratios.push_back(sample.ratio());
    ratio.set_lower_quartile(Quantile(ratios, 0.25));
    ratio.set_upper_quartile(Quantile(ratios, 0.75));
    if (ratio.has_goal()) ratio.set_reached(ratio.ratio() <= ratio.goal());
  }
}

std::string ToText(const RatioReport& report) {
  std::string text = MachineText(report.machine());
  absl::StrAppendFormat(
      &text, "%d rounds; ratio: median (quartiles) of ours / theirs\n\n",
      report.rounds());
  for (const Ratio& ratio : report.ratios()) {
    const bool alone = !ratio.has_theirs_ns();
    const auto line = [&](const std::string& name, double value) {
      absl::StrAppendFormat(&text, "  %-24s %8s ", name, Short(value));
    };
    absl::StrAppend(&text, ratio.name(), ", per ", ratio.unit(), "\n");
    line(ratio.ours(), ratio.ours_ns());
    if (!alone) {
      absl::StrAppend(&text, "ns\n");
      line(ratio.theirs(), ratio.theirs_ns());
    }
    absl::StrAppend(&text, "ns\n");
    line(alone ? "time" : "ratio", ratio.ratio());
    absl::StrAppendFormat(&text, "%s (%s to %s)", alone ? "ns" : "  ",
                          Short(ratio.lower_quartile()),
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
  ParseFlags(argc, argv,
             "Costs of firsttouch as multiples of the kernel's own.");
  const int rounds = absl::GetFlag(FLAGS_rounds);
  const int repeats = absl::GetFlag(FLAGS_repeats);
  if (rounds < 1 || repeats < 1) {
    Die("--rounds and --repeats must be at least 1");
  }
  auto report = NewReport<RatioReport>(rounds);
  Run(repeats, report);
  return Print(report, ToText(report));
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
