#include "firsttouch/uffd/probe.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Op = FakeKernel::Op;
using How = Uffd::How;

const MappingFact* MappingOf(const UffdFacts& facts, const std::string& kind) {
  for (const MappingFact& mapping : facts.mappings) {
    if (mapping.kind == kind) return &mapping;
  }
  return nullptr;
}

TEST(Probe, LeavesNothingBehind) {
  FakeKernel kernel;
  Probe(kernel);
  const int before = dup(0);
  close(before);
  const UffdFacts facts = Probe(kernel);
  const int after = dup(0);
  close(after);
  EXPECT_EQ(before, after) << "a descriptor was left open";
  EXPECT_EQ(kernel.Calls(Op::kMmap) - kernel.Calls(Op::kMunmap),
            // Address bits that this machine does not have.
            2u * static_cast<unsigned>(56 - facts.address_bits));
}

TEST(Probe, KnowsThisMachine) {
  const UffdFacts facts = Probe(RealKernel());
  EXPECT_EQ(facts.kernel_release, KernelRelease());
  EXPECT_EQ(facts.machine, "x86_64");
  EXPECT_EQ(facts.uid, geteuid());
  EXPECT_EQ(facts.ways.size(), 4u);
  EXPECT_GE(facts.address_bits, 38);
  EXPECT_GT(facts.mapping_count, 3u);
  if (!facts.can_open) GTEST_SKIP() << "no userfaultfd";
  EXPECT_NE(facts.features & kUffdFeatureSigbus, 0u);
}

TEST(Probe, KnowsWhatEachKindOfMappingCanHave) {
  const UffdFacts facts = Probe(RealKernel());
  if (!facts.can_open) GTEST_SKIP() << "no userfaultfd";
  const MappingFact* anonymous = MappingOf(facts, "private anonymous memory");
  ASSERT_NE(anonymous, nullptr);
  EXPECT_NE(anonymous->modes & kUffdRegisterMissing, 0u);
  EXPECT_EQ(anonymous->modes & kUffdRegisterMinor, 0u);
  EXPECT_NE(anonymous->ioctls & kUffdIoctlCopy, 0u);
  const MappingFact* file = MappingOf(facts, "private mapping of another file");
  struct statfs system = {};
  ASSERT_EQ(statfs("/proc/self/exe", &system), 0);
  ASSERT_EQ(file == nullptr, system.f_type == TMPFS_MAGIC);
  EXPECT_EQ(file != nullptr ? file->modes & kUffdRegisterMissing : 0, 0u);
  const MappingFact* memfd = MappingOf(facts, "private mapping of a memfd");
  ASSERT_NE(memfd, nullptr);
  if ((facts.features & kUffdFeatureMinorShmem) == 0) {
    GTEST_SKIP() << "MINOR_SHMEM (Linux 5.14)";
  }
  EXPECT_NE(memfd->modes & kUffdRegisterMinor, 0u);
  EXPECT_NE(memfd->ioctls & kUffdIoctlContinue, 0u);
}

TEST(Probe, ARefusalOfEverythingIsAdvisedOn) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kOpenUserfaultfdSyscall, FakeKernel::kEvery,
              CallResult{0, EPERM});
  kernel.Fail(Op::kOpenUserfaultfdDevice, FakeKernel::kEvery,
              CallResult{0, EACCES});
  kernel.Fail(Op::kOpenPagemap, FakeKernel::kEvery, CallResult{7, 0});
  kernel.Fail(Op::kPagemapScan, FakeKernel::kEvery, CallResult{0, ENOTTY});
  const UffdFacts facts = Probe(kernel);
  EXPECT_FALSE(facts.can_open);
  EXPECT_FALSE(facts.kernel_faults);
  ASSERT_EQ(facts.ways.size(), 4u);
  EXPECT_EQ(facts.ways[0].how, How::kSyscallUserModeOnly);
  EXPECT_EQ(facts.ways[0].error, EPERM);
  EXPECT_EQ(facts.ways[2].error, EACCES);
  const std::string advice = absl::StrJoin(facts.advice, "\n");
  EXPECT_THAT(
      advice,
      AllOf(HasSubstr("userfaultfd, by userfaultfd(2) with USER_MODE_ONLY: a "
                      "seccomp filter refuses the call"),
            HasSubstr("userfaultfd, by /dev/userfaultfd: give this user the "
                      "device"),
            HasSubstr("sysctl -w vm.unprivileged_userfaultfd=1"),
            HasSubstr("PAGEMAP_SCAN comes with Linux 6.7.")));
}

TEST(Probe, UserModeOnlyIsSaidToLoseSystemCalls) {
  const ChildResult child = RunInChild([] {
    if (!BecomeNobody()) return std::string("skip");
    const UffdFacts facts = Probe(RealKernel());
    return absl::StrCat(facts.can_open, facts.kernel_faults, " ",
                        facts.unprivileged_userfaultfd.value_or(-1), "\n",
                        absl::StrJoin(facts.advice, "\n"));
  });
  if (child.output == "skip") GTEST_SKIP() << "cannot become nobody";
  if (child.output.substr(0, 2) != "10") {
    GTEST_SKIP() << "nobody may do more or less here: " << child.output;
  }
  EXPECT_THAT(child.output,
              AllOf(HasSubstr("system calls on memory that is not there yet "
                              "get EFAULT"),
                    HasSubstr("by /dev/userfaultfd: "),
                    HasSubstr("by userfaultfd(2): needs CAP_SYS_PTRACE")));
}

TEST(Probe, ALimitOnAddressSpaceIsNamed) {
  const ChildResult child = RunInChild([] {
    rlimit limit{uint64_t{4} << 30, uint64_t{4} << 30};
    setrlimit(RLIMIT_AS, &limit);
    return absl::StrJoin(Probe(RealKernel()).advice, "\n");
  });
  EXPECT_THAT(child.output,
              HasSubstr("RLIMIT_AS is 4294967296 bytes, and a pool's "
                        "reservation counts in full"));
}

TEST(Probe, ASeccompFilterIsSeen) {
  const ChildResult child = RunInChild([] {
    if (!RefuseSystemCalls({SYS_userfaultfd}, EPERM, true)) {
      return std::string("skip");
    }
    const UffdFacts facts = Probe(RealKernel());
    return absl::StrCat(facts.can_open, " ", facts.seccomp_mode, " ",
                        absl::StrJoin(facts.container_hints, ","));
  });
  if (child.output == "skip") GTEST_SKIP() << "seccomp filters";
  EXPECT_THAT(child.output,
              AllOf(testing::StartsWith("0 2 "), HasSubstr("seccomp filter")));
}

TEST(Probe, UnknownFeaturesAreKept) {
  FakeKernel kernel;
  kernel.SetApiReply(kUffdFeatureSigbus | (uint64_t{1} << 44), 0);
  const UffdFacts facts = Probe(kernel);
  if (!facts.can_open) GTEST_SKIP() << "no userfaultfd";
  EXPECT_EQ(facts.features, kUffdFeatureSigbus | (uint64_t{1} << 44));
  EXPECT_THAT(absl::StrJoin(facts.advice, "\n"),
              AllOf(HasSubstr("a newer kernel has the features "
                              "PAGEFAULT_FLAG_WP (Linux 5.7), EVENT_FORK"),
                    HasSubstr(", MOVE (Linux 6.8).")));
}

}  // namespace
}  // namespace firsttouch
