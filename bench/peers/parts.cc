#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/peers/guest.h"
#include "bench/peers/rows.h"
#include "bench/peers/ways.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/readings.h"
#include "firsttouch/locator/locator.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

// What was computed is needed, and what memory holds may have been read.
template <typename T>
void Keep(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

// Part of `base`, as touch of guest.wat.
uint64_t TouchPages(const Request& request, std::byte* base) {
  const uint64_t step = request.Number("step", 1) * kPageBytes;
  const bool write = request.Number("write", 0) != 0;
  std::byte* at = base + request.Number("first", 0) * kPageBytes;
  uint64_t sum = 0;
  for (uint64_t left = request.Number("count", 256); left > 0; --left) {
    if (write) Store(at, 1);
    sum = std::rotl(sum, 1) ^ Load(at + 8);
    at += step;
  }
  return sum;
}

// The part of the image that is touched so.
void CopyPages(const Request& request, const Image& image, std::byte* base) {
  constexpr uint64_t kAtOnce = 64 << 10;
  const uint64_t first = request.Number("first", 0) * kPageBytes;
  const uint64_t end = first + request.Number("count", 256) *
                                   request.Number("step", 1) * kPageBytes;
  for (uint64_t at = first; at < end; at += kAtOnce) {
    memcpy(base + at, image.data() + at, std::min(kAtOnce, end - at));
  }
}

// From now on the fault handler blocks no signal.
void Unmask() {
  struct sigaction action = {};
  sigaction(SIGBUS, nullptr, &action);
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

// Leaving the bounds and coming back by siglongjmp.

sigjmp_buf g_back;
const std::byte* g_guard;
bool g_restore_mask;
volatile uint64_t g_traps;

TrapAction JumpBack(const TrapInfo&) {
  g_traps = g_traps + 1;
  siglongjmp(g_back, 1);
}

// The leanest handler that is still right: compares the address with one range
// and jumps, with no mask to save or restore; or puts back the interrupted
// code's mask before, as a pool does: a host's handler may have been in front
// of it.
void OnSegv(int signal, siginfo_t* info, void* ucontext) {
  const auto* const address = static_cast<const std::byte*>(info->si_addr);
  if (address >= g_guard && address < g_guard + kPageBytes) {
    if (g_restore_mask) {
      pthread_sigmask(SIG_SETMASK,
                      &static_cast<ucontext_t*>(ucontext)->uc_sigmask, nullptr);
    }
    g_traps = g_traps + 1;
    siglongjmp(g_back, 1);
  }
  // Not ours: dies of it at the return.
  ::signal(signal, SIG_DFL);
}

// Touches `address` so many times and comes back by g_back each time; in ticks.
// The mask need not be saved: neither handler leaves one behind.
uint64_t TicksOfTraps(volatile std::byte* address, bool write, int times) {
  // Kept over siglongjmp.
  volatile int left = times;
  const volatile uint64_t start = NowTicks();
  while (left > 0) {
    left = left - 1;
    if (sigsetjmp(g_back, 0) != 0) continue;
    if (write) {
      *address = std::byte{1};
    } else {
      static_cast<void>(*address);
    }
  }
  return NowTicks() - start;
}

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

// A word of each cache line: nobody reads less.
uint64_t SumOfLines(const std::byte* bytes, uint64_t size_bytes) {
  constexpr uint64_t kLineBytes = 64;
  uint64_t sum = 0;
  for (uint64_t at = 0; at < size_bytes; at += kLineBytes) {
    sum += Load(bytes + at);
  }
  return sum;
}

// Of this process: private and proportional memory, page tables (KiB) and
// mappings.
constexpr const char* kFootprint[] = {"private_kib", "pss_kib", "tables_kib",
                                      "mappings"};

std::array<double, 4> ReadFootprint() {
  std::map<std::string, double> kib;
  for (const char* file : {"/proc/self/smaps_rollup", "/proc/self/status"}) {
    std::ifstream lines(file);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string name;
      words >> name >> kib[name];
    }
  }
  std::ifstream maps("/proc/self/maps");
  const auto mappings =
      std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
  return {kib["Private_Clean:"] + kib["Private_Dirty:"], kib["Pss:"],
          kib["VmPTE:"], static_cast<double>(mappings)};
}

}  // namespace

