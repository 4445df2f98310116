// Pools without userfaultfd: when they are chosen, and what the kernel's own
// mappings must hold to. service_test.cc, model_test.cc and failures_test.cc
// run the contract of all pools on them, too.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/supply.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using Op = FakeKernel::Op;

constexpr uint64_t kMax = 64 * kPageBytes;
constexpr uint64_t kGuard = 64 * 1024;

ServiceOptions Options(std::optional<Supply> supply) {
  return {.name = "mapped",
          .layout = {.instances = 3,
                     .max_memory_bytes = kMax,
                     .guard_before_bytes = kGuard,
                     .guard_after_bytes = kGuard},
          .supply = supply.has_value() ? ChoiceOf(*supply) : AnySupply{},
          .trap_callback = JumpOutOfTrap};
}

// Sets the environment for the time of a test.
class SupplyFromEnvironment {
 public:
  explicit SupplyFromEnvironment(const char* value) {
    setenv(kSupplyVariable, value, /*overwrite=*/1);
  }
  ~SupplyFromEnvironment() { unsetenv(kSupplyVariable); }
};

// ---- What is picked, and why
// -------------------------------------------------

TEST(WishedSupplyTest, EveryNameIsUnderstoodAndNothingElse) {
  for (const Supply supply :
       {Supply::kUserfaultfd, Supply::kMappingsDrop, Supply::kMappingsScan}) {
    const absl::StatusOr<SupplyWish> wish = WishedSupply(SupplyName(supply));
    ASSERT_TRUE(wish.ok());
    EXPECT_EQ(wish->supply, supply);
    EXPECT_EQ(wish->reason, "asked for by the environment: FIRSTTOUCH_SUPPLY");
  }
  for (const char* unset : {static_cast<const char*>(nullptr), ""}) {
    const absl::StatusOr<SupplyWish> wish = WishedSupply(unset);
    ASSERT_TRUE(wish.ok());
    EXPECT_EQ(wish->supply, std::nullopt);
  }
  const absl::StatusOr<SupplyWish> wrong = WishedSupply("uffd");
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(wrong.status().message()),
            "FIRSTTOUCH_SUPPLY=uffd names no supply: it must be userfaultfd, "
            "mappings-scan or mappings-drop, or unset to let the pool choose");
}

TEST(SupplyTest, TheEnvironmentForcesASupply) {
  {
    const SupplyFromEnvironment forced("mappings-drop");
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create(Options(std::nullopt));
    ASSERT_TRUE(service.ok()) << service.status();
    EXPECT_EQ((*service)->supply(), Supply::kMappingsDrop);
    EXPECT_THAT((*service)->Describe(),
                HasSubstr("supply: mappings-drop (asked for by the "
                          "environment: FIRSTTOUCH_SUPPLY)"));
  }
  const SupplyFromEnvironment forced("something");
  EXPECT_THAT(
      std::string(Service::Create(Options(std::nullopt)).status().message()),
      HasSubstr("FIRSTTOUCH_SUPPLY=something names no supply"));
}

// The kernel refuses userfaultfd with `error`, as under a container's filter.
void RefuseUserfaultfd(FakeKernel& kernel, int error) {
  for (const Op op :
       {Op::kOpenUserfaultfdSyscall, Op::kOpenUserfaultfdDevice}) {
    kernel.Fail(op, FakeKernel::kEvery, CallResult{0, error});
  }
}

TEST(SupplyTest, WhereUserfaultfdIsRefusedMappingsServeAndDescribeSaysWhy) {
  for (const int error : {EPERM, ENOSYS, EACCES}) {
    FakeKernel kernel;
    RefuseUserfaultfd(kernel, error);
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(Options(std::nullopt), kernel);
    ASSERT_TRUE(service.ok()) << service.status();
    EXPECT_TRUE(IsMappings((*service)->supply()));
    EXPECT_THAT(
        (*service)->Describe(),
        AllOf(
            HasSubstr(absl::StrCat("supply: ", SupplyName((*service)->supply()),
                                   " (userfaultfd is refused: no way to open "
                                   "a userfaultfd works on Linux")),
            HasSubstr(absl::StrCat("userfaultfd(2) with USER_MODE_ONLY: ",
                                   ErrnoText(error))),
            Not(HasSubstr("backing"))));
    // An explicit request gets the error.
    const absl::Status status =
        CreateService(Options(Supply::kUserfaultfd), kernel).status();
    EXPECT_THAT(std::string(status.message()),
                StartsWith("no way to open a userfaultfd works"));
  }
}

