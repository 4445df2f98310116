#include "firsttouch/uffd/mapping_properties.h"

#include <sys/mman.h>
#include <sys/prctl.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Op = FakeKernel::Op;

constexpr size_t kBytes = 16 * kPageBytes;

uintptr_t Map(int protection, int more_flags = 0) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | more_flags;
  const CallResult mapped =
      RealKernel().Mmap(0, kBytes, protection, flags, -1, 0);
  EXPECT_TRUE(mapped.ok()) << mapped.error;
  return static_cast<uintptr_t>(mapped.value);
}

// The flags (" rd wr mr ... ") of the mapping that begins at the address.
std::string VmFlags(uintptr_t start) {
  std::ifstream file("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(file, line)) {
    unsigned long first, last;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2) {
      inside = first == start;
    }
    if (inside && line.rfind("VmFlags:", 0) == 0) return line.substr(8) + " ";
  }
  return "";
}

bool HasFlag(uintptr_t start, const std::string& flag) {
  return VmFlags(start).find(" " + flag + " ") != std::string::npos;
}

bool IsResident(uintptr_t address) {
  unsigned char resident = 0;
  EXPECT_EQ(mincore(reinterpret_cast<void*>(address), kPageBytes, &resident),
            0);
  return (resident & 1) != 0;
}

void Write(uintptr_t address) {
  *reinterpret_cast<volatile char*>(address) = 1;
}

TEST(MappingPropertiesTest, AreThoseOfThePool) {
  const uintptr_t start = Map(PROT_NONE);
  const MappingResult set =
      SetMappingProperties(RealKernel(), start, kBytes, {});
  EXPECT_TRUE(set.ok()) << set.call << " " << set.error;
  const std::string flags = VmFlags(start);
  EXPECT_THAT(flags,
              AllOf(HasSubstr(" dc "), HasSubstr(" dd "), HasSubstr(" nh ")));
  EXPECT_THAT(flags, AllOf(Not(HasSubstr(" mg ")), Not(HasSubstr(" lo "))));
  munmap(reinterpret_cast<void*>(start), kBytes);
}

TEST(MappingPropertiesTest, WhatTheCallerKnowsIsNotAskedForAgain) {
  FakeKernel kernel;
  const uintptr_t start = Map(PROT_NONE);
  const MappingResult set = SetMappingProperties(kernel, start, kBytes,
                                                 {.no_huge_pages_by_mmap = true,
                                                  .process_merges = false,
                                                  .may_be_populated = true});
  EXPECT_TRUE(set.ok());
  EXPECT_EQ(set.calls, 2u);  // MADV_DONTFORK, MADV_DONTDUMP
  EXPECT_EQ(kernel.Calls(Op::kMadvise), 2u);
  munmap(reinterpret_cast<void*>(start), kBytes);
}

TEST(MappingPropertiesTest, MmapForbidsHugePagesWhereAFeatureSaysSo) {
  absl::StatusOr<Uffd> uffd = Uffd::Open(RealKernel(), {});
  if (!uffd.ok() || !NoHugePagesByMmap(uffd->available_features())) {
    GTEST_SKIP() << "needs userfaultfd, and Linux 6.8";
  }
  const uintptr_t start = Map(PROT_NONE, MAP_STACK);
  EXPECT_THAT(VmFlags(start), HasSubstr(" nh "));
  munmap(reinterpret_cast<void*>(start), kBytes);
}

TEST(MappingPropertiesTest, AnErrorNamesItsCall) {
  FakeKernel kernel;
  const uintptr_t start = Map(PROT_NONE);
  const char* const names[] = {"MADV_DONTFORK", "MADV_DONTDUMP",
                               "MADV_NOHUGEPAGE", "MADV_DONTNEED"};
  for (uint64_t i = 0; i < 4; ++i) {
    kernel.Fail(Op::kMadvise, i + 1, CallResult{0, ENOMEM});
    const MappingResult set = SetMappingProperties(kernel, start, kBytes, {});
    EXPECT_EQ(set.error, ENOMEM);
    EXPECT_STREQ(set.call, names[i]);
    kernel.Clear(Op::kMadvise);
  }
  // First a kernel without huge pages, then one without them although they are
  // asked for.
  kernel.Fail(Op::kMadvise, 3, CallResult{0, EINVAL});
  EXPECT_TRUE(SetMappingProperties(kernel, start, kBytes, {}).ok());
  kernel.Clear(Op::kMadvise);
  kernel.Fail(Op::kMadvise, 3, CallResult{0, EINVAL});
  const MappingResult huge =
      SetMappingProperties(kernel, start, kBytes, {.huge_pages = true});
  EXPECT_EQ(huge.error, EINVAL);
  EXPECT_STREQ(huge.call, "MADV_HUGEPAGE");
  munmap(reinterpret_cast<void*>(start), kBytes);
}

