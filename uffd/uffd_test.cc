#include "firsttouch/uffd/uffd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using Op = FakeKernel::Op;
using How = Uffd::How;

constexpr size_t kPage = 4096;

std::string Message(const absl::Status& status) {
  return std::string(status.message());
}

// ---- Opening ----

TEST(UffdOpen, TriesTheLeastPrivilegeFirst) {
  FakeKernel kernel;
  absl::StatusOr<Uffd> uffd =
      Uffd::Open(kernel, {.required_features = kUffdFeatureSigbus});
  if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  if (uffd->how() != How::kSyscallUserModeOnly) {
    GTEST_SKIP() << "USER_MODE_ONLY does not work here";
  }
  EXPECT_EQ(kernel.Calls(Op::kOpenUserfaultfdDevice), 0u);
  EXPECT_EQ(uffd->features(), kUffdFeatureSigbus);
  EXPECT_FALSE(uffd->kernel_faults());
  EXPECT_EQ(fcntl(uffd->fd(), F_GETFD), FD_CLOEXEC);
  EXPECT_NE(fcntl(uffd->fd(), F_GETFL) & O_NONBLOCK, 0);
}

TEST(UffdOpen, GoesOnToTheDeviceWhereTheSyscallIsRefused) {
  FakeKernel kernel;
  kernel.Fail(Op::kOpenUserfaultfdSyscall, FakeKernel::kEvery,
              CallResult{0, EPERM});
  const absl::StatusOr<Uffd> uffd = Uffd::Open(kernel, {});
  if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  EXPECT_EQ(uffd->how(), How::kDeviceUserModeOnly);
}

// The order and the flags, on a kernel where every way fails.
std::string OrderOfTries(bool kernel_faults) {
  FakeKernel kernel(FakeKernel::kScripted);
  std::string order;
  const auto note = [&order](const char* name) {
    return [&order, name](const FakeKernel::Call& call) {
      order += name;
      if ((call.mode & kUffdUserModeOnly) != 0) order += "+user-mode-only";
      order += " ";
    };
  };
  kernel.Hook(Op::kOpenUserfaultfdDevice, note("device"));
  kernel.Hook(Op::kOpenUserfaultfdSyscall, note("syscall"));
  EXPECT_FALSE(Uffd::Open(kernel, {.kernel_faults = kernel_faults}).ok());
  return order;
}

TEST(UffdOpen, OrderFitsWhatIsAsked) {
  EXPECT_EQ(OrderOfTries(false),
            "syscall+user-mode-only device+user-mode-only syscall ");
  EXPECT_EQ(OrderOfTries(true), "device syscall ");
}

TEST(UffdOpen, ARefusalByASecurityModuleHasARemedy) {
  for (const Uffd::How how :
       {Uffd::How::kSyscallUserModeOnly, Uffd::How::kSyscall}) {
    EXPECT_EQ(UffdOpenRemedy(how, EACCES),
              "a security module refuses it: with SELinux, allow this domain "
              "the class anon_inode for [userfaultfd] (ausearch -m AVC shows "
              "the denial)");
  }
}

TEST(UffdOpen, ListsEachTryWithItsErrnoAndRemedy) {
  FakeKernel kernel;
  kernel.Fail(Op::kOpenUserfaultfdSyscall, FakeKernel::kEvery,
              CallResult{0, EPERM});
  kernel.Fail(Op::kOpenUserfaultfdDevice, FakeKernel::kEvery,
              CallResult{0, EACCES});
  const absl::Status user = Uffd::Open(kernel, {}).status();
  EXPECT_EQ(user.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(
      Message(user),
      "no way to open a userfaultfd works on Linux " + KernelRelease() +
          ":\n"
          "  userfaultfd(2) with USER_MODE_ONLY: EPERM: Operation not "
          "permitted (errno 1); a seccomp filter refuses the call, as Docker's "
          "default profile does: docker run --security-opt seccomp=PROFILE "
          "with a profile that allows userfaultfd, or --device "
          "/dev/userfaultfd\n"
          "  /dev/userfaultfd with USER_MODE_ONLY: EACCES: Permission denied "
          "(errno 13); give this user the device: chmod 0666 "
          "/dev/userfaultfd, or for good a udev rule KERNEL==\"userfaultfd\", "
          "MODE=\"0666\"; where the mode allows it, a security module "
          "refuses it (SELinux: ausearch -m AVC)\n"
          "  userfaultfd(2): EPERM: Operation not permitted (errno 1); needs "
          "CAP_SYS_PTRACE or sysctl -w vm.unprivileged_userfaultfd=1, and no "
          "seccomp filter that refuses the call");

  const absl::Status with_kernel =
      Uffd::Open(kernel, {.kernel_faults = true}).status();
  EXPECT_THAT(
      Message(with_kernel),
      AllOf(HasSubstr("a userfaultfd that also delivers faults of the kernel "
                      "works"),
            HasSubstr("/dev/userfaultfd: EACCES"),
            HasSubstr("userfaultfd(2): EPERM"),
            HasSubstr("vm.unprivileged_userfaultfd=1"),
            Not(HasSubstr("USER_MODE_ONLY"))));
}

TEST(UffdOpen, AKernelWithoutUserfaultfd) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kOpenUserfaultfdDevice, FakeKernel::kEvery,
              CallResult{0, ENOENT});
  const absl::Status status = Uffd::Open(kernel, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("ENOSYS: Function not implemented (errno 38); "
                              "the kernel was built without "
                              "CONFIG_USERFAULTFD, or a seccomp filter hides "
                              "the call"),
                    HasSubstr("Linux 6.1 brings the device")));
}