TEST(SupplyTest, AKernelWhoseUserfaultfdIsTooOldGetsMappings) {
  FakeKernel kernel;
  kernel.SetApiReply(kUffdFeatureMissingShmem, ~uint64_t{0});
  ServiceOptions options = Options(std::nullopt);
  absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService(options, kernel);
  ASSERT_TRUE(service.ok()) << service.status();
  EXPECT_TRUE(IsMappings((*service)->supply()));
  EXPECT_THAT((*service)->Describe(), HasSubstr("PAGEFAULT_FLAG_WP"));
}

TEST(SupplyTest, WhoMustHaveKernelFaultsAndMayNotGetsMappings) {
  // A user without privilege can have USER_MODE_ONLY descriptors only.
  const ChildResult child = RunInChild([]() -> std::string {
    if (!BecomeNobody()) return "skip";
    ServiceOptions options = Options(std::nullopt);
    options.supply =
        AnySupply{{.faults = InHandlerThreads{.kernel_faults = true}}};
    FakeKernel kernel;
    kernel.Fail(Op::kOpenUserfaultfdDevice, FakeKernel::kEvery,
                CallResult{0, EACCES});
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(options, kernel);
    if (!service.ok()) return std::string(service.status().message());
    return absl::StrCat((*service)->serves_kernel_faults(), " ",
                        (*service)->Describe());
  });
  if (child.output == "skip") GTEST_SKIP() << "there is no nobody";
  EXPECT_THAT(child.output, StartsWith("1 "));
  if (child.output.find("supply: userfaultfd") != std::string::npos) {
    GTEST_SKIP() << "vm.unprivileged_userfaultfd";
  }
  EXPECT_THAT(child.output, HasSubstr("also delivers faults of the kernel"));
}