// Of memory without a page.
void TouchRound(const std::string& way, const Request& request,
                Answer& answer) {
  const bool copies = way == "fresh-copy";
  const bool unmasked = way == "unmasked";
  // With pages behind those of the others' images: the last ones of a cold
  // memory are there.
  const ImageRef image =
      way == "anonymous" ? nullptr : ImageOf(0, kImageBytes + 8 * kPageBytes);
  std::unique_ptr<Service> pool;
  std::unique_ptr<Mapping> mapping;
  if (auto options = PoolOptionsOf(unmasked ? "firsttouch" : way)) {
    options->layout = LayoutOf(request, 1);
    pool = OrDie(Service::Create(*std::move(options)));
    if (unmasked) Unmask();
  } else if (way == "anonymous" || way == "dontneed" || copies) {
    mapping = std::make_unique<Mapping>(MemoryBytes(request),
                                        copies ? nullptr : image);
  } else {
    Die(absl::StrCat(way, ": there is no such way to touch"));
  }
  Ticks ticks;
  uint64_t sum = 0;
  uint64_t faults = 0;
  for (uint64_t i = 0; i < request.Number("cycles", 500); ++i) {
    Memory memory;
    if (pool != nullptr) {
      memory = ColdMemory(*pool, image, MemoryBytes(request));
    } else {
      mapping->MapAnew();
    }
    std::byte* const base = pool ? memory.base() : mapping->base();
    const uint64_t before = pool ? pool->Stats().faults() : Faults();
    const uint64_t start = NowTicks();
    if (copies) CopyPages(request, *image, base);
    sum = std::rotl(sum, 1) ^ TouchPages(request, base);
    ticks.push_back(NowTicks() - start);
    faults += (pool ? pool->Stats().faults() : Faults()) - before;
  }
  answer.Cycles(ticks);
  answer.Readings("touch_ns", ticks);
  answer.Number("faults", faults);
  answer.Sum(sum);
}

// Behind the size of a memory in a pool; or at a page that mprotect(2) has made
// inaccessible before.
void TrapRound(const std::string& way, const Request& request, Answer& answer) {
  std::unique_ptr<Service> pool;
  Memory memory;
  std::unique_ptr<Mapping> mapping;
  std::byte* outside;
  if (auto options = PoolOptionsOf(way)) {
    options->layout = LayoutOf(request, 1);
    options->trap_callback = JumpBack;
    pool = OrDie(Service::Create(*std::move(options)));
    memory = OrDie(pool->Acquire({.size_bytes = kPageBytes}));
    outside = memory.base() + 2 * kPageBytes;
  } else if (way == "segv" || way == "segv-mask") {
    mapping = std::make_unique<Mapping>(4 * kPageBytes);
    outside = mapping->base() + 2 * kPageBytes;
    OrDie(EnsureAlternateStack());
    if (mprotect(outside, kPageBytes, PROT_NONE) != 0) Die("mprotect failed");
    struct sigaction action = {};
    action.sa_sigaction = OnSegv;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    if (sigaction(SIGSEGV, &action, nullptr) != 0) Die("sigaction failed");
    g_guard = outside;
    g_restore_mask = way == "segv-mask";
  } else {
    Die(absl::StrCat(way, ": there is no such way to trap"));
  }
  constexpr int kTogether = 20;
  const bool write = request.Number("write", 0) != 0;
  TicksOfTraps(outside, write, kTogether);  // Warms up.
  Ticks ticks;
  g_traps = 0;
  for (uint64_t i = 0; i <= request.Number("cycles", 400) / kTogether; ++i) {
    ticks.push_back(TicksOfTraps(outside, write, kTogether) / kTogether);
  }
  answer.Cycles(ticks, kTogether);
  answer.Number("trapped", g_traps);
}

