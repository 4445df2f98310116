#include "firsttouch/bench/peers/parts.h"

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
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/peers/ways.h"
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

// Touches of memory without a page.
class TouchRow : public Row {
 public:
  TouchRow(const std::string& way, const Request& request)
      : request_(request),
        copies_(way == "fresh-copy"),
        image_(way == "anonymous"
                   ? nullptr
                   // With pages behind those of the others' images: the last
                   // ones of a cold memory are there.
                   : ImageOf(0, kImageBytes + 8 * kPageBytes)) {
    const bool unmasked = way == "unmasked";
    if (auto options = PoolOptionsOf(unmasked ? "firsttouch" : way)) {
      options->layout = LayoutOf(request, 1);
      pool_ = OrDie(Service::Create(*std::move(options)));
      if (unmasked) Unmask();
    } else if (way == "anonymous" || way == "dontneed" || copies_) {
      mapping_ = std::make_unique<Mapping>(MemoryBytes(request),
                                           copies_ ? nullptr : image_);
    } else {
      Die(absl::StrCat(way, ": there is no such way to touch"));
    }
  }

  void Round(Answer& answer) override {
    const uint64_t cycles = request_.Number("cycles", 500);
    const uint64_t count = request_.Number("count", 256);
    Ticks ticks;
    uint64_t sum = 0;
    uint64_t faults = 0;
    for (uint64_t i = 0; i < cycles; ++i) {
      Memory memory;
      if (pool_ != nullptr) {
        memory = ColdMemory(*pool_, image_, MemoryBytes(request_));
      } else {
        mapping_->MapAnew();
      }
      std::byte* const base = pool_ ? memory.base() : mapping_->base();
      const uint64_t before = pool_ ? pool_->Stats().faults() : MinorFaults();
      const uint64_t start = NowTicks();
      if (copies_) Copy(base);
      sum = std::rotl(sum, 1) ^ Touch(request_, base);
      ticks.push_back(NowTicks() - start);
      faults += (pool_ ? pool_->Stats().faults() : MinorFaults()) - before;
    }
    answer.Times({ticks});
    answer.Number("touch_median_ns", TicksToNs(Median(ticks)));
    answer.Number("cycles", static_cast<double>(cycles));
    answer.Number("faults", static_cast<double>(faults));
    answer.Number("touched", static_cast<double>(cycles * count));
    answer.Sum(sum);
  }

 private:
  static void Unmask() {
    struct sigaction action = {};
    sigaction(SIGBUS, nullptr, &action);
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, nullptr);
  }

  // The part of the image that is touched.
  void Copy(std::byte* base) const {
    constexpr uint64_t kAtOnce = 64 << 10;
    const uint64_t first = request_.Number("first", 0) * kPageBytes;
    const uint64_t end = first + request_.Number("count", 256) *
                                     request_.Number("step", 1) * kPageBytes;
    for (uint64_t at = first; at < end; at += kAtOnce) {
      memcpy(base + at, image_->data() + at, std::min(kAtOnce, end - at));
    }
  }

  const Request request_;
  const bool copies_;
  const ImageRef image_;
  std::unique_ptr<Service> pool_;
  std::unique_ptr<Mapping> mapping_;
};

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

// Behind the size of a memory in a pool; or at a page that mprotect(2) has made
// inaccessible before.
class TrapRow : public Row {
 public:
  TrapRow(const std::string& way, const Request& request) : request_(request) {
    if (auto options = PoolOptionsOf(way)) {
      options->layout = LayoutOf(request, 1);
      options->trap_callback = JumpBack;
      pool_ = OrDie(Service::Create(*std::move(options)));
      memory_ = OrDie(pool_->Acquire({.size_bytes = kPageBytes}));
      outside_ = memory_.base() + 2 * kPageBytes;
      return;
    }
    if (way != "segv" && way != "segv-mask") {
      Die(absl::StrCat(way, ": there is no such way to trap"));
    }
    mapping_ = std::make_unique<Mapping>(4 * kPageBytes);
    outside_ = mapping_->base() + 2 * kPageBytes;
    OrDie(EnsureAlternateStack());
    if (mprotect(outside_, kPageBytes, PROT_NONE) != 0) Die("mprotect failed");
    struct sigaction action = {};
    action.sa_sigaction = OnSegv;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    if (sigaction(SIGSEGV, &action, nullptr) != 0) Die("sigaction failed");
    g_guard = outside_;
    g_restore_mask = way == "segv-mask";
  }