TEST(SupplyTest, AFullTableOfDescriptorsIsNoReasonToBeSlow) {
  FakeKernel kernel;
  RefuseUserfaultfd(kernel, EMFILE);
  EXPECT_EQ(CreateService(Options(std::nullopt), kernel).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(SupplyTest, WithoutAScanMappingsDropAndDescribeSaysWhy) {
  FakeKernel kernel;
  RefuseUserfaultfd(kernel, EPERM);
  kernel.Fail(Op::kPagemapScan, FakeKernel::kEvery, CallResult{0, ENOTTY});
  absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService(Options(std::nullopt), kernel);
  ASSERT_TRUE(service.ok()) << service.status();
  EXPECT_EQ((*service)->supply(), Supply::kMappingsDrop);
  EXPECT_THAT((*service)->Describe(),
              HasSubstr("mappings-scan is not possible: this kernel has no "
                        "PAGEMAP_SCAN (Linux 6.7)"));
  EXPECT_EQ(
      std::string(CreateService(Options(Supply::kMappingsScan), kernel)
                      .status()
                      .message()),
      absl::StrCat("supply mappings-scan, asked for by ServiceOptions::supply, "
                   "needs PAGEMAP_SCAN (Linux 6.7): this kernel has no "
                   "PAGEMAP_SCAN (Linux 6.7): ",
                   ErrnoText(ENOTTY),
                   "; take scan = false (mappings-drop), or leave scan unset"));
}

// A process that does nothing until the end of the test. A scan of it shows
// nothing of this process, like a kernel that takes the call and answers
// wrongly.
class OtherProcess {
 public:
  OtherProcess() : pid_(fork()) {
    if (pid_ != 0) return;
    while (true) pause();
  }
  ~OtherProcess() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  UniqueFd OpenPagemap() const {
    return UniqueFd(open(absl::StrCat("/proc/", pid_, "/pagemap").c_str(),
                         O_RDONLY | O_CLOEXEC));
  }

 private:
  const pid_t pid_;
};

TEST(SupplyTest, AScanThatMissesPagesDecidesNothing) {
  if (!HasPagemapScan()) GTEST_SKIP() << "PAGEMAP_SCAN (Linux 6.7)";
  const OtherProcess other;
  UniqueFd pagemap = other.OpenPagemap();
  ASSERT_TRUE(pagemap);
  const absl::Status check =
      CheckPrivatePagesAreFound(RealKernel(), pagemap.get());
  EXPECT_EQ(check.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(std::string(check.message()),
            "PAGEMAP_SCAN took the wrong pages for private ones (bits 0, not "
            "6)");
  FakeKernel kernel;
  kernel.Fail(Op::kOpenPagemap, 1, CallResult{pagemap.release(), 0});
  EXPECT_THAT(std::string(CreateService(Options(Supply::kMappingsScan), kernel)
                              .status()
                              .message()),
              HasSubstr("PAGEMAP_SCAN took the wrong pages"));
  // A snapshot or a count must not believe the scan either.
  kernel.Fail(Op::kOpenPagemap, 1,
              CallResult{other.OpenPagemap().release(), 0});
  absl::StatusOr<std::unique_ptr<Service>> service =
      CreateService(Options(Supply::kMappingsDrop), kernel);
  ASSERT_TRUE(service.ok()) << service.status();
  Memory memory = *(*service)->Acquire({.size_bytes = kMax});
  Store(memory, 5 * kPageBytes, 1);
  EXPECT_EQ(memory.CountPages().changed, 1u);
  EXPECT_TRUE((*memory.Snapshot("seen"))->IsStored(PageIndex(5)));
}

// Runs a pool in a process that has no userfaultfd and no privilege.
std::string UseAPoolOfOnesOwn() {
  if (!BecomeNobody() || !RefuseSystemCalls({SYS_userfaultfd}, EPERM, true)) {
    return "skip";
  }
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(Options(std::nullopt));
  if (!service.ok()) return std::string(service.status().message());
  const ImageRef image = PatternImage("child", 4);
  for (int guest = 0; guest < 3; ++guest) {
    absl::StatusOr<Memory> memory =
        (*service)->Acquire({.image = image, .size_bytes = 8 * kPageBytes});
    if (!memory.ok()) return std::string(memory.status().message());
    if (FirstDifference(*memory, InitialBytes(image, 8 * kPageBytes))) {
      return "wrong bytes";
    }
    for (uint64_t page = 0; page < 8; ++page) {
      Store(*memory, page * kPageBytes + 1, 0xee);
    }
    if (!TrapOf([&] { Load(*memory, 8 * kPageBytes); })) return "no trap";
    if (!memory->Release().ok()) return "release";
  }
  return (*service)->Describe();
}

TEST(SupplyTest, AProcessThatIsRefusedUserfaultfdGetsAWorkingPoolByDefault) {
  const ChildResult child = RunInChild(UseAPoolOfOnesOwn);
  EXPECT_EQ(child.exit_code, 0);
  if (child.output == "skip")
    GTEST_SKIP() << "no seccomp filters, or no nobody";
  EXPECT_THAT(child.output,
              AllOf(HasSubstr("supply: mappings-"),
                    HasSubstr("userfaultfd is refused: no way to open"),
                    HasSubstr("EPERM")));
}

// ---- What mappings hold to
// ---------------------------------------------------

class MappingsTest : public testing::TestWithParam<Supply> {
 protected:
  void SetUp() override { MakeService(Options(GetParam())); }

  void MakeService(const ServiceOptions& options) {
    service_.reset();
    if (GetParam() == Supply::kMappingsScan && !HasPagemapScan()) {
      GTEST_SKIP() << "this machine has no PAGEMAP_SCAN (Linux 6.7)";
    }
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(options, kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  Memory MustAcquire(const MemoryOptions& options) {
    absl::StatusOr<Memory> memory = service_->Acquire(options);
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  bool drops() const { return GetParam() == Supply::kMappingsDrop; }

  FakeKernel kernel_;
  std::unique_ptr<Service> service_;
};

INSTANTIATE_TEST_SUITE_P(Both, MappingsTest,
                         testing::Values(Supply::kMappingsDrop,
                                         Supply::kMappingsScan),
                         [](const auto& info) {
                           return info.param == Supply::kMappingsDrop ? "Drop"
                                                                      : "Scan";
                         });

// One mapping of /proc/self/smaps.
struct Mapped {
  uintptr_t start = 0;
  uintptr_t end = 0;
  std::string permissions;
  std::string flags;
  uint64_t anonymous_bytes = 0;
};

std::vector<Mapped> MappingsOfPool(const Service& service) {
  std::vector<Mapped> mappings;
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  const uintptr_t end = service.base() + service.layout().reservation_bytes();
  bool ours = false;
  while (std::getline(smaps, line)) {
    Mapped mapped;
    char permissions[8];
    uint64_t kib = 0;
    if (sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %7s ", &mapped.start,
               &mapped.end, permissions) == 3) {
      ours = mapped.start < end && mapped.end > service.base();
      mapped.permissions = permissions;
      if (ours) mappings.push_back(mapped);
    } else if (ours && line.rfind("VmFlags:", 0) == 0) {
      mappings.back().flags = line + " ";
    } else if (ours &&
               sscanf(line.c_str(), "Anonymous: %" SCNu64 " kB", &kib) == 1) {
      mappings.back().anonymous_bytes = kib * 1024;
    }
  }
  return mappings;
}

uint64_t AccessibleBytes(const Service& service) {
  uint64_t bytes = 0;
  for (const Mapped& mapped : MappingsOfPool(service)) {
    if (mapped.permissions != "---p") bytes += mapped.end - mapped.start;
  }
  return bytes;
}

uint64_t PrivateBytes(const Service& service) {
  uint64_t bytes = 0;
  for (const Mapped& mapped : MappingsOfPool(service)) {
    bytes += mapped.anonymous_bytes;
  }
  return bytes;
}

TEST_P(MappingsTest, NothingIsAccessibleButWhatLeasesHaveAndHad) {
  EXPECT_EQ(AccessibleBytes(*service_), 0u);
  const ImageRef image = PatternImage("bounds", 10);
  Memory memory = MustAcquire({.image = image, .size_bytes = 20 * kPageBytes});
  EXPECT_EQ(AccessibleBytes(*service_), 20 * kPageBytes);
  ASSERT_EQ(memory.Grow(30 * kPageBytes - 7), absl::OkStatus());
  EXPECT_EQ(AccessibleBytes(*service_), 30 * kPageBytes);
  ASSERT_EQ(memory.Reset(), absl::OkStatus());
  EXPECT_EQ(AccessibleBytes(*service_), 20 * kPageBytes);
  ASSERT_EQ(memory.Grow(kMax), absl::OkStatus());
  ASSERT_EQ(memory.Release(), absl::OkStatus());
  // The next lease of the same size needs no call for its bounds.
  EXPECT_EQ(AccessibleBytes(*service_), 20 * kPageBytes);
  memory = MustAcquire({.image = image, .size_bytes = 10 * kPageBytes});
  EXPECT_EQ(AccessibleBytes(*service_), 10 * kPageBytes);
}

TEST_P(MappingsTest, EveryMappingKeepsThePropertiesOfThePool) {
  std::mt19937_64 random(1);
  const ImageRef images[] = {PatternImage("a", 10), PatternImage("bb", 31),
                             PatternImage("ccc", 1), nullptr};
  size_t most = 0;
  for (int i = 0; i < 300; ++i) {
    const ImageRef& image = images[random() % 4];
    const uint64_t least = image == nullptr ? 0 : image->size_bytes();
    const uint64_t size = least + random() % (kMax - least);
    Memory memory = MustAcquire({.image = image, .size_bytes = size});
    for (uint64_t at = random() % kPageBytes; at < size; at += 3 * kPageBytes) {
      Store(memory, at, 1);
    }
    Memory second = MustAcquire({.size_bytes = random() % kMax});
    ASSERT_TRUE(memory.GrowBy(random() % (kMax - size)).ok());
    const std::vector<Mapped> mappings = MappingsOfPool(*service_);
    most = std::max(most, mappings.size());
    for (const Mapped& mapped : mappings) {
      ASSERT_THAT(mapped.flags, AllOf(HasSubstr(" dc "), HasSubstr(" dd "),
                                      HasSubstr(" nh ")));
      ASSERT_THAT(mapped.permissions, testing::AnyOf("rw-p", "---p"));
    }
  }
  // As many as the check of the limits counts: the guard in front, four per
  // slot.
  EXPECT_LE(most, 1u + 4 * 3);
}

TEST_P(MappingsTest, AFreeSlotKeepsNoMoreThanItsRetainedPages) {
  ServiceOptions options = Options(GetParam());
  options.retained_pages_limit = 4;
  MakeService(options);
  const ImageRef image = PatternImage("retained", 20);
  for (const uint64_t changed : {4, 5}) {
    Memory memory = MustAcquire({.image = image, .size_bytes = kMax});
    for (uint64_t page = 0; page < changed; ++page) {
      Store(memory, (18 + page) * kPageBytes, 1);
    }
    EXPECT_EQ(PrivateBytes(*service_), changed * kPageBytes);
    EXPECT_EQ(memory.CountPages().writable, changed);
    EXPECT_EQ(memory.CountPages().changed, changed);
    ASSERT_EQ(memory.Release(), absl::OkStatus());
    EXPECT_EQ(PrivateBytes(*service_),
              drops() || changed > 4 ? 0 : changed * kPageBytes);
  }
}

TEST_P(MappingsTest, MoreRegionsThanOneCallHoldsAreAllRestored) {
  ServiceOptions options = Options(GetParam());
  options.layout.max_memory_bytes = 3000 * kPageBytes;
  options.retained_pages_limit = 3000;
  MakeService(options);
  const ImageRef image = PatternImage("regions", 1500, {64, 65, 700});
  const std::vector<uint8_t> initial = InitialBytes(image, 3000 * kPageBytes);
  for (int cycle = 0; cycle < 2; ++cycle) {
    Memory memory = MustAcquire({.image = image, .size_bytes = initial.size()});
    ASSERT_EQ(FirstDifference(memory, initial), std::nullopt) << cycle;
    for (uint64_t page = 0; page < 3000; page += 2) {
      Store(memory, page * kPageBytes + page, ~initial[page * kPageBytes]);
    }
  }
  const uint64_t restored = service_->Stats().pages_restored;
  EXPECT_EQ(restored, drops() ? 0u : 2 * 1500u);
}

TEST_P(MappingsTest, OptionsOfUserfaultfdAskForNothing) {
  const SupplyFromEnvironment forced(SupplyName(GetParam()));
  ServiceOptions options = Options(std::nullopt);
  options.supply =
      AnySupply{{.backing = Backing::kCopied,
                 .faults = InHandlerThreads{.kernel_faults = true}}};
  const uint64_t before = kernel_.Calls(Op::kEventFd);
  MakeService(options);
  EXPECT_EQ(kernel_.Calls(Op::kEventFd), before) << "a handler thread";
  EXPECT_TRUE(service_->serves_kernel_faults());
  Memory memory = MustAcquire({.size_bytes = kMax});
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(write(ends[1], "hello", 5), 5);
  EXPECT_EQ(read(ends[0], memory.base() + kPageBytes, 5), 5);
  EXPECT_EQ(Load(memory, kPageBytes + 4), 'o');
  // The kernel's accesses stop at the bound as well.
  ASSERT_EQ(memory.Reset(), absl::OkStatus());
  ASSERT_EQ(write(ends[1], "hello", 5), 5);
  EXPECT_EQ(read(ends[0], memory.base() + kMax, 5), -1);
  EXPECT_EQ(errno, EFAULT);
  close(ends[0]);
  close(ends[1]);
}

TEST_P(MappingsTest, APoolThatNeedsTooManyMappingsNamesTheLimit) {
  ServiceOptions options = Options(GetParam());
  options.layout.instances = 1000000;
  const absl::Status status = Service::Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("1000000 slots"), HasSubstr("(4 a slot)"),
                    HasSubstr("vm.max_map_count"),
                    HasSubstr(absl::StrCat("[supply ", SupplyName(GetParam()),
                                           ": asked for by"))));
}

TEST_P(MappingsTest, GrowthThatFailsChangesNothing) {
  Memory memory = MustAcquire({.size_bytes = 2 * kPageBytes});
  kernel_.Fail(Op::kMprotect, 1, CallResult{0, ENOMEM});
  absl::Status status = memory.Grow(5 * kPageBytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("mprotect of 12288 bytes at offset 8192 of slot"),
                    HasSubstr("vm.max_map_count")));
  EXPECT_EQ(memory.size_bytes(), 2 * kPageBytes);
  EXPECT_TRUE(TrapOf([&] { Load(memory, 2 * kPageBytes); }).has_value());
  EXPECT_EQ(AccessibleBytes(*service_), 2 * kPageBytes);
  // Nor does a growth past the maximum that another growth has made impossible.
  EXPECT_FALSE(memory.GrowBy(kMax).ok());
  EXPECT_EQ(AccessibleBytes(*service_), 2 * kPageBytes);
  EXPECT_EQ(memory.Grow(5 * kPageBytes), absl::OkStatus());
  Store(memory, 5 * kPageBytes - 1, 1);
}

TEST_P(MappingsTest, AReleaseWhoseAnyCallFailsShutsTheSlot) {
  struct Failing {
    Op op;
    const char* text;
  };
  const Failing calls[] = {
      {Op::kMadvise, "MADV_DONTNEED of"},
      {Op::kMprotect, "mprotect of"},
      {Op::kPagemapScan, "PAGEMAP_SCAN of 16384 bytes at offset 0 of slot"}};
  uint64_t quarantined = 0;
  for (const Failing& failing : calls) {
    if (failing.op == Op::kPagemapScan && drops()) continue;
    Memory memory = MustAcquire({.size_bytes = 4 * kPageBytes});
    ASSERT_EQ(memory.Grow(6 * kPageBytes), absl::OkStatus());
    Store(memory, 0, 0x5e);
    Store(memory, 5 * kPageBytes, 0x5e);
    volatile auto* stale = reinterpret_cast<volatile uint8_t*>(memory.base());
    kernel_.Fail(failing.op, 1, CallResult{0, EIO});
    const absl::Status status = memory.Release();
    EXPECT_THAT(std::string(status.message()), HasSubstr(failing.text));
    EXPECT_EQ(service_->Stats().slots_quarantined, ++quarantined);
    const std::optional<TrapInfo> trap = TrapOf([&] { (void)*stale; });
    ASSERT_TRUE(trap.has_value()) << failing.text;
    EXPECT_FALSE(trap->leased);
  }
}

TEST_P(MappingsTest, AnAcquireWhoseAnyCallFailsHandsNothingOut) {
  const ImageRef large = PatternImage("large", 20);
  const ImageRef small = PatternImage("small", 2);
  struct Failing {
    Op op;
    uint64_t nth;
  };
  // Two mappings, with three madvise calls each; then the bound moves back.
  const Failing calls[] = {{Op::kMmap, 1},    {Op::kMmap, 2},
                           {Op::kMadvise, 1}, {Op::kMadvise, 2},
                           {Op::kMadvise, 4}, {Op::kMprotect, 1}};
  for (const Failing& failing : calls) {
    MakeService(Options(GetParam()));
    for (int i = 0; i < 3; ++i) {
      std::vector<Memory> all;
      for (int j = 0; j < 3; ++j) {
        all.push_back(MustAcquire({.image = large, .size_bytes = kMax}));
      }
    }
    const uint64_t accessible = AccessibleBytes(*service_);
    kernel_.Fail(failing.op, failing.nth, CallResult{0, EAGAIN});
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = small, .size_bytes = 3 * kPageBytes});
    EXPECT_FALSE(memory.ok()) << static_cast<int>(failing.op) << failing.nth;
    kernel_.Clear(failing.op);
    EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
    EXPECT_EQ(AccessibleBytes(*service_), accessible - kMax);
    std::vector<Memory> all;
    for (int i = 0; i < 3; ++i) {
      all.push_back(
          MustAcquire({.image = small, .size_bytes = 3 * kPageBytes}));
      EXPECT_EQ(FirstDifference(all[i], InitialBytes(small, 3 * kPageBytes)),
                std::nullopt);
      EXPECT_TRUE(TrapOf([&] { Load(all[i], 3 * kPageBytes); }).has_value());
    }
  }
}