// From an address to the memory that it lies in, in 16 pools: where no lookup
// waits for the one before, so that the processor overlaps them; or where each
// does.
void LookupRound(const std::string&, const Request& request, Answer& answer) {
  static const std::vector<uintptr_t> addresses = AddressesInPools(16);
  constexpr int kTimes = 100;
  const bool one_by_one = request.Text("order") == "waiting";
  // Always zero, which the compiler cannot know: the next address waits for
  // the last result.
  const volatile uint64_t zero = 0;
  const uint64_t none = zero;
  double best_ns = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    uint64_t last = 0;
    const uint64_t start = NowTicks();
    for (int i = 0; i < kTimes; ++i) {
      if (one_by_one) {
        for (const uintptr_t address : addresses) {
          const Location location = Locate(address + (last & none));
          last = location.in_bounds ? location.page : location.size_bytes;
        }
      } else {
        for (const uintptr_t address : addresses) Keep(Locate(address));
      }
    }
    const double ns = NsSince(start);
    Keep(last);
    if (repeat == 0 || ns < best_ns) best_ns = ns;
  }
  answer.Number("lookup_ns",
                best_ns / static_cast<double>(kTimes * addresses.size()));
}

// What a process takes until its first guest runs; to ask once in each.
void CreateRound(const std::string& way, const Request& request,
                 Answer& answer) {
  const LayoutOptions layout = LayoutOf(request, request.Number("slots", 64));
  const ImageRef image = ImageOf(0, kImageBytes);
  const uint64_t begun = NowTicks();
  const Way pool = OrDie(OpenWay(way, layout, MemoryBytes(request)));
  const uint64_t created = NowTicks();
  const auto slot = pool.new_slot();
  std::byte* const base = slot->Acquire(image);
  const uint64_t acquired = NowTicks();
  Store(base, 1);
  const uint64_t touched = NowTicks();
  slot->Release(std::nullopt, MemoryBytes(request));
  answer.Number("release_ns", NsSince(touched));
  answer.Number("create_ns", TicksToNs(created - begun));
  answer.Number("acquire_ns", TicksToNs(acquired - created));
  answer.Number("touch_ns", TicksToNs(touched - acquired));
  answer.Number("all_ns", TicksToNs(touched - begun));
}

// One lease of each of so many slots that nobody had, all at once: "first", of
// an image that ran in another slot, or with `new`, each of an image that ran
// nowhere; "many", by its parts, and with what it takes of memory.
void SlotsRound(const std::string& way, const Request& request,
                Answer& answer) {
  const bool many = request.Text("work") == "many";
  const uint64_t count = request.Number("slots", 100);
  const uint64_t memory_bytes = MemoryBytes(request);
  const ImageRef known = ImageOf(0, kImageBytes);
  std::vector<ImageRef> images(count, known);
  for (uint64_t i = 0; i < count && request.Number("new", 0) != 0; ++i) {
    images[i] = ImageOf(i + 1, kImageBytes);
  }
  const uint64_t begun = NowTicks();
  const Way slots_of =
      OrDie(OpenWay(way, LayoutOf(request, count + 1), memory_bytes));
  // Who has no pool reserves each for itself.
  const auto held = slots_of.new_slot();
  std::vector<std::unique_ptr<CycleSlot>> slots(count);
  for (auto& slot : slots) slot = slots_of.new_slot();
  const double create_ns = NsSince(begun);
  // Guests may read further pages, all over the image.
  const uint64_t reads = request.Number("reads", 0);
  Cycle cycle(request);
  const auto run = [&](std::byte* base, uint64_t number) {
    const uint64_t sum = cycle.Run(base, number);
    for (uint64_t r = 0; r < reads; ++r) {
      const volatile std::byte* const page = base + r * (kImageBytes / reads);
      static_cast<void>(page[kPageBytes]);
    }
    return sum;
  };
  for (uint64_t i = 1; i <= (many ? 100 : 20); ++i) {
    run(held->Acquire(known), i);
    held->Release(cycle.list, memory_bytes);
  }
  held->Acquire(known);
  const auto footprint = [&] {
    return many ? ReadFootprint() : std::array<double, 4>{};
  };
  footprint();  // Its own pages are there then.
  const auto before = footprint();
  Ticks acquire(count);
  Ticks touch(count);
  Ticks release(count);
  std::vector<std::vector<uint32_t>> lists(count);
  uint64_t sum = 0;
  const uint64_t faults_before = Faults();
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = NowTicks();
    std::byte* const base = slots[i]->Acquire(images[i]);
    const uint64_t acquired = NowTicks();
    sum = std::rotl(sum, 1) ^ run(base, i + 1);
    touch[i] = NowTicks() - acquired;
    acquire[i] = acquired - start;
    lists[i] = cycle.list;
  }
  const auto busy = footprint();
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = NowTicks();
    slots[i]->Release(lists[i], memory_bytes);
    release[i] = NowTicks() - start;
  }
  const uint64_t faults = Faults() - faults_before;
  const auto idle = footprint();
  const uint64_t kept =
      slots_of.pool ? slots_of.pool->Stats().idle_private_bytes : 0;
  held->Release(PageList(), memory_bytes);
  if (!many) {
    Ticks all(count);
    for (uint64_t i = 0; i < count; ++i) {
      all[i] = acquire[i] + touch[i] + release[i];
    }
    answer.Cycles(all);
    answer.Number("faults", faults);
    answer.Sum(sum);
    return;
  }
  answer.Number("create_ns", create_ns);
  answer.Number("acquire_ns", TicksToNs(Median(acquire)));
  answer.Number("touch_ns", TicksToNs(Median(touch)));
  answer.Number("release_ns", TicksToNs(Median(release)));
  const auto slot_count = static_cast<double>(count);
  for (size_t i = 0; i < std::size(kFootprint); ++i) {
    answer.Number(absl::StrCat("busy_", kFootprint[i]),
                  (busy[i] - before[i]) / slot_count);
    answer.Number(absl::StrCat("idle_", kFootprint[i]),
                  (idle[i] - before[i]) / slot_count);
  }
  if (kept != 0) {
    // Private all the same, and no page of a slot.
    answer.Number("book_bytes",
                  ((idle[0] - before[0]) * 1024 - static_cast<double>(kept)) /
                      slot_count);
  }
}