  void Round(Answer& answer) override {
    constexpr int kTogether = 20;
    const uint64_t times = request_.Number("cycles", 400) / kTogether + 1;
    Ticks ticks;
    g_traps = 0;
    for (uint64_t i = 0; i < times; ++i) {
      ticks.push_back(
          TicksOfTraps(outside_, request_.Number("write", 0) != 0, kTogether) /
          kTogether);
    }
    answer.Times({ticks});
    answer.Number("cycles", static_cast<double>(times * kTogether));
    answer.Number("trapped", static_cast<double>(g_traps));
  }

 private:
  const Request request_;
  std::unique_ptr<Service> pool_;
  Memory memory_;
  std::unique_ptr<Mapping> mapping_;
  std::byte* outside_ = nullptr;
};

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

// From an address to the memory that it lies in, in 16 pools: where no lookup
// waits for the one before, so that the processor overlaps them; or where each
// does.
class LocateRow : public Row {
 public:
  explicit LocateRow(const Request& request)
      : one_by_one_(request.Text("order") == "waiting") {}

  void Round(Answer& answer) override {
    static const std::vector<uintptr_t> addresses = AddressesInPools(16);
    constexpr int kTimes = 100;
    // Always zero, which the compiler cannot know: the next address waits for
    // the last result.
    const volatile uint64_t zero = 0;
    const uint64_t none = zero;
    double best_ns = 0;
    for (int repeat = 0; repeat < 5; ++repeat) {
      uint64_t last = 0;
      const uint64_t start = NowTicks();
      for (int i = 0; i < kTimes; ++i) {
        if (one_by_one_) {
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

 private:
  const bool one_by_one_;
};

// What a process takes until its first guest runs; to ask once in each.
class CreateRow : public Row {
 public:
  CreateRow(const std::string& way, const Request& request)
      : options_(PoolOptionsOf(way)) {
    if (!options_) Die(absl::StrCat(way, ": there is no such way to create"));
    options_->layout = LayoutOf(request, request.Number("slots", 64));
    size_bytes_ = MemoryBytes(request);
    TicksPerNs();  // Calibrates.
  }

  void Round(Answer& answer) override {
    const ImageRef image = ImageOf(0, kImageBytes);
    const uint64_t begun = NowTicks();
    const auto pool = OrDie(Service::Create(*options_));
    const uint64_t created = NowTicks();
    Memory memory =
        OrDie(pool->Acquire({.image = image, .size_bytes = size_bytes_}));
    const uint64_t acquired = NowTicks();
    Store(memory.base(), 1);
    const uint64_t touched = NowTicks();
    OrDie(memory.Release());
    answer.Number("release_ns", NsSince(touched));
    answer.Number("create_ns", TicksToNs(created - begun));
    answer.Number("acquire_ns", TicksToNs(acquired - created));
    answer.Number("touch_ns", TicksToNs(touched - acquired));
    answer.Number("all_ns", TicksToNs(touched - begun));
  }

 private:
  std::optional<ServiceOptions> options_;
  uint64_t size_bytes_ = 0;
};

// What bounds the cycle of a memory whose guests write to other pages each
// time, whoever does it: to copy an image needs to find out nothing; to read
// the memory and the image (a word of each cache line) is the least that finds
// out without the kernel which pages changed; and with its help, what the first
// write to a page costs that is protected asynchronously, a scan for such pages
// where none was written, and to protect them all again.
class FloorRow : public Row {
 public:
  explicit FloorRow(const Request& request)
      : request_(request),
        what_(request.Text("what")),
        pages_(request.Number("pages", 256)),
        image_(ImageOf(0, pages_ * kPageBytes)),
        pagemap_(OrDie(Pagemap::Open(RealKernel()))),
        mapping_(image_->pages().bytes(), image_) {
    Write();
    if (what_ == "copy" || what_ == "read") return;
    uffd_ = OrDie(Uffd::Open(
        RealKernel(), {.required_features = kUffdFeaturePagefaultFlagWp |
                                            kUffdFeatureWpAsync |
                                            kUffdFeatureWpHugetlbfsShmem}));
    OrDie(uffd_->Register(start(), mapping_.bytes(), kUffdRegisterWp,
                          kUffdIoctlWriteProtect));
    Protect();
  }

  void Round(Answer& answer) override {
    const auto nothing = [] {};
    if (what_ == "copy") {
      Time(answer, nothing, [&] {
        memcpy(mapping_.base(), image_->data(), mapping_.bytes());
        Keep(mapping_.base());
      });
    } else if (what_ == "read") {
      Time(answer, nothing, [&] {
        Keep(SumOfLines(mapping_.base()) + SumOfLines(image_->data()));
      });
    } else if (what_ == "write") {
      Time(
          answer, [&] { Protect(); }, [&] { Write(); });
    } else if (what_ == "scan") {
      Time(answer, nothing, [&] {
        PageRegion regions[16];
        Scan(ScanRequest::Unmarked(start(), end()), regions);
      });
    } else if (what_ == "protect") {
      Time(
          answer, [&] { Write(); }, [&] { Protect(); });
    } else {
      Die(absl::StrCat("what=", what_, " is no bound"));
    }
  }

 private:
  template <typename Prepare, typename Body>
  void Time(Answer& answer, const Prepare& prepare, const Body& body) {
    Ticks ticks;
    for (uint64_t i = 0; i < request_.Number("cycles", 100); ++i) {
      prepare();
      const uint64_t begun = NowTicks();
      body();
      ticks.push_back(NowTicks() - begun);
    }
    answer.Times({ticks});
    answer.Number("cycles", static_cast<double>(ticks.size()));
  }

  uintptr_t start() const {
    return reinterpret_cast<uintptr_t>(mapping_.base());
  }
  uintptr_t end() const { return start() + mapping_.bytes(); }
  void Write() { WriteEachPage(mapping_.base(), mapping_.bytes()); }
  void Protect() { Scan(ScanRequest::UnmarkedAndProtect(start(), end()), {}); }

  void Scan(const ScanRequest& request, std::span<PageRegion> regions) {
    if (!ScanPages(RealKernel(), pagemap_.fd(), request, regions.data(),
                   regions.size(), [](const PageRegion&) { return true; })
             .ok()) {
      Die("PAGEMAP_SCAN failed");
    }
  }

  // A word of each cache line: nobody reads less.
  uint64_t SumOfLines(const std::byte* bytes) const {
    constexpr uint64_t kLineBytes = 64;
    uint64_t sum = 0;
    for (uint64_t at = 0; at < mapping_.bytes(); at += kLineBytes) {
      sum += Load(bytes + at);
    }
    return sum;
  }

  const Request request_;
  const std::string what_;
  const uint64_t pages_;
  const ImageRef image_;
  const Pagemap pagemap_;
  // Before the memory that it guards: that is unmapped first.
  std::optional<Uffd> uffd_;
  Mapping mapping_;
};

}  // namespace

std::unique_ptr<Row> MakePartRow(const std::string& way,
                                 const Request& request) {
  const std::string work = request.Text("work");
  if (work == "touch") return std::make_unique<TouchRow>(way, request);
  if (work == "traps") return std::make_unique<TrapRow>(way, request);
  if (work == "locate") return std::make_unique<LocateRow>(request);
  if (work == "create") return std::make_unique<CreateRow>(way, request);
  if (work == "floor") return std::make_unique<FloorRow>(request);
  return nullptr;
}

}  // namespace firsttouch::bench