TEST_P(MappingsTest, AfterAResetThatFailedGrowthIsRefused) {
  Memory memory = MustAcquire({.size_bytes = 4 * kPageBytes});
  Store(memory, 0, 1);
  kernel_.Fail(drops() ? Op::kMadvise : Op::kPagemapScan, 1,
               CallResult{0, EIO});
  EXPECT_FALSE(memory.Reset().ok());
  EXPECT_TRUE(TrapOf([&] { Load(memory, 0); }).has_value());
  EXPECT_THAT(std::string(memory.GrowBy(kPageBytes).status().message()),
              HasSubstr("an earlier Reset or Snapshot of this memory failed"));
  EXPECT_EQ(AccessibleBytes(*service_), 0u);
}

TEST_P(MappingsTest, AMemoryThatOutlivesItsServiceIsShutAtItsRelease) {
  Memory first = MustAcquire({.size_bytes = kPageBytes});
  Memory second = MustAcquire({.size_bytes = kPageBytes});
  service_.reset();
  Store(first, 0, 0x5e);
  volatile auto* stale = reinterpret_cast<volatile uint8_t*>(first.base());
  ASSERT_EQ(first.Release(), absl::OkStatus());
  EXPECT_TRUE(TrapOf([&] { (void)*stale; }).has_value());
}