TEST(UffdOpen, AnOldKernelTakesThePlainSyscall) {
  FakeKernel kernel;
  // Before 5.11 the flag is unknown; before 6.1 there is no device.
  kernel.Fail(Op::kOpenUserfaultfdSyscall, 1, CallResult{0, EINVAL});
  kernel.Fail(Op::kOpenUserfaultfdDevice, FakeKernel::kEvery,
              CallResult{0, ENOENT});
  const absl::StatusOr<Uffd> uffd = Uffd::Open(kernel, {});
  if (!uffd.ok()) {
    EXPECT_THAT(Message(uffd.status()),
                HasSubstr("EINVAL: Invalid argument (errno 22); Linux 5.11 "
                          "brings this flag"));
    GTEST_SKIP() << "plain userfaultfd(2) is not permitted here";
  }
  EXPECT_EQ(uffd->how(), How::kSyscall);
  EXPECT_TRUE(uffd->kernel_faults());
}

TEST(UffdOpen, AFullDescriptorTableIsNamed) {
  const ChildResult child = RunInChild([] {
    rlimit limit{40, 40};
    setrlimit(RLIMIT_NOFILE, &limit);
    while (open("/dev/null", O_RDONLY) >= 0) {
    }
    return Uffd::Open(RealKernel(), {}).status().ToString();
  });
  EXPECT_EQ(child.output,
            "RESOURCE_EXHAUSTED: a userfaultfd cannot be opened: EMFILE: Too "
            "many open files (errno 24); this process has used up "
            "RLIMIT_NOFILE, which is 40: close descriptors or raise it "
            "(ulimit -n)");
}

TEST(UffdOpen, OneDescriptorShortOfTheSecondOpenIsTheSame) {
  FakeKernel kernel;
  kernel.Fail(Op::kOpenUserfaultfdSyscall, 2, CallResult{0, ENFILE});
  const absl::Status status = Uffd::Open(kernel, {}).status();
  if (kernel.Calls(Op::kOpenUserfaultfdDevice) > 0) GTEST_SKIP();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("fs.file-max"));
}

TEST(UffdOpen, ASeccompFilterIsNamed) {
  const ChildResult child = RunInChild([] {
    if (!RefuseSystemCalls({SYS_userfaultfd}, EPERM, true)) {
      return std::string("skip");
    }
    return Uffd::Open(RealKernel(), {}).status().ToString();
  });
  if (child.output == "skip") GTEST_SKIP() << "seccomp filters";
  EXPECT_THAT(
      child.output,
      AllOf(HasSubstr("PERMISSION_DENIED: no way to open a userfaultfd works"),
            HasSubstr("userfaultfd(2) with USER_MODE_ONLY: EPERM"),
            HasSubstr("/dev/userfaultfd with USER_MODE_ONLY: E"),
            HasSubstr("userfaultfd(2): EPERM"),
            HasSubstr("a seccomp filter refuses the call")));
}

TEST(UffdOpen, WorksForNobodyWithTheDeviceRootsOwn) {
  const ChildResult child = RunInChild([] {
    if (!BecomeNobody()) return std::string("skip");
    const absl::StatusOr<Uffd> uffd =
        Uffd::Open(RealKernel(), {.required_features = kUffdFeatureSigbus});
    return uffd.ok() ? std::string(UffdHowName(uffd->how()))
                     : uffd.status().ToString();
  });
  if (child.output == "skip") GTEST_SKIP() << "cannot become nobody";
  EXPECT_EQ(child.exit_code, 0);
  EXPECT_EQ(child.output, "userfaultfd(2) with USER_MODE_ONLY");
}

