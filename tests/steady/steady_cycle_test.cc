// The steady cycle asks nothing of the kernel: once a pool knows what its
// tenants write, acquire -> write -> release makes no system call, raises no
// signal and takes no page fault. All are counted from outside; no time is
// looked at.

#include <errno.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/examples/system_calls.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using bench::OrDie;
using examples::SystemCalls;

constexpr uint64_t kImageBytes = 1 << 20;
constexpr uint64_t kMemoryBytes = 4 << 20;

// Until what a pool learns of an image is settled.
constexpr int kWarmup = 150;
// Several spans of the book-keeping (30 releases each) end among these.
constexpr int kCycles = 200;

struct Counted {
  SystemCalls calls;
  int64_t page_faults = 0;
  // Whether the tenant after the last one found the image and zeroes.
  bool clean = false;
};

// What a child tells its parent.
struct Told {
  int64_t page_faults;
  bool clean;
};

int64_t PageFaults() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

// What a child does: makes what it needs, and returns from `run` when all is
// counted. `count` runs a cycle as often as is counted, between the marks.
using Count = absl::FunctionRef<void(absl::FunctionRef<void(int)> cycle)>;

// Writes to the stack below its caller, as deep as a cycle may come: in a
// forked child the first write to a page of it is a fault, and the cycles that
// count run deeper than those before them.
[[gnu::noinline]] void TouchStack() {
  volatile std::byte room[16 * kPageBytes];
  for (uint64_t at = 0; at < sizeof room; at += kPageBytes / 2) {
    room[at] = std::byte{1};
  }
}

