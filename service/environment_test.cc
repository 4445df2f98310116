// Settings that a process or its machine makes for all mappings must not change
// what a lease sees: its own bytes, no other lease's, and a trap where it ends.
// Each environment is tried in a child of its own, with each way of supplying
// memory; after each lease the next one is compared, byte by byte.

#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mapping_properties.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// <linux/mman.h>, <linux/mempolicy.h>.
constexpr int kMadvCold = 20;     // 5.4
constexpr int kMadvPageout = 21;  // 5.4
constexpr int kMpolInterleave = 3;

constexpr uint64_t kMemoryPages = 64;

// When an environment begins.
enum class When { kBeforeCreate, kAfterCreate, kWhileHeld, kEachLease };

struct Environment {
  const char* name;
  When when;
  // Returns false where this kernel or user cannot have the environment.
  bool (*enter)(const Memory* memory);
};

template <int flags>
bool LockAll(const Memory* /*memory*/) {
  return mlockall(flags) == 0;
}

template <int option, int value>
bool Prctl(const Memory* /*memory*/) {
  return prctl(option, value, 0, 0, 0) == 0;
}

template <int advice>
bool Advise(const Memory* memory) {
  // Advice that is refused changes nothing.
  madvise(memory->base(), RoundUpToPage(memory->size_bytes()), advice);
  return true;
}

bool ImplyExec(const Memory* /*memory*/) {
  return personality(READ_IMPLIES_EXEC) != -1;
}

bool Interleave(const Memory* /*memory*/) {
  const unsigned long nodes = 1;
  return syscall(SYS_set_mempolicy, kMpolInterleave, &nodes, 64) == 0;
}

// The same for present mappings: migrates pages where it has to.
bool BindToNode(const Memory* memory) {
  constexpr int kMpolBind = 2;
  constexpr int kMove = 2;
  const unsigned long nodes = 1;
  syscall(SYS_mbind, memory->base(), RoundUpToPage(memory->size_bytes()),
          kMpolBind, &nodes, 64, kMove);
  return true;
}

constexpr Environment kEnvironments[] = {
    {"nothing", When::kBeforeCreate, [](const Memory*) { return true; }},
    {"mlockall_all", When::kBeforeCreate, LockAll<MCL_CURRENT | MCL_FUTURE>},
    {"mlockall_future", When::kBeforeCreate, LockAll<MCL_FUTURE>},
    {"mlockall_future_onfault", When::kBeforeCreate,
     LockAll<MCL_FUTURE | MCL_ONFAULT>},
    {"mlockall_all_later", When::kAfterCreate,
     LockAll<MCL_CURRENT | MCL_FUTURE>},
    {"mlockall_current_later", When::kAfterCreate, LockAll<MCL_CURRENT>},
    {"mlockall_onfault_later", When::kAfterCreate,
     LockAll<MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT>},
    {"mlockall_while_held", When::kWhileHeld,
     LockAll<MCL_CURRENT | MCL_FUTURE>},
    {"mlockall_each_lease", When::kEachLease, LockAll<MCL_CURRENT>},
    {"munlockall_each_lease", When::kEachLease,
     [](const Memory*) { return munlockall() == 0; }},
    {"merge", When::kBeforeCreate, Prctl<kPrSetMemoryMerge, 1>},
    {"merge_later", When::kAfterCreate, Prctl<kPrSetMemoryMerge, 1>},
    {"merge_while_held", When::kWhileHeld, Prctl<kPrSetMemoryMerge, 1>},
    {"thp_disable", When::kBeforeCreate, Prctl<PR_SET_THP_DISABLE, 1>},
    {"mdwe", When::kBeforeCreate, Prctl<kPrSetMdwe, kPrMdweRefuseExecGain>},
    {"read_implies_exec", When::kBeforeCreate, ImplyExec},
    {"interleave", When::kBeforeCreate, Interleave},
    {"migrate", When::kEachLease, BindToNode},
    {"cold", When::kEachLease, Advise<kMadvCold>},
    {"pageout", When::kEachLease, Advise<kMadvPageout>},
    {"collapse", When::kEachLease, Advise<kMadvCollapse>},
};

using Case = std::tuple<Way, Environment>;

// The flags of a pool's mapping that has `flag`; "" where none has.
std::string WithFlag(const Service& service, const std::string& flag) {
  const uintptr_t start = service.base();
  const uintptr_t end = start + service.layout().reservation_bytes();
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  std::string mapping;
  unsigned long low = 0, high = 0;
  while (std::getline(smaps, line)) {
    unsigned long first, last;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2) {
      mapping = line;
      low = first;
      high = last;
    } else if (line.rfind("VmFlags:", 0) == 0 && low < end && high > start &&
               (line + " ").find(" " + flag + " ") != std::string::npos) {
      return absl::StrCat(mapping, " has ", flag);
    }
  }
  return "";
}