// ---- Signals
// -----------------------------------------------------------------

FaultOutcome Handle(int signal, int code, const void* address, bool write,
                    bool fetch = false) {
  siginfo_t info = {};
  info.si_signo = signal;
  info.si_code = code;
  info.si_addr = const_cast<void*>(address);
  ucontext_t context = {};
  EXPECT_EQ(getcontext(&context), 0);
  context.uc_mcontext.gregs[REG_ERR] = 4 + (write ? 2 : 0) + (fetch ? 16 : 0);
  return HandleFault(signal, &info, &context);
}

TEST_P(MappingsTest, AnAccessThatCameIntoTheBoundsMeanwhileRunsAgain) {
  Memory memory = MustAcquire({.size_bytes = 2 * kPageBytes});
  // The touch was out of bounds, and another thread has grown the memory before
  // the handler looked.
  ASSERT_EQ(memory.Grow(4 * kPageBytes), absl::OkStatus());
  Store(memory, 3 * kPageBytes + 8, 0x77);
  for (const bool write : {false, true}) {
    for (const uint64_t offset : {8, 9, 4095}) {
      EXPECT_EQ(Handle(SIGSEGV, SEGV_ACCERR,
                       memory.base() + 3 * kPageBytes + offset, write),
                FaultOutcome::kResolved);
    }
  }
  EXPECT_EQ(Load(memory, 3 * kPageBytes + 8), 0x77);
}