TEST(UffdOpen, TellsNobodyWhatKernelFaultsNeed) {
  struct stat device;
  if (stat(kUffdDevicePath, &device) == 0 && (device.st_mode & 0006) != 0) {
    GTEST_SKIP() << "everybody may use /dev/userfaultfd here";
  }
  const ChildResult child = RunInChild([] {
    if (!BecomeNobody()) return std::string("skip");
    return Uffd::Open(RealKernel(), {.kernel_faults = true})
        .status()
        .ToString();
  });
  if (child.output == "skip") GTEST_SKIP() << "cannot become nobody";
  if (child.output == "OK") GTEST_SKIP() << "vm.unprivileged_userfaultfd is 1";
  EXPECT_THAT(child.output, AllOf(HasSubstr("/dev/userfaultfd: E"),
                                  HasSubstr("userfaultfd(2): EPERM"),
                                  HasSubstr("CAP_SYS_PTRACE or sysctl -w "
                                            "vm.unprivileged_userfaultfd=1")));
}

// ---- Features ----

TEST(UffdOpen, ListsMissingFeaturesWithTheirVersions) {
  FakeKernel kernel;
  kernel.SetApiReply(kUffdFeatureSigbus | kUffdFeatureThreadId, 0);
  const absl::Status status =
      Uffd::Open(kernel,
                 {.required_features = kUffdFeatureSigbus | kUffdFeaturePoison |
                                       kUffdFeatureMove | (uint64_t{1} << 33)})
          .status();
  if (kernel.Calls(Op::kApi) == 0) GTEST_SKIP() << status;
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Message(status),
            "Linux " + KernelRelease() +
                " lacks required userfaultfd features: POISON (Linux 6.6), "
                "MOVE (Linux 6.8), bit 33 (unknown to this library); it has "
                "SIGBUS|THREAD_ID");
  EXPECT_EQ(kernel.Calls(Op::kClose), 1u) << "the probe's descriptor";
}

TEST(UffdOpen, WishedFeaturesAreTakenWhereTheyAre) {
  FakeKernel kernel;
  kernel.SetApiReply(kUffdFeatureSigbus | kUffdFeatureThreadId, 0);
  const absl::StatusOr<Uffd> uffd = Uffd::Open(
      kernel, {.required_features = kUffdFeatureSigbus,
               .wished_features = kUffdFeatureThreadId | kUffdFeatureMove |
                                  (uint64_t{1} << 50)});
  if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  EXPECT_EQ(uffd->features(), kUffdFeatureSigbus | kUffdFeatureThreadId);
}

TEST(UffdOpen, AKernelFromTheFutureIsWelcome) {
  FakeKernel kernel;
  kernel.SetApiReply(~uint64_t{0}, ~uint64_t{0});
  kernel.SetRegisterIoctls(~uint64_t{0});
  const absl::StatusOr<Uffd> uffd =
      Uffd::Open(kernel, {.required_features = kUffdFeatureSigbus});
  if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  EXPECT_EQ(uffd->features(), kUffdFeatureSigbus);
  EXPECT_EQ(uffd->available_features(), ~uint64_t{0});
  ScratchMemory memory(4 * kPage);
  EXPECT_TRUE(uffd->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing,
                             kUffdIoctlCopy | kUffdIoctlZeroPage)
                  .ok());
}

TEST(UffdOpen, AHandshakeThatFailsIsReported) {
  FakeKernel kernel;
  kernel.Fail(Op::kApi, 2, CallResult{0, EPERM});
  const absl::Status status =
      Uffd::Open(kernel, {.required_features = kUffdFeatureEventFork}).status();
  if (kernel.Calls(Op::kApi) < 2) GTEST_SKIP() << status;
  EXPECT_EQ(Message(status).substr(0, Message(status).find(':', 30)),
            "UFFDIO_API with EVENT_FORK: EPERM");
  EXPECT_THAT(Message(status), HasSubstr("EVENT_FORK needs CAP_SYS_PTRACE"));
  EXPECT_EQ(kernel.Calls(Op::kClose), 2u);
}

// ---- Lifetime ----