uint64_t PeakResidentKib() {
  std::ifstream status("/proc/self/status");
  std::string line;
  unsigned long kib = 0;
  while (std::getline(status, line)) {
    if (std::sscanf(line.c_str(), "VmHWM: %lu kB", &kib) == 1) break;
  }
  return kib;
}

ServiceOptions PoolOptions(const Way& way) {
  ServiceOptions options;
  options.name = "environment";
  options.layout.instances = 2;
  // Far more than may ever be resident.
  options.layout.max_memory_bytes = uint64_t{1} << 30;
  options.layout.guard_before_bytes = 1 << 20;
  options.layout.guard_after_bytes = 1 << 20;
  options.strategy = SlotStrategy::kNextAvailable;
  options.supply = Asking(way);
  options.trap_callback = JumpOutOfTrap;
  return options;
}

class EnvironmentTest : public testing::TestWithParam<Case> {
 protected:
  const Way& way() const { return std::get<0>(GetParam()); }
  const Environment& environment() const { return std::get<1>(GetParam()); }

  // Returns "" where all is well.
  std::string Leases() const {
    const Environment& environment = this->environment();
    const auto enter = [&](When when, const Memory* memory) {
      return environment.when != when || environment.enter(memory);
    };
    const std::string missing = absl::StrCat("skip: ", environment.name);
    std::mt19937 random(17);
    const std::vector<ImageRef> images = {
        PatternImage("twenty", 20, {3, 4, 11}), nullptr,
        PatternImage("nine", 9), FromFile(PatternImage("filed", 33, {1, 32}))};
    if (!enter(When::kBeforeCreate, nullptr)) return missing;
    absl::StatusOr<std::unique_ptr<Service>> made =
        Service::Create(PoolOptions(way()));
    if (!made.ok()) {
      const bool lacks = absl::IsFailedPrecondition(made.status()) ||
                         absl::IsPermissionDenied(made.status()) ||
                         absl::IsUnimplemented(made.status());
      return absl::StrCat(lacks ? "skip: " : "", made.status().ToString());
    }
    Service& service = **made;
    if (!enter(When::kAfterCreate, nullptr)) return missing;
    // Uses each image several times in a row, so that what a slot keeps is used
    // again.
    for (int cycle = 0; cycle < 32; ++cycle) {
      const std::string when = absl::StrCat("cycle ", cycle, ": ");
      const ImageRef& image = images[cycle / 4 % images.size()];
      const uint64_t size_bytes =
          (36 + random() % (kMemoryPages - 36)) * kPageBytes;
      absl::StatusOr<Memory> memory =
          service.Acquire({.image = image, .size_bytes = size_bytes});
      if (!memory.ok()) return when + memory.status().ToString();
      // Only reads at first, so that pages are clean.
      const std::vector<uint8_t> initial = InitialBytes(image, size_bytes);
      if (std::optional<uint64_t> at = FirstDifference(*memory, initial)) {
        return absl::StrCat(when, "byte ", *at, " is another lease's");
      }
      if (cycle == 5 && !enter(When::kWhileHeld, &*memory)) return missing;
      if (!enter(When::kEachLease, &*memory)) return missing;
      for (const uint64_t past : {uint64_t{0}, kMemoryPages * kPageBytes,
                                  (uint64_t{1} << 30) - kPageBytes}) {
        if (!TrapOf([&] { Store(*memory, size_bytes + past, 0xbb); })) {
          return absl::StrCat(when, "no trap ", past, " bytes past the end");
        }
      }
      if (!TrapOf([&] { Store(*memory, uint64_t{0} - kPageBytes, 0xbb); })) {
        return absl::StrCat(when, "no trap before the start");
      }
      for (int writes = random() % 40; writes > 0; --writes) {
        Store(*memory, random() % size_bytes, 0xee);
      }
      if (random() % 2 == 0) {
        absl::Status grown = memory->Grow(size_bytes + 3 * kPageBytes);
        if (!grown.ok()) return when + grown.ToString();
        if (Load(*memory, size_bytes + kPageBytes) != 0) {
          return when + "what it grew into is another lease's";
        }
        Store(*memory, size_bytes + kPageBytes, 0xdd);
      }
      if (!enter(When::kEachLease, &*memory)) return missing;
      absl::Status released = memory->Release();
      if (!released.ok()) return when + released.ToString();
    }
    if (ProcessMergesPages()) {
      const std::string mergeable = WithFlag(service, "mg");
      if (!mergeable.empty() && !way().by_mappings()) return mergeable;
    }
    if (service.Stats().slots_quarantined != 0) return "slots are quarantined";
    if (const uint64_t kib = PeakResidentKib(); kib > 512 * 1024) {
      return absl::StrCat(kib, " KiB were resident");
    }
    return "";
  }
};