TEST_P(MappingsTest, WhatSomebodyElseMadeInaccessibleIsNotOurs) {
  Memory memory = MustAcquire({.size_bytes = 4 * kPageBytes});
  std::byte* const page = memory.base() + kPageBytes;
  ASSERT_EQ(mprotect(page, kPageBytes, PROT_NONE), 0);
  EXPECT_EQ(Handle(SIGSEGV, SEGV_ACCERR, page, false), FaultOutcome::kNotMine);
  EXPECT_EQ(Handle(SIGSEGV, SEGV_ACCERR, page, true), FaultOutcome::kNotMine);
  ASSERT_EQ(mprotect(page, kPageBytes, PROT_READ), 0);
  EXPECT_EQ(Handle(SIGSEGV, SEGV_ACCERR, page, true), FaultOutcome::kNotMine);
  ASSERT_EQ(mprotect(page, kPageBytes, PROT_READ | PROT_WRITE), 0);
  // Executing code in a memory would fault forever.
  EXPECT_EQ(Handle(SIGSEGV, SEGV_ACCERR, page, false, /*fetch=*/true),
            FaultOutcome::kNotMine);
  // A hardware memory error is for the host to handle.
  EXPECT_EQ(Handle(SIGBUS, BUS_MCEERR_AR, page, false), FaultOutcome::kNotMine);
}