TEST(Uffd, ClosesOnceAndWhenReplaced) {
  FakeKernel kernel;
  absl::StatusOr<Uffd> first = Uffd::Open(kernel, {});
  absl::StatusOr<Uffd> second = Uffd::Open(kernel, {});
  if (!first.ok() || !second.ok()) GTEST_SKIP() << first.status();
  kernel.ResetCalls();
  const int first_fd = first->fd();
  const int second_fd = second->fd();
  {
    Uffd moved = *std::move(first);
    EXPECT_EQ(moved.fd(), first_fd);
    moved = *std::move(second);
    EXPECT_EQ(kernel.Calls(Op::kClose), 1u);
    EXPECT_EQ(fcntl(first_fd, F_GETFD), -1);
    EXPECT_EQ(moved.fd(), second_fd);
  }
  EXPECT_EQ(kernel.Calls(Op::kClose), 2u);
  EXPECT_EQ(fcntl(second_fd, F_GETFD), -1);
}

// ---- Registering ----

class UffdRegister : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<Uffd> uffd =
        Uffd::Open(kernel_, {.required_features = kUffdFeatureSigbus,
                             .wished_features = kUffdFeatureMinorShmem |
                                                kUffdFeatureWpHugetlbfsShmem |
                                                kUffdFeaturePagefaultFlagWp});
    if (!uffd.ok()) GTEST_SKIP() << uffd.status();
    uffd_ = std::make_unique<Uffd>(*std::move(uffd));
  }

  FakeKernel kernel_;
  std::unique_ptr<Uffd> uffd_;
};

TEST_F(UffdRegister, NamesAFileMapping) {
  const char* directory = std::getenv("TEST_TMPDIR");
  std::string path =
      std::string(directory == nullptr ? "/var/tmp" : directory) +
      "/firsttouch XXXXXX";
  UniqueFd file(mkstemp(path.data()));
  ASSERT_TRUE(file);
  ASSERT_EQ(ftruncate(file.get(), 4 * kPage), 0);
  void* mapped = mmap(nullptr, 4 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED,
                      file.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  const absl::Status status =
      uffd_->Register(reinterpret_cast<uintptr_t>(mapped), 4 * kPage,
                      kUffdRegisterMissing | kUffdRegisterWp, 0);
  munmap(mapped, 4 * kPage);
  unlink(path.c_str());
  if (status.ok()) GTEST_SKIP() << path << " is on tmpfs";
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("(16384 bytes) for MISSING|WP: EINVAL"),
                    HasSubstr("shared file mapping " + path +
                              ": a file mapping cannot be registered"),
                    HasSubstr("use anonymous memory, or a mapping of a "
                              "memfd")));
}

TEST_F(UffdRegister, MinorNeedsAFile) {
  ScratchMemory memory(4 * kPage);
  const absl::Status status =
      uffd_->Register(memory.address(), memory.bytes(), kUffdRegisterMinor, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status),
              HasSubstr("private anonymous memory: private anonymous memory "
                        "has no minor faults; MINOR needs a mapping of a "
                        "memfd"));
}