TEST_P(EnvironmentTest, TheNextLeaseSeesItsOwnBytes) {
  const ChildResult child = RunInChild([this] { return Leases(); });
  ExpectWell(child);
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  return WayName({std::get<0>(info.param), 0}) + "_" +
         std::get<1>(info.param).name;
}

INSTANTIATE_TEST_SUITE_P(Ways, EnvironmentTest,
                         testing::Combine(AllWays(),
                                          testing::ValuesIn(kEnvironments)),
                         CaseName);

class PopulatedTest : public testing::TestWithParam<Way> {};

// Stands for a library in front of mmap(2) that adds MAP_POPULATE.
TEST_P(PopulatedTest, PoolsOfAPopulatingProcessHoldTheirBounds) {
  const ChildResult child = RunInChild([]() -> std::string {
    FakeKernel kernel;
    kernel.HookAfter(FakeKernel::Op::kMmap, [](const FakeKernel::Call& call) {
      if (call.start == 0) return;  // the kernel chose where: we do not know
      madvise(reinterpret_cast<void*>(call.start), call.bytes,
              kMadvPopulateWrite);
    });
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(PoolOptions(GetParam()), kernel);
    if (!service.ok()) return "skip: " + service.status().ToString();
    const ImageRef image = PatternImage("image", 9);
    for (int cycle = 0; cycle < 4; ++cycle) {
      absl::StatusOr<Memory> memory =
          (*service)->Acquire({.image = cycle == 2 ? nullptr : image,
                               .size_bytes = 12 * kPageBytes});
      if (!memory.ok()) return memory.status().ToString();
      const ImageRef& wanted = cycle == 2 ? nullptr : image;
      if (FirstDifference(*memory, InitialBytes(wanted, 12 * kPageBytes))) {
        return absl::StrCat("cycle ", cycle, ": another lease's bytes");
      }
      if (!TrapOf([&] { Load(*memory, 12 * kPageBytes); })) return "no trap";
      for (uint64_t page = 0; page < 12; ++page) {
        Store(*memory, page * kPageBytes, 0xee);
      }
    }
    return "";
  });
  ExpectWell(child);
}

INSTANTIATE_TEST_SUITE_P(Ways, PopulatedTest, AllWays(), WayName);

// A way in which a host can take away pages of a memory that it holds.
struct Taking {
  const char* name;
  // Returns false where the kernel lacks it.
  bool (*take)(std::byte* page);
  // Whether the page is as good as untouched afterwards.
  bool is_clean;
};

template <int advice>
bool AdvisePage(std::byte* page) {
  return madvise(page, kPageBytes, advice) == 0;
}