// PR_SET_MEMORY_MERGE makes every mapping mergeable, future and present ones,
// whatever was advised for them before.
TEST(MappingPropertiesTest, NoMappingIsMergeableInAProcessThatMergesPages) {
  const ChildResult child = RunInChild([]() -> std::string {
    const uintptr_t before = Map(PROT_NONE);
    if (!SetMappingProperties(RealKernel(), before, kBytes, {}).ok()) {
      return "no properties";
    }
    if (ProcessMergesPages()) return "skip";
    if (prctl(kPrSetMemoryMerge, 1, 0, 0, 0) != 0) return "skip";
    if (!ProcessMergesPages()) return "merging is not seen";
    const uintptr_t after = Map(PROT_NONE);
    if (!HasFlag(after, "mg")) return "a new mapping is not mergeable";
    if (!SetMappingProperties(RealKernel(), after, kBytes, {}).ok()) {
      return "no properties while pages are merged";
    }
    if (HasFlag(after, "mg")) return "the mapping is mergeable still";
    if (!HasFlag(before, "mg")) return "an old mapping is not mergeable";
    if (!StopMerging(RealKernel(), before, kBytes).ok()) return "not stopped";
    return HasFlag(before, "mg") ? "the old mapping is mergeable still" : "";
  });
  if (child.output == "skip") GTEST_SKIP() << "needs PR_SET_MEMORY_MERGE (6.4)";
  EXPECT_EQ(child.output, "");
  EXPECT_EQ(child.exit_code, 0);
}

TEST(MappingPropertiesTest, AMappingIsEmptyAndUnlockedUnderMlockall) {
  for (const int flags :
       {MCL_FUTURE, MCL_CURRENT | MCL_FUTURE, MCL_FUTURE | MCL_ONFAULT}) {
    const ChildResult child = RunInChild([flags]() -> std::string {
      if (mlockall(flags) != 0) return "skip";
      const uintptr_t start = Map(PROT_NONE);
      if (!HasFlag(start, "lo")) return "a new mapping is not locked";
      if (!SetMappingProperties(RealKernel(), start, kBytes, {}).ok()) {
        return "no properties";
      }
      if (HasFlag(start, "lo")) return "the mapping is locked still";
      if (!RealKernel().Mprotect(start, kBytes, PROT_READ | PROT_WRITE).ok()) {
        return "not opened";
      }
      if (IsResident(start)) return "a page is there";
      // A mapping that is populated before it gets its properties loses its
      // pages.
      const uintptr_t open = Map(PROT_READ | PROT_WRITE);
      Write(open);
      if (!SetMappingProperties(RealKernel(), open, kBytes, {}).ok()) {
        return "no properties of what is populated";
      }
      return IsResident(open) ? "a page is there still" : "";
    });
    if (child.output == "skip") {
      GTEST_SKIP() << "needs RLIMIT_MEMLOCK or CAP_IPC_LOCK for mlockall";
    }
    EXPECT_EQ(child.output, "") << "flags " << flags;
    EXPECT_EQ(child.exit_code, 0);
  }
}

TEST(MappingPropertiesTest, LockedPagesAreDropped) {
  const uintptr_t start = Map(PROT_READ | PROT_WRITE);
  if (mlock(reinterpret_cast<void*>(start), kBytes) != 0) {
    GTEST_SKIP() << "needs RLIMIT_MEMLOCK of " << kBytes << " bytes";
  }
  Write(start);
  EXPECT_EQ(RealKernel().Madvise(start, kBytes, kMadvDontNeed).error, EINVAL);
  EXPECT_TRUE(DropMappedPages(RealKernel(), start, kBytes).ok());
  EXPECT_EQ(*reinterpret_cast<volatile char*>(start), 0);

  // A kernel before 5.18: the lock is removed.
  FakeKernel kernel;
  std::vector<uint64_t> advice;
  kernel.Hook(Op::kMadvise, [&](const FakeKernel::Call& call) {
    advice.push_back(call.mode);
  });
  kernel.Fail(Op::kMadvise, 2, CallResult{0, EINVAL});
  Write(start);
  EXPECT_TRUE(DropMappedPages(kernel, start, kBytes).ok());
  EXPECT_THAT(advice,
              ElementsAre(kMadvDontNeed, kMadvDontNeedLocked, kMadvDontNeed));
  EXPECT_EQ(*reinterpret_cast<volatile char*>(start), 0);
  EXPECT_TRUE(RealKernel().Madvise(start, kBytes, kMadvDontNeed).ok());
  munmap(reinterpret_cast<void*>(start), kBytes);
}

TEST(MappingPropertiesTest, WhatCannotBeDroppedIsAnError) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kMadvise, 1, CallResult{0, ENOMEM});
  EXPECT_EQ(DropMappedPages(kernel, 0x10000, kBytes).error, ENOMEM);
  EXPECT_EQ(kernel.Calls(Op::kMadvise), 1u);
  kernel.Clear(Op::kMadvise);
  kernel.Fail(Op::kMadvise, FakeKernel::kEvery, CallResult{0, EINVAL});
  EXPECT_EQ(DropMappedPages(kernel, 0x10000, kBytes).error, EINVAL);
}

}  // namespace
}  // namespace firsttouch