TEST_F(UffdRegister, SharedMemoryNeedsItsFeatures) {
  FakeKernel kernel;
  kernel.SetApiReply(kUffdFeatureSigbus, 0);  // a 5.4, say
  const absl::StatusOr<Uffd> uffd = Uffd::Open(kernel, {});
  ASSERT_TRUE(uffd.ok());
  kernel.Fail(Op::kRegister, FakeKernel::kEvery, CallResult{0, EINVAL});
  void* mapped = mmap(nullptr, 4 * kPage, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  const uintptr_t at = reinterpret_cast<uintptr_t>(mapped);
  EXPECT_THAT(
      Message(uffd->Register(at, 4 * kPage, kUffdRegisterWp, 0)),
      HasSubstr("shared anonymous memory: WP on shared memory needs the "
                "feature WP_HUGETLBFS_SHMEM (Linux 5.19)"));
  EXPECT_THAT(Message(uffd->Register(at, 4 * kPage, kUffdRegisterMinor, 0)),
              HasSubstr("MINOR on shared memory needs the feature MINOR_SHMEM "
                        "(Linux 5.14)"));
  munmap(mapped, 4 * kPage);
}

TEST_F(UffdRegister, SaysWhereNothingIsMapped) {
  ScratchMemory memory(8 * kPage);
  munmap(memory.data() + 2 * kPage, 2 * kPage);
  const absl::Status status = uffd_->Register(
      memory.address() + 2 * kPage, 2 * kPage, kUffdRegisterMissing, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  char expected[64];
  snprintf(expected, sizeof(expected), "nothing is mapped at 0x%lx",
           static_cast<unsigned long>(memory.address() + 2 * kPage));
  EXPECT_THAT(Message(status), HasSubstr(expected));
}

TEST_F(UffdRegister, ChecksTheRangeItself) {
  const uint64_t before = kernel_.Calls(Op::kRegister);
  EXPECT_EQ(Message(uffd_->Register(0x1001, kPage, kUffdRegisterMissing, 0)),
            "UFFDIO_REGISTER: start 0x1001 is not a multiple of the page size "
            "4096");
  EXPECT_EQ(Message(uffd_->Register(0x1000, 5000, kUffdRegisterMissing, 0)),
            "UFFDIO_REGISTER: length 5000 bytes is not a positive multiple of "
            "the page size 4096");
  EXPECT_EQ(Message(uffd_->Register(0x1000, 0, kUffdRegisterMissing, 0)),
            "UFFDIO_REGISTER: length 0 bytes is not a positive multiple of the "
            "page size 4096");
  EXPECT_EQ(Message(uffd_->Unregister(0xfffffffffffff000, 0x2000)),
            "UFFDIO_UNREGISTER: start 0xfffffffffffff000 + 8192 bytes exceeds "
            "the address space");
  EXPECT_EQ(kernel_.Calls(Op::kRegister), before);
}

TEST_F(UffdRegister, ASecondUserfaultfdIsRefused) {
  ScratchMemory memory(4 * kPage);
  ASSERT_TRUE(uffd_
                  ->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing, kUffdIoctlCopy)
                  .ok());
  const absl::StatusOr<Uffd> other = Uffd::Open(kernel_, {});
  ASSERT_TRUE(other.ok());
  const absl::Status status = other->Register(memory.address(), memory.bytes(),
                                              kUffdRegisterMissing, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("EBUSY"),
                    HasSubstr("is registered with another userfaultfd")));
  EXPECT_TRUE(uffd_->Unregister(memory.address(), memory.bytes()).ok());
  EXPECT_TRUE(
      other->Register(memory.address(), memory.bytes(), kUffdRegisterMissing, 0)
          .ok());
}

TEST_F(UffdRegister, TooManyMappingsAreCounted) {
  ScratchMemory memory(4 * kPage);
  kernel_.Fail(Op::kRegister, 1, CallResult{0, ENOMEM});
  const absl::Status status = uffd_->Register(memory.address(), memory.bytes(),
                                              kUffdRegisterMissing, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status),
              testing::ContainsRegex("this process has [0-9]+ mappings and "
                                     "vm.max_map_count is [1-9][0-9]+"));
}

TEST_F(UffdRegister, AMissingIoctlIsNamedAndTheRangeIsLeftAlone) {
  ScratchMemory memory(4 * kPage);
  kernel_.SetRegisterIoctls(kUffdIoctlWake | kUffdIoctlZeroPage |
                            (uint64_t{1} << 20));
  const absl::Status status =
      uffd_->Register(memory.address(), memory.bytes(), kUffdRegisterMissing,
                      kUffdIoctlCopy | kUffdIoctlZeroPage | kUffdIoctlPoison);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(
      Message(status),
      HasSubstr(" does not offer on it: COPY (Linux 4.3), POISON (Linux "
                "6.6); it offers WAKE|ZEROPAGE|bit 20"));
  EXPECT_EQ(kernel_.Calls(Op::kUnregister), 1u);
  memory.data()[0] = 1;  // not registered: no SIGBUS
}

TEST(UffdNames, KeepWhatTheyDoNotKnow) {
  EXPECT_EQ(UffdFeatureNames(0), "none");
  EXPECT_EQ(UffdFeatureNames(kUffdFeatureMove | kUffdFeatureSigbus |
                             (uint64_t{1} << 40)),
            "SIGBUS|MOVE|bit 40");
  EXPECT_EQ(UffdIoctlNames(kUffdIoctlContinue), "CONTINUE");
  EXPECT_EQ(UffdRegisterModeNames(7), "MISSING|WP|MINOR");
  EXPECT_EQ(ErrnoText(EAGAIN),
            "EAGAIN: Resource temporarily unavailable (errno 11)");
  EXPECT_EQ(ErrnoText(4000), "unknown error: unknown error (errno 4000)");
}

}  // namespace
}  // namespace firsttouch