constexpr Taking kTakings[] = {
    {"dontneed", AdvisePage<MADV_DONTNEED>, true},
    {"dontneed_locked", AdvisePage<kMadvDontNeedLocked>, true},
    {"free",
     [](std::byte* page) {
       // Refused for pages of an image; paging out frees the others at once.
       if (madvise(page, kPageBytes, MADV_FREE) != 0) return false;
       madvise(page, kPageBytes, kMadvPageout);
       return true;
     },
     true},
    {"remove", AdvisePage<MADV_REMOVE>, true},
    {"munmap", [](std::byte* page) { return munmap(page, kPageBytes) == 0; },
     false},
    {"mremap",
     [](std::byte* page) {
       void* const elsewhere = mmap(nullptr, kPageBytes, PROT_NONE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
       return mremap(page, kPageBytes, kPageBytes,
                     MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere) == elsewhere;
     },
     false},
    {"protect_none",
     [](std::byte* page) { return mprotect(page, kPageBytes, PROT_NONE) == 0; },
     false},
    {"protect_read",
     [](std::byte* page) { return mprotect(page, kPageBytes, PROT_READ) == 0; },
     false},
    {"guard", AdvisePage<kMadvGuardInstall>, false},
};

using TakingCase = std::tuple<Way, Taking>;

class TakenPagesTest : public testing::TestWithParam<TakingCase> {};

// Afterwards the memory is right, or its slot is quarantined with the reason.
// The process survives in any case.
TEST_P(TakenPagesTest, ReleaseAndResetSurvive) {
  const ChildResult child = RunInChild([]() -> std::string {
    const auto& [way, taking] = GetParam();
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create(PoolOptions(way));
    if (!service.ok()) return "skip: " + service.status().ToString();
    const ImageRef image = PatternImage("image", 9, {3});
    constexpr uint64_t kSize = 12 * kPageBytes;
    const std::vector<uint8_t> initial = InitialBytes(image, kSize);
    uint64_t quarantined = 0;
    // A page of the image, a hole of it, and a page behind it; at a steady
    // release, at one that is not, and at a Reset.
    int lease = 0;
    for (const uint64_t page : {2, 3, 10}) {
      for (const int end : {0, 1, 2}) {
        const std::string when =
            absl::StrCat("page ", page, ", end ", end, ": ");
        for (int warm = 0; warm < 5; ++warm, ++lease) {
          absl::StatusOr<Memory> memory =
              (*service)->Acquire({.image = image, .size_bytes = kSize});
          if (!memory.ok() && quarantined == 2) {
            return (*service)->Stats().slots_quarantined == 2
                       ? ""
                       : when + memory.status().ToString();
          }
          if (!memory.ok()) return when + memory.status().ToString();
          if (FirstDifference(*memory, initial)) {
            return when + "bytes of another lease";
          }
          Store(*memory, page * kPageBytes + 9, 0xee);
          if (warm < 4) {
            if (!memory->Release().ok()) return when + "a release failed";
            continue;
          }
          if (end == 1) Store(*memory, 7 * kPageBytes, 0xee);
          if (!taking.take(memory->base() + page * kPageBytes)) {
            break;  // nothing was taken
          }
          absl::Status status = end == 2 ? memory->Reset() : memory->Release();
          if (status.ok() && !taking.is_clean) {
            // Only a page-by-page restore looks at the pages.
            return way.tracking == Tracking::kSignal && !way.by_mappings()
                       ? when + "nothing was noticed"
                       : "";
          }
          if (status.ok() && end == 2) {
            if (FirstDifference(*memory, initial)) {
              return when + "Reset left bytes";
            }
            status = memory->Release();
          }
          if (status.ok()) continue;
          if (taking.is_clean) return when + status.ToString();
          if (status.message().find("unmapped or made inaccessible") ==
                  std::string::npos &&
              status.message().find(" of slot ") == std::string::npos) {
            return when + status.ToString();
          }
          ++quarantined;
        }
      }
    }
    return "";
  });
  ExpectWell(child);
}

std::string TakingName(const testing::TestParamInfo<TakingCase>& info) {
  return WayName({std::get<0>(info.param), 0}) + "_" +
         std::get<1>(info.param).name;
}

INSTANTIATE_TEST_SUITE_P(Ways, TakenPagesTest,
                         testing::Combine(AllWays(),
                                          testing::ValuesIn(kTakings)),
                         TakingName);

class IdleSlotTest : public testing::TestWithParam<Way> {
 protected:
  // A pool whose only slot is idle and has clean pages of its last lease; runs
  // `body` in a child, and compares the next lease.
  static std::string WithIdleSlot(
      const std::function<std::string(std::byte* base)>& body) {
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create(PoolOptions(GetParam()));
    if (!service.ok()) return service.status().ToString();
    const ImageRef image = PatternImage("image", 9, {3});
    constexpr uint64_t kSize = 12 * kPageBytes;
    const std::vector<uint8_t> initial = InitialBytes(image, kSize);
    for (int cycle = 0; cycle < 4; ++cycle) {
      absl::StatusOr<Memory> memory =
          (*service)->Acquire({.image = image, .size_bytes = kSize});
      if (!memory.ok()) return memory.status().ToString();
      if (FirstDifference(*memory, initial)) {
        return absl::StrCat("cycle ", cycle, ": not the initial bytes");
      }
      Store(*memory, 7 * kPageBytes, 0xee);
      std::byte* const base = memory->base();
      if (!memory->Release().ok()) return "release";
      if (cycle == 2 && !(*service)->Trim().ok()) return "trim";
      // A page that is filled early afterwards may be written to.
      if (cycle == 3) break;
      const std::string wrong = body(base);
      if (!wrong.empty()) return absl::StrCat("cycle ", cycle, ": ", wrong);
    }
    return (*service)->Stats().slots_quarantined == 0 ? "" : "quarantined";
  }
};

INSTANTIATE_TEST_SUITE_P(Ways, IdleSlotTest, AllWays(), WayName);

// The kernel then writes to every page of the process, and can signal no
// thread.
TEST_P(IdleSlotTest, LockingItsPagesEnds) {
  if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
    GTEST_SKIP() << "this machine has no " << missing;
  }
  const ChildResult child = RunInChild([] {
    return WithIdleSlot([](std::byte*) -> std::string {
      mlockall(MCL_CURRENT);  // whatever it says
      munlockall();
      return "";
    });
  });
  EXPECT_EQ(child.output, "");
  EXPECT_FALSE(child.timed_out);
}