// What bounds the cycle of a memory whose guests write to other pages each
// time, whoever does it: to copy an image needs to find out nothing; to read
// the memory and the image (a word of each cache line) is the least that finds
// out without the kernel which pages changed; and with its help, what the first
// write to a page costs that is protected asynchronously, a scan for such pages
// where none was written, and to protect them all again.
void FloorRound(const std::string&, const Request& request, Answer& answer) {
  const std::string what = request.Text("what");
  const ImageRef image = ImageOf(0, request.Number("pages", 256) * kPageBytes);
  const Pagemap pagemap = OrDie(Pagemap::Open(RealKernel()));
  // Before the memory that it guards: that is unmapped first.
  std::optional<Uffd> uffd;
  Mapping mapping(image->pages().bytes(), image);
  std::byte* const base = mapping.base();
  const auto start = reinterpret_cast<uintptr_t>(base);
  const uintptr_t end = start + mapping.bytes();
  const auto scan = [&](const ScanRequest& wanted, size_t capacity) {
    PageRegion regions[16];
    if (!ScanPages(RealKernel(), pagemap.fd(), wanted, regions, capacity,
                   [](const PageRegion&) { return true; })
             .ok()) {
      Die("PAGEMAP_SCAN failed");
    }
  };
  const auto protect = [&] {
    scan(ScanRequest::UnmarkedAndProtect(start, end), 0);
  };
  const auto write = [&] { WriteEachPage(base, mapping.bytes()); };
  write();
  if (what != "copy" && what != "read") {
    uffd = OrDie(Uffd::Open(
        RealKernel(), {.required_features = kUffdFeaturePagefaultFlagWp |
                                            kUffdFeatureWpAsync |
                                            kUffdFeatureWpHugetlbfsShmem}));
    OrDie(uffd->Register(start, mapping.bytes(), kUffdRegisterWp,
                         kUffdIoctlWriteProtect));
    protect();
  }
  Ticks ticks;
  for (uint64_t i = 0; i < request.Number("cycles", 100); ++i) {
    if (what == "write") protect();
    if (what == "protect") write();
    const uint64_t begun = NowTicks();
    if (what == "copy") {
      memcpy(base, image->data(), mapping.bytes());
      Keep(base);
    } else if (what == "read") {
      Keep(SumOfLines(base, mapping.bytes()) +
           SumOfLines(image->data(), mapping.bytes()));
    } else if (what == "write") {
      write();
    } else if (what == "scan") {
      scan(ScanRequest::Unmarked(start, end), 16);
    } else if (what == "protect") {
      protect();
    } else {
      Die(absl::StrCat("what=", what, " is no bound"));
    }
    ticks.push_back(NowTicks() - begun);
  }
  answer.Cycles(ticks);
}

}  // namespace firsttouch::bench