TEST_P(MappingsTest, APageThatTheKernelCannotSupplyEndsWithAMessage) {
  Memory memory = MustAcquire({.size_bytes = 4 * kPageBytes});
  testing::internal::CaptureStderr();
  EXPECT_EQ(Handle(SIGBUS, BUS_ADRERR, memory.base() + 5, false),
            FaultOutcome::kUnhandledTrap);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("firsttouch: cannot supply the page at offset 5 of "
                        "pool \"mapped\", instance 0, memory 0: the kernel's "
                        "own page fault failed with errno 14"));
}

TEST_P(MappingsTest, ThreadsThatTouchWhileOthersGrowNeverDie) {
  for (int round = 0; round < 30; ++round) {
    Memory memory = MustAcquire({.size_bytes = kPageBytes});
    ASSERT_EQ(AccessibleBytes(*service_), kPageBytes) << round;
    std::atomic<bool> stop{false};
    std::thread toucher([&] {
      ASSERT_EQ(EnsureAlternateStack(), absl::OkStatus());
      while (!stop.load()) {
        // Each touch traps or reads zero, whichever comes first.
        for (uint64_t page = 0; page < 64; ++page) {
          uint8_t value = 0;
          TrapOf([&] { value = Load(memory, page * kPageBytes); });
          ASSERT_EQ(value, 0);
        }
      }
    });
    std::vector<std::thread> growers;
    for (const uint64_t pages : {1, 3}) {
      growers.emplace_back([&memory, pages] {
        while (memory.GrowBy(pages * kPageBytes).ok()) {
        }
      });
    }
    for (std::thread& grower : growers) grower.join();
    stop.store(true);
    toucher.join();
    EXPECT_EQ(memory.size_bytes(), kMax);
    EXPECT_EQ(AccessibleBytes(*service_), kMax);
  }
}

TEST_P(MappingsTest, AForkedChildHasNothingOfThePool) {
  Memory memory = MustAcquire(
      {.image = PatternImage("forked", 2), .size_bytes = 4 * kPageBytes});
  Store(memory, 0, 0x5e);
  Store(memory, 3 * kPageBytes, 0x5e);
  const ChildResult child = RunInChild([&]() -> std::string {
    return absl::StrCat(MappingsOfPool(*service_).size(), " mappings, ",
                        memory.Reset().message());
  });
  EXPECT_THAT(child.output,
              AllOf(StartsWith("0 mappings, "),
                    HasSubstr("belongs to the process that made it")));
  EXPECT_EQ(Load(memory, 3 * kPageBytes), 0x5e);
}

}  // namespace
}  // namespace firsttouch