TEST_P(IdleSlotTest, AWriteByTheHostTraps) {
  if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
    GTEST_SKIP() << "this machine has no " << missing;
  }
  if (GetParam().by_mappings() || GetParam().tracking != Tracking::kSignal) {
    GTEST_SKIP() << "such a slot is writable while nobody has it";
  }
  const ChildResult child = RunInChild([] {
    return WithIdleSlot([](std::byte* base) -> std::string {
      // A stored page, a hole, and a page behind the image.
      for (const uint64_t page : {2, 3, 10}) {
        const auto at =
            reinterpret_cast<volatile std::byte*>(base) + page * kPageBytes;
        // Clean pages that are still there can be read.
        TrapOf([&] { static_cast<void>(*at); });
        const std::optional<TrapInfo> trap =
            TrapOf([&] { *at = std::byte{0xbb}; });
        if (!trap.has_value()) return absl::StrCat("no trap at page ", page);
        if (trap->leased) return "the trap is said to be a lease's";
      }
      return "";
    });
  });
  EXPECT_EQ(child.output, "");
  EXPECT_FALSE(child.timed_out);
}

// Touches more pages than a slot can note of those that had to be made to trap.
TEST_P(IdleSlotTest, PagesThatTheHostTouchedAreRestoredLikeOthers) {
  if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
    GTEST_SKIP() << "this machine has no " << missing;
  }
  if (GetParam().by_mappings() || GetParam().tracking != Tracking::kSignal) {
    GTEST_SKIP() << "such a slot is writable while nobody has it";
  }
  const ChildResult child = RunInChild([]() -> std::string {
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create(PoolOptions(GetParam()));
    if (!service.ok()) return service.status().ToString();
    constexpr uint64_t kPages = 24;
    const ImageRef image = PatternImage("image", kPages - 3, {3});
    const std::vector<uint8_t> initial =
        InitialBytes(image, kPages * kPageBytes);
    for (int cycle = 0; cycle < 4; ++cycle) {
      absl::StatusOr<Memory> memory = (*service)->Acquire(
          {.image = image, .size_bytes = kPages * kPageBytes});
      if (!memory.ok()) return memory.status().ToString();
      if (FirstDifference(*memory, initial)) {
        return absl::StrCat("cycle ", cycle, ": not the initial bytes");
      }
      std::byte* const base = memory->base();
      for (uint64_t page = 0; cycle > 0 && page < kPages; ++page) {
        Store(*memory, page * kPageBytes, 0xee);
      }
      if (!memory->Release().ok()) return "release";
      for (uint64_t page = 0; cycle == 0 && page < kPages; ++page) {
        const std::optional<TrapInfo> trap =
            TrapOf([&] { base[page * kPageBytes] = std::byte{0xbb}; });
        if (!trap.has_value()) return absl::StrCat("no trap at page ", page);
      }
    }
    return (*service)->Stats().slots_quarantined == 0 ? "" : "quarantined";
  });
  EXPECT_EQ(child.output, "");
  EXPECT_FALSE(child.timed_out);
}

// Where pages are present all the same, bounds would not hold: creating the
// pool fails.
TEST(PopulatedReservationTest, APoolThatIsPopulatedIsRefused) {
  FakeKernel kernel;
  kernel.Hook(FakeKernel::Op::kRegister, [](const FakeKernel::Call& call) {
    const uintptr_t last = call.start + call.bytes - kPageBytes;
    ASSERT_EQ(mprotect(reinterpret_cast<void*>(last), kPageBytes,
                       PROT_READ | PROT_WRITE),
              0);
    *reinterpret_cast<volatile char*>(last) = 1;
  });
  const absl::StatusOr<std::unique_ptr<Service>> service = CreateService(
      PoolOptions({Backing::kCopied, Resolve::kInThread}), kernel);
  if (kernel.Calls(FakeKernel::Op::kRegister) == 0) {
    GTEST_SKIP() << service.status();
  }
  EXPECT_EQ(service.status().code(), absl::StatusCode::kFailedPrecondition);
  const std::string text(service.status().message());
  EXPECT_THAT(text, AllOf(StartsWith("a page at offset "),
                          HasSubstr("mlockall(MCL_FUTURE)"),
                          HasSubstr("MAP_POPULATE")));
}

}  // namespace
}  // namespace firsttouch