// Runs `body` in a child and counts what happens in the cycles it hands to its
// argument. `body` returns whether the memory was handed on clean.
absl::StatusOr<Counted> CountCycles(absl::FunctionRef<bool(Count)> body) {
  void* const shared = mmap(nullptr, sizeof(Told), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return absl::ErrnoToStatus(errno, "mmap");
  auto* const told = new (shared) Told{};
  absl::StatusOr<SystemCalls> calls = examples::CountSystemCallsOf([&] {
    told->clean = body([&](absl::FunctionRef<void(int)> cycle) {
      PageFaults();  // whose own first call writes to a page
      TouchStack();
      examples::WaitUntilOtherThreadsSleep();
      examples::BeginCountedPart();
      const int64_t before = PageFaults();
      for (int i = 0; i < kCycles; ++i) cycle(i);
      const int64_t after = PageFaults();
      examples::EndCountedPart();
      told->page_faults = after - before;
    });
  });
  Counted counted{.page_faults = told->page_faults, .clean = told->clean};
  munmap(shared, sizeof(Told));
  if (!calls.ok()) return calls.status();
  if (calls->exit_status != 0 || calls->parts != 1) {
    return absl::AbortedError(absl::StrCat("exit status ", calls->exit_status,
                                           ", counted ", calls->parts,
                                           " times instead of once"));
  }
  counted.calls = *calls;
  counted.calls.total -= 2;  // PageFaults() itself
  return counted;
}

bool PtraceRefused(const absl::Status& status) {
  return status.code() == absl::StatusCode::kPermissionDenied;
}

#define SKIP_IF_PTRACE_IS_REFUSED(counted)                            \
  if (PtraceRefused((counted).status())) {                            \
    GTEST_SKIP() << "ptrace is refused here: " << (counted).status(); \
  }                                                                   \
  ASSERT_TRUE((counted).ok()) << (counted).status()

ServiceOptions PoolOfOne() {
  return {.name = "steady",
          .layout = {.instances = 1,
                     .max_memory_bytes = kMemoryBytes,
                     .guard_after_bytes = 2 << 20}};
}

void Write(std::byte* base, uint64_t page) {
  static_cast<volatile std::byte*>(base)[page * kPageBytes + 8] = std::byte{1};
}

bool IsClean(Service& pool, const ImageRef& image) {
  const Memory memory =
      OrDie(pool.Acquire({.image = image, .size_bytes = kMemoryBytes}));
  bool clean = memcmp(memory.base(), image->data(), kImageBytes) == 0;
  for (uint64_t i = kImageBytes; i < kMemoryBytes; ++i) {
    clean &= memory.base()[i] == std::byte{0};
  }
  return clean;
}

struct Case {
  std::string name;
  std::optional<Backing> backing;
  Resolve resolve;
  // Where the k pages lie: in the image, or in all of the memory.
  uint64_t written_bytes;
  uint64_t k;
};

std::string NameOf(const Case& c) {
  return absl::StrCat(
      c.name, c.written_bytes == kImageBytes ? "_image_" : "_memory_", c.k);
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const std::vector<Case> pools = {
      {"default", std::nullopt, Resolve::kInThread, 0, 0},
      {"copied", Backing::kCopied, Resolve::kInThread, 0, 0},
      {"shared_handler", Backing::kShared, Resolve::kHandlerThread, 0, 0},
      {"copied_handler", Backing::kCopied, Resolve::kHandlerThread, 0, 0}};
  for (Case c : pools) {
    for (const uint64_t bytes : {kImageBytes, kMemoryBytes}) {
      for (const uint64_t k : {0, 1, 4, 16, 64, 256}) {
        c.written_bytes = bytes;
        c.k = k;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

class SteadyCycle : public testing::TestWithParam<Case> {};

TEST_P(SteadyCycle, MakesNoCallAndTakesNoFault) {
  const Case& c = GetParam();
  ServiceOptions options = PoolOfOne();
  UserfaultfdOptions userfaultfd = {.backing = c.backing};
  if (c.resolve == Resolve::kHandlerThread) {
    userfaultfd.faults = InHandlerThreads{};
  }
  options.supply = AnySupply{userfaultfd};
  {
    // A probe, gone before the child is forked.
    const auto pool = Service::Create(options);
    if (!pool.ok() && (absl::IsFailedPrecondition(pool.status()) ||
                       absl::IsPermissionDenied(pool.status()))) {
      GTEST_SKIP() << "no such pool here: " << pool.status();
    }
    ASSERT_TRUE(pool.ok()) << pool.status();
    if (IsMappings((*pool)->supply())) {
      GTEST_SKIP() << "no userfaultfd here: " << (*pool)->Describe();
    }
  }
  const uint64_t pages = c.written_bytes / kPageBytes;
  const auto measure = [&](Count count) {
    const ImageRef image = bench::PatternImage(kImageBytes);
    const std::unique_ptr<Service> pool = OrDie(Service::Create(options));
    const auto cycle = [&](int) {
      Memory memory =
          OrDie(pool->Acquire({.image = image, .size_bytes = kMemoryBytes}));
      for (uint64_t i = 0; i < c.k; ++i) Write(memory.base(), i * pages / c.k);
      OrDie(memory.Release());
    };
    for (int i = 0; i < kWarmup; ++i) cycle(i);
    count(cycle);
    return IsClean(*pool, image);
  };
  const absl::StatusOr<Counted> counted = CountCycles(measure);
  SKIP_IF_PTRACE_IS_REFUSED(counted);
  EXPECT_EQ(counted->calls.total, 0u) << "in " << kCycles << " cycles";
  EXPECT_EQ(counted->calls.signals, 0u) << "in " << kCycles << " cycles";
  EXPECT_EQ(counted->page_faults, 0) << "in " << kCycles << " cycles";
  EXPECT_TRUE(counted->clean) << "the next tenant saw what the last one wrote";
}

INSTANTIATE_TEST_SUITE_P(Pools, SteadyCycle, testing::ValuesIn(Cases()),
                         [](const auto& info) { return NameOf(info.param); });

// A thread that holds two memories at once parks one in place of the other.

TEST(SteadyCycles, MakeNoCallInAThreadThatHasHeldTwoMemories) {
  ServiceOptions options = PoolOfOne();
  options.layout.instances = 2;
  {
    const auto pool = Service::Create(options);
    ASSERT_TRUE(pool.ok()) << pool.status();
    if (IsMappings((*pool)->supply())) {
      GTEST_SKIP() << "no userfaultfd here: " << (*pool)->Describe();
    }
  }
  const absl::StatusOr<Counted> counted = CountCycles([&](Count count) {
    const ImageRef image = bench::PatternImage(kImageBytes);
    const std::unique_ptr<Service> pool = OrDie(Service::Create(options));
    const auto acquire = [&] {
      Memory memory =
          OrDie(pool->Acquire({.image = image, .size_bytes = kMemoryBytes}));
      Write(memory.base(), 3);
      return memory;
    };
    const auto cycle = [&](int) {
      Memory first = acquire();
      Memory second = acquire();
      OrDie(first.Release());
      OrDie(second.Release());
    };
    for (int i = 0; i < kWarmup; ++i) cycle(i);
    count([&](int) { OrDie(acquire().Release()); });
    return IsClean(*pool, image);
  });
  SKIP_IF_PTRACE_IS_REFUSED(counted);
  EXPECT_EQ(counted->calls.total, 0u) << "in " << kCycles << " cycles";
  EXPECT_EQ(counted->calls.signals, 0u) << "in " << kCycles << " cycles";
  EXPECT_EQ(counted->page_faults, 0) << "in " << kCycles << " cycles";
  EXPECT_TRUE(counted->clean);
}

// What one operation asks of the kernel, in a pool of a fixed supply: the same
// on every machine whose kernel has it.

constexpr int kOperations = 20;

sigjmp_buf g_back;

TrapAction JumpBack(const TrapInfo&) { siglongjmp(g_back, 1); }

size_t Mappings() {
  std::ifstream maps("/proc/self/maps");
  return std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
}

// 256 pages, and what is there already at the end of a cold memory's image.
constexpr uint64_t kColdBytes = kImageBytes + 16 * kPageBytes;

// A pool, an image, and the memory that operations work on.
class Bench {
 public:
  Bench(Backing backing, uint32_t slots)
      : image_(bench::PatternImage(kColdBytes)),
        other_(bench::PatternImage(kColdBytes, 2)),
        pool_(OrDie(Service::Create(Options(backing, slots)))) {
    held_.reserve(kOperations);
    // Known from here on, and of no page.
    Cold(image_);
    Cold(other_);
    Free();
  }

  static ServiceOptions Options(Backing backing, uint32_t slots = 1) {
    ServiceOptions options = PoolOfOne();
    options.layout.instances = slots;
    options.supply =
        UserfaultfdOptions{.backing = backing, .tracking = Tracking::kSignal};
    options.trap_callback = JumpBack;
    return options;
  }

  void Cold(const ImageRef& image) {
    Free();
    memory_ = bench::ColdMemory(*pool_, image, kColdBytes);
  }
  void Free() { memory_ = Memory(); }
  void Acquire(const ImageRef& image) {
    memory_ = OrDie(pool_->Acquire({.image = image, .size_bytes = kColdBytes}));
  }
  // In a slot that nobody had, as long as there are any.
  void AcquireAnother() {
    held_.push_back(
        OrDie(pool_->Acquire({.image = image_, .size_bytes = kColdBytes})));
  }
  void WriteAll(uint64_t pages) {
    for (uint64_t page = 0; page < pages; ++page) Write(memory_.base(), page);
  }
  void Read(uint64_t pages) {
    bench::ReadEachPage(memory_.base(), pages * kPageBytes);
  }
  void Trap() {
    if (sigsetjmp(g_back, 0) == 0) Write(memory_.base(), kOutside);
  }

  const ImageRef& image() const { return image_; }
  const ImageRef& other() const { return other_; }
  Memory& memory() { return memory_; }

 private:
  static constexpr uint64_t kOutside = kColdBytes / kPageBytes + 40;

  ImageRef image_;
  ImageRef other_;
  std::unique_ptr<Service> pool_;
  Memory memory_;
  std::vector<Memory> held_;
};

// The table. It changes when the library asks the kernel for more, or for less.
constexpr char kSharedCounts[] =
    R"(acquire, in a new slot: 9 calls, 0 signals, 0 faults, 2 mappings
acquire, of another image: 9 calls, 0 signals, 0 faults, 0 mappings
read a page, first touch: 2 calls, 1 signals, 0 faults, 0 mappings
read 256 pages, first touch: 14 calls, 5 signals, 0 faults, 0 mappings
write a page, first touch: 2 calls, 1 signals, 0 faults, 0 mappings
write 256 pages, first touch: 52 calls, 26 signals, 0 faults, 0 mappings
write a page that was read: 2 calls, 1 signals, 1 faults, 0 mappings
trap: 1 calls, 1 signals, 0 faults, 0 mappings
grow by 64 KiB: 0 calls, 0 signals, 0 faults, 0 mappings
reset, 16 pages were changed: 1 calls, 0 signals, 0 faults, 0 mappings
release, 16 pages were changed: 1 calls, 0 signals, 0 faults, 0 mappings
change 16 pages again and release: 0 calls, 0 signals, 0 faults, 0 mappings
)";
constexpr char kCopiedCounts[] =
    R"(acquire, in a new slot: 3 calls, 0 signals, 0 faults, 0 mappings
acquire, of another image: 4 calls, 0 signals, 0 faults, 0 mappings
read a page, first touch: 2 calls, 1 signals, 0 faults, 0 mappings
read 256 pages, first touch: 32 calls, 16 signals, 0 faults, 0 mappings
write a page, first touch: 2 calls, 1 signals, 0 faults, 0 mappings
write 256 pages, first touch: 32 calls, 16 signals, 0 faults, 0 mappings
write a page that was read: 2 calls, 1 signals, 0 faults, 0 mappings
trap: 1 calls, 1 signals, 0 faults, 0 mappings
grow by 64 KiB: 0 calls, 0 signals, 0 faults, 0 mappings
reset, 16 pages were changed: 1 calls, 0 signals, 0 faults, 0 mappings
release, 16 pages were changed: 1 calls, 0 signals, 0 faults, 0 mappings
change 16 pages again and release: 0 calls, 0 signals, 0 faults, 0 mappings
)";

struct Operation {
  const char* name;
  void (*prepare)(Bench&);
  void (*operate)(Bench&);
  uint32_t slots = 1;
};

constexpr Operation kAllOperations[] = {
    {"acquire, in a new slot", [](Bench&) {},
     [](Bench& b) { b.AcquireAnother(); }, kOperations + 2},
    {"acquire, of another image",
     [](Bench& b) {
       b.Cold(b.other());
       b.Free();
     },
     [](Bench& b) { b.Acquire(b.image()); }},
    {"read a page, first touch", [](Bench& b) { b.Cold(b.image()); },
     [](Bench& b) { b.Read(1); }},
    {"read 256 pages, first touch", [](Bench& b) { b.Cold(b.image()); },
     [](Bench& b) { b.Read(256); }},
    {"write a page, first touch", [](Bench& b) { b.Cold(b.image()); },
     [](Bench& b) { b.WriteAll(1); }},
    {"write 256 pages, first touch", [](Bench& b) { b.Cold(b.image()); },
     [](Bench& b) { b.WriteAll(256); }},
    {"write a page that was read",
     [](Bench& b) {
       b.Cold(b.image());
       b.Read(1);
     },
     [](Bench& b) { b.WriteAll(1); }},
    {"trap", [](Bench& b) { b.Cold(b.image()); }, [](Bench& b) { b.Trap(); }},
    {"grow by 64 KiB", [](Bench& b) { b.Cold(b.image()); },
     [](Bench& b) { OrDie(b.memory().Grow(kColdBytes + 65536)); }},
    {"reset, 16 pages were changed",
     [](Bench& b) {
       b.Cold(b.image());
       b.WriteAll(16);
     },
     [](Bench& b) { OrDie(b.memory().Reset()); }},
    {"release, 16 pages were changed",
     [](Bench& b) {
       b.Cold(b.image());
       b.WriteAll(16);
     },
     [](Bench& b) { b.Free(); }},
    {"change 16 pages again and release",
     [](Bench& b) {
       b.Cold(b.image());
       b.WriteAll(16);
       b.Free();
       b.Acquire(b.image());
     },
     [](Bench& b) {
       b.WriteAll(16);
       b.Free();
     }},
};

// A row of the table. Of page faults and mappings the median operation counts:
// now and then one is the first to use a page of the pool's own records.
std::string RowOf(const Operation& operation, Backing backing) {
  struct Seen {
    std::array<int64_t, kOperations> mappings;
    std::array<int64_t, kOperations> faults;
  };
  void* const shared = mmap(nullptr, sizeof(Seen), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return "mmap failed";
  auto* const seen = new (shared) Seen{};
  const absl::StatusOr<SystemCalls> calls = examples::CountSystemCallsOf([&] {
    Bench bench(backing, operation.slots);
    // Once before it counts.
    operation.prepare(bench);
    operation.operate(bench);
    for (int i = 0; i < kOperations; ++i) {
      operation.prepare(bench);
      TouchStack();
      const size_t mappings = Mappings();
      const int64_t faults = PageFaults();
      examples::BeginCountedPart();
      operation.operate(bench);
      examples::EndCountedPart();
      seen->faults[i] = PageFaults() - faults;
      seen->mappings[i] = static_cast<int64_t>(Mappings() - mappings);
    }
  });
  const Seen found = *seen;
  munmap(shared, sizeof(Seen));
  if (!calls.ok()) return calls.status().ToString();
  if (calls->exit_status != 0 || calls->parts != kOperations) {
    return absl::StrCat(operation.name, ": ended before its time\n");
  }
  const auto median = [](std::array<int64_t, kOperations> counts) {
    std::sort(counts.begin(), counts.end());
    return counts[kOperations / 2];
  };
  return absl::StrCat(
      operation.name, ": ", static_cast<double>(calls->total) / kOperations,
      " calls, ", static_cast<double>(calls->signals) / kOperations,
      " signals, ", median(found.faults), " faults, ", median(found.mappings),
      " mappings\n");
}

class Operations : public testing::TestWithParam<Backing> {};

TEST_P(Operations, AskOfTheKernelWhatTheTableSays) {
  {
    const auto pool = Service::Create(Bench::Options(GetParam()));
    if (!pool.ok()) GTEST_SKIP() << "no such pool here: " << pool.status();
  }
  const auto traced = examples::CountSystemCallsOf([] {});
  SKIP_IF_PTRACE_IS_REFUSED(traced);
  std::string table;
  for (const Operation& operation : kAllOperations) {
    absl::StrAppend(&table, RowOf(operation, GetParam()));
  }
  EXPECT_EQ(table,
            GetParam() == Backing::kShared ? kSharedCounts : kCopiedCounts);
}

INSTANTIATE_TEST_SUITE_P(Backings, Operations,
                         testing::Values(Backing::kShared, Backing::kCopied),
                         [](const auto& info) {
                           return std::string(BackingName(info.param));
                         });

// The three counters see what they are there for.

TEST(Counters, SeeTheCallAndTheFaultOfEachCycleOfCopyOnWrite) {
  const absl::StatusOr<Counted> counted = CountCycles([](Count count) {
    const ImageRef image = bench::PatternImage(kImageBytes);
    bench::Mapping mapping(kMemoryBytes, image);
    count([&](int) {
      Write(mapping.base(), 3);
      mapping.Drop();  // MADV_DONTNEED
    });
    return memcmp(mapping.base(), image->data(), kImageBytes) == 0;
  });
  SKIP_IF_PTRACE_IS_REFUSED(counted);
  EXPECT_EQ(counted->calls.total, uint64_t{kCycles});
  EXPECT_EQ(counted->calls.signals, 0u);
  EXPECT_GE(counted->page_faults, kCycles);
  EXPECT_TRUE(counted->clean);
}

TEST(Counters, SeeTheSignalOfEachCycleInASlotWithoutPages) {
  const ServiceOptions options = PoolOfOne();
  {
    const auto pool = Service::Create(options);
    ASSERT_TRUE(pool.ok()) << pool.status();
    if (IsMappings((*pool)->supply())) {
      GTEST_SKIP() << "no userfaultfd here: " << (*pool)->Describe();
    }
  }
  const absl::StatusOr<Counted> counted = CountCycles([&](Count count) {
    const ImageRef image = bench::PatternImage(kImageBytes);
    const std::unique_ptr<Service> pool = OrDie(Service::Create(options));
    count([&](int) {
      // Of an image it would be learned, and be there the next time.
      Memory memory = bench::ColdMemory(*pool, nullptr, kMemoryBytes);
      bench::ReadEachPage(memory.base(), kPageBytes);
      OrDie(memory.Release());
    });
    return IsClean(*pool, image);
  });
  SKIP_IF_PTRACE_IS_REFUSED(counted);
  EXPECT_GE(counted->calls.signals, uint64_t{kCycles});
  // The return from each signal is a call, too.
  EXPECT_GE(counted->calls.total, uint64_t{kCycles});
  EXPECT_TRUE(counted->clean);
}

TEST(Counters, SeeAWayThatHandsOnWhatWasWritten) {
  const absl::StatusOr<Counted> counted = CountCycles([](Count count) {
    const ImageRef image = bench::PatternImage(kImageBytes);
    bench::Mapping mapping(kMemoryBytes, image);
    Write(mapping.base(), 3);
    count([](int) {});
    return memcmp(mapping.base(), image->data(), kImageBytes) == 0;
  });
  SKIP_IF_PTRACE_IS_REFUSED(counted);
  EXPECT_EQ(counted->calls.total, 0u);
  EXPECT_EQ(counted->page_faults, 0);
  EXPECT_FALSE(counted->clean);
}

}  // namespace
}  // namespace firsttouch
