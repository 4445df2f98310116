// The steady cycle asks nothing of the kernel: once a pool knows what its
// tenants write, acquire -> write -> release makes no system call, raises no
// signal and takes no page fault. All are counted from outside; no time is
// looked at.

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
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
