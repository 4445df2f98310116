// What every Kernel must do, tested with the real kernel and with a fake one
// that forwards.

#include <fcntl.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "firsttouch/uffd/events.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/unique_fd.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr size_t kPage = 4096;

enum class Which { kReal, kFake };

class KernelContract : public testing::TestWithParam<Which> {
 protected:
  KernelContract() : source_(16 * kPage) {
    for (size_t page = 0; page < 16; ++page) {
      std::memset(source_.data() + page * kPage, 'a' + static_cast<int>(page),
                  kPage);
    }
  }

  Kernel& kernel() { return GetParam() == Which::kReal ? RealKernel() : fake_; }

  // Returns a userfaultfd with these features, or null and the test is skipped.
  std::unique_ptr<Uffd> Open(uint64_t features) {
    absl::StatusOr<Uffd> uffd =
        Uffd::Open(kernel(), {.required_features = features});
    if (!uffd.ok()) {
      skip_ = std::string(uffd.status().message());
      return nullptr;
    }
    return std::make_unique<Uffd>(*std::move(uffd));
  }

  uintptr_t source() const { return source_.address(); }

  ScratchMemory source_;
  std::string skip_;

 private:
  FakeKernel fake_;
};

INSTANTIATE_TEST_SUITE_P(Kernels, KernelContract,
                         testing::Values(Which::kReal, Which::kFake),
                         [](const auto& info) {
                           return info.param == Which::kReal ? "Real" : "Fake";
                         });

// Declares `name`, a Uffd with the features, or skips the test.
#define OPEN_OR_SKIP(name, features)                 \
  const std::unique_ptr<Uffd> name = Open(features); \
  if ((name) == nullptr) GTEST_SKIP() << skip_

TEST_P(KernelContract, CopyFillsAndStopsAtAPageThatIsThere) {
  OPEN_OR_SKIP(uffd, kUffdFeatureSigbus);
  ScratchMemory memory(16 * kPage);
  ASSERT_TRUE(uffd->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing, kUffdIoctlCopy)
                  .ok());
  const uintptr_t third = memory.address() + 2 * kPage;
  EXPECT_TRUE(
      kernel().Copy(uffd->fd(), third, source() + kPage, kPage, 0).ok());

  RangeResult copied =
      kernel().Copy(uffd->fd(), memory.address(), source(), 4 * kPage, 0);
  EXPECT_EQ(copied.bytes_done, 2 * int64_t{kPage});
  EXPECT_EQ(copied.error, EAGAIN);
  copied = kernel().Copy(uffd->fd(), third, source(), 2 * kPage, 0);
  EXPECT_EQ(copied.bytes_done, 0);
  EXPECT_EQ(copied.error, EEXIST);

  const FillResult filled = CopyRange(kernel(), uffd->fd(), memory.address(),
                                      source(), 16 * kPage, 0, {});
  EXPECT_TRUE(filled.ok()) << filled.error;
  EXPECT_EQ(filled.pages_present, 3u);
  EXPECT_EQ(filled.pages_filled(), 13u);
  const std::string expected = "abbdefghijklmnop";
  for (size_t page = 0; page < 16; ++page) {
    EXPECT_EQ(memory.data()[page * kPage], expected[page]) << page;
    EXPECT_EQ(memory.data()[page * kPage + kPage - 1], expected[page]) << page;
  }
}

TEST_P(KernelContract, ErrorsAreInTheResultAndErrnoIsLeftAlone) {
  OPEN_OR_SKIP(uffd, kUffdFeatureSigbus);
  ScratchMemory memory(2 * kPage);
  const int fd = uffd->fd();
  const uintptr_t at = memory.address();
  errno = 1234;
  EXPECT_EQ(kernel().Copy(fd, at, source(), kPage, 0).error, ENOENT);
  EXPECT_EQ(kernel().ZeroPage(fd, at, kPage, 0).error, ENOENT);
  EXPECT_EQ(kernel().WriteProtect(fd, at, kPage, kUffdWriteProtectWp).error,
            ENOENT);
  EXPECT_EQ(kernel().Copy(fd, at + 1, source(), kPage, 0).error, EINVAL);
  EXPECT_EQ(
      kernel().Register(fd, at + 1, kPage, kUffdRegisterMissing, nullptr).error,
      EINVAL);
  EXPECT_EQ(kernel().Unregister(fd, at, 1).error, EINVAL);
  EXPECT_EQ(kernel().Wake(fd, at, 0).error, EINVAL);
  EXPECT_EQ(kernel().Close(-1).error, EBADF);
  EXPECT_EQ(kernel().DupCloexec(-1, 0).error, EBADF);
  uffd_msg message;
  EXPECT_EQ(kernel().ReadEvents(-1, &message, 1).error, EBADF);
  PmScanArg scan;
  EXPECT_NE(kernel().PagemapScan(fd, &scan).error, 0);
  EXPECT_EQ(
      kernel().Mmap(0, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0).error,
      EINVAL);
  EXPECT_EQ(kernel().Munmap(at + 1, kPage).error, EINVAL);
  EXPECT_EQ(kernel().Mprotect(at + 1, kPage, PROT_NONE).error, EINVAL);
  EXPECT_EQ(kernel().Madvise(at + 1, kPage, MADV_DONTNEED).error, EINVAL);
  EXPECT_NE(kernel().ProcessMadvise(nullptr, 5000, MADV_DONTNEED).error, 0);
  uffdio_api reply;
  EXPECT_EQ(kernel().Api(fd, 0, &reply).error, EINVAL) << "a second handshake";
  EXPECT_EQ(errno, 1234);
}

TEST_P(KernelContract, AFailedHandshakeLeavesAnEmptyReply) {
  const CallResult opened =
      OpenUffd(kernel(), Uffd::How::kSyscallUserModeOnly, true);
  if (!opened.ok()) GTEST_SKIP() << "USER_MODE_ONLY: " << opened.error;
  UniqueFd fd(static_cast<int>(opened.value));
  uffdio_api reply;
  std::memset(&reply, 0xff, sizeof(reply));
  EXPECT_EQ(kernel().Api(fd.get(), uint64_t{1} << 62, &reply).error, EINVAL);
  EXPECT_EQ(reply.features, 0u);
  EXPECT_EQ(reply.ioctls, 0u);
  EXPECT_TRUE(kernel().Api(fd.get(), 0, &reply).ok());
  EXPECT_NE(reply.features & kUffdFeatureSigbus, 0u);
  EXPECT_NE(reply.ioctls & kUffdIoctlRegister, 0u);
}

TEST_P(KernelContract, ZeroPagesReadAsZeroAndBecomePagesWhenWritten) {
  OPEN_OR_SKIP(uffd, kUffdFeatureSigbus);
  ScratchMemory memory(4 * kPage);
  ASSERT_TRUE(uffd->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing, kUffdIoctlZeroPage)
                  .ok());
  EXPECT_TRUE(
      kernel().ZeroPage(uffd->fd(), memory.address(), memory.bytes(), 0).ok());
  EXPECT_EQ(memory.data()[kPage], 0);
  memory.data()[kPage] = 'x';
  EXPECT_EQ(memory.data()[kPage], 'x');
  EXPECT_EQ(memory.data()[2 * kPage], 0);
}

TEST_P(KernelContract, ContinueMapsTheFilesPagesIntoAPrivateMapping) {
  OPEN_OR_SKIP(uffd, kUffdFeatureSigbus | kUffdFeatureMinorShmem |
                         kUffdFeatureWpHugetlbfsShmem);
  UniqueFd file(memfd_create("contract", MFD_CLOEXEC));
  ASSERT_TRUE(file);
  ASSERT_EQ(ftruncate(file.get(), 4 * kPage), 0);
  for (const off_t page : {0, 1, 3}) {  // 2 is a hole
    ASSERT_EQ(pwrite(file.get(), source_.data() + page * kPage, kPage,
                     page * static_cast<off_t>(kPage)),
              static_cast<ssize_t>(kPage));
  }
  const CallResult mapped = kernel().Mmap(0, 4 * kPage, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE, file.get(), 0);
  ASSERT_TRUE(mapped.ok());
  const uintptr_t at = static_cast<uintptr_t>(mapped.value);
  char* bytes = reinterpret_cast<char*>(at);
  ASSERT_TRUE(uffd->Register(at, 4 * kPage,
                             kUffdRegisterMissing | kUffdRegisterMinor |
                                 kUffdRegisterWp,
                             kUffdIoctlContinue | kUffdIoctlCopy)
                  .ok());
  const RangeResult continued = kernel().Continue(uffd->fd(), at, 4 * kPage, 0);
  EXPECT_EQ(continued.bytes_done, 2 * int64_t{kPage});
  EXPECT_NE(continued.error, 0);
  EXPECT_EQ(kernel().Continue(uffd->fd(), at + 2 * kPage, kPage, 0).error,
            EFAULT)
      << "a hole";
  EXPECT_TRUE(kernel().ZeroPage(uffd->fd(), at + 2 * kPage, kPage, 0).ok());
  EXPECT_TRUE(kernel().Continue(uffd->fd(), at + 3 * kPage, kPage, 0).ok());
  EXPECT_EQ(std::string({bytes[0], bytes[kPage], bytes[3 * kPage]}), "abd");
  EXPECT_EQ(bytes[2 * kPage], 0);
  bytes[0] = 'z';  // a private copy: the file stays as it is
  char in_file = 0;
  EXPECT_EQ(pread(file.get(), &in_file, 1, 0), 1);
  EXPECT_EQ(in_file, 'a');
  EXPECT_TRUE(kernel().Munmap(at, 4 * kPage).ok());
}

// Touches `address` and returns whether that raised SIGBUS.
sigjmp_buf touch_jump;
bool TouchIsSigbus(volatile char* address, bool write) {
  struct sigaction old;
  struct sigaction action = {};
  action.sa_handler = [](int) { siglongjmp(touch_jump, 1); };
  sigaction(SIGBUS, &action, &old);
  bool trapped = false;
  if (sigsetjmp(touch_jump, 1) == 0) {
    if (write) {
      *address = 'w';
    } else {
      (void)*address;
    }
  } else {
    trapped = true;
  }
  sigaction(SIGBUS, &old, nullptr);
  return trapped;
}

TEST_P(KernelContract, AMissingPageIsASigbusAndSoIsAProtectedOne) {
  OPEN_OR_SKIP(uffd, kUffdFeatureSigbus | kUffdFeaturePagefaultFlagWp);
  ScratchMemory memory(4 * kPage);
  ASSERT_TRUE(uffd->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing | kUffdRegisterWp,
                             kUffdIoctlWriteProtect)
                  .ok());
  EXPECT_TRUE(TouchIsSigbus(memory.data(), false));
  ASSERT_TRUE(
      kernel()
          .Copy(uffd->fd(), memory.address(), source(), kPage, kUffdCopyWp)
          .ok());
  EXPECT_FALSE(TouchIsSigbus(memory.data(), false));
  EXPECT_TRUE(TouchIsSigbus(memory.data(), true));
  const RangeResult off =
      kernel().WriteProtect(uffd->fd(), memory.address(), kPage, 0);
  EXPECT_EQ(off.bytes_done, int64_t{kPage});
  EXPECT_FALSE(TouchIsSigbus(memory.data(), true));
  EXPECT_EQ(memory.data()[0], 'w');
}

TEST_P(KernelContract, PoisonTrapsUntilThePageIsFilled) {
  OPEN_OR_SKIP(uffd, kUffdFeatureSigbus | kUffdFeaturePoison);
  ScratchMemory memory(4 * kPage);
  ASSERT_TRUE(uffd->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing, kUffdIoctlPoison)
                  .ok());
  ASSERT_TRUE(
      kernel().Copy(uffd->fd(), memory.address(), source(), kPage, 0).ok());
  EXPECT_EQ(kernel().Poison(uffd->fd(), memory.address(), kPage, 0).error,
            EEXIST);
  const uintptr_t second = memory.address() + kPage;
  EXPECT_TRUE(kernel().Poison(uffd->fd(), second, kPage, 0).ok());
  EXPECT_TRUE(TouchIsSigbus(memory.data() + kPage, false));
  EXPECT_TRUE(kernel().Copy(uffd->fd(), second, source(), kPage, 0).ok());
  EXPECT_FALSE(TouchIsSigbus(memory.data() + kPage, false));
}

TEST_P(KernelContract, AFaultIsAnEventAndAFillWakesItsThread) {
  OPEN_OR_SKIP(uffd, kUffdFeatureThreadId);
  ScratchMemory memory(4 * kPage);
  ASSERT_TRUE(uffd->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing, kUffdIoctlWake)
                  .ok());
  EventReader reader(kernel(), uffd->fd());
  EXPECT_TRUE(reader.Read().events.empty());

  std::atomic<char> seen{0};
  std::atomic<pid_t> tid{0};
  std::thread guest([&] {
    tid = gettid();
    memory.data()[2 * kPage] = 'g';
    seen = memory.data()[2 * kPage + 1];
  });
  pollfd readable{uffd->fd(), POLLIN, 0};
  CallResult polled;
  do {
    polled = kernel().Poll(&readable, 1, 30'000);
  } while (polled.error == EINTR);
  EXPECT_EQ(polled.value, 1);
  const EventReader::Batch batch = reader.Read();
  EXPECT_EQ(batch.events.size(), 1u);
  if (batch.events.size() == 1) {
    const Event& event = batch.events[0];
    EXPECT_EQ(event.kind, Event::Kind::kPagefault);
    EXPECT_EQ(event.address, memory.address() + 2 * kPage);
    EXPECT_TRUE(event.is_write());
    EXPECT_EQ(static_cast<pid_t>(event.tid), tid.load());
  }
  // DONTWAKE leaves the thread waiting; an explicit wake ends the wait.
  EXPECT_TRUE(kernel()
                  .Copy(uffd->fd(), memory.address() + 2 * kPage, source(),
                        kPage, kUffdCopyDontWake)
                  .ok());
  EXPECT_TRUE(
      kernel().Wake(uffd->fd(), memory.address() + 2 * kPage, kPage).ok());
  guest.join();
  EXPECT_EQ(seen.load(), 'a');
  EXPECT_EQ(memory.data()[2 * kPage], 'g');
}

TEST_P(KernelContract, RemoveIsReadBeforeAFillGoesOn) {
  OPEN_OR_SKIP(uffd, kUffdFeatureEventRemove);
  ScratchMemory memory(4 * kPage);
  ASSERT_TRUE(uffd->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing, kUffdIoctlCopy)
                  .ok());
  ASSERT_TRUE(
      kernel()
          .Copy(uffd->fd(), memory.address(), source(), memory.bytes(), 0)
          .ok());
  // madvise(2) waits until its event is read.
  std::thread remover([&] {
    EXPECT_TRUE(
        kernel().Madvise(memory.address(), 2 * kPage, kMadvDontNeed).ok());
  });
  pollfd readable{uffd->fd(), POLLIN, 0};
  while (kernel().Poll(&readable, 1, 30'000).error == EINTR) {
  }
  // The event is there and unread: a fill gets EAGAIN and a negative count.
  const RangeResult stopped =
      kernel().Copy(uffd->fd(), memory.address(), source(), kPage, 0);
  EXPECT_EQ(stopped.error, EAGAIN);
  EXPECT_EQ(stopped.bytes_done, 0);

  EventReader reader(kernel(), uffd->fd());
  const EventReader::Batch batch = reader.Read();
  const FillResult filled =
      CopyRange(kernel(), uffd->fd(), memory.address() + 2 * kPage, source(),
                2 * kPage, 0, {});
  remover.join();
  EXPECT_TRUE(filled.ok()) << filled.error;
  EXPECT_EQ(filled.pages_present, 2u);
  ASSERT_EQ(batch.events.size(), 1u);
  EXPECT_EQ(batch.events[0].kind, Event::Kind::kRemove);
  EXPECT_EQ(batch.events[0].start, memory.address());
  EXPECT_EQ(batch.events[0].end, memory.address() + 2 * kPage);
}

TEST_P(KernelContract, FillsOfOneRangeMayRace) {
  OPEN_OR_SKIP(uffd, kUffdFeatureSigbus);
  ScratchMemory memory(16 * kPage);
  ASSERT_TRUE(uffd->Register(memory.address(), memory.bytes(),
                             kUffdRegisterMissing, kUffdIoctlCopy)
                  .ok());
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> errors{0};
    std::atomic<uint64_t> filled_pages{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        const FillResult filled =
            CopyRange(kernel(), uffd->fd(), memory.address(), source(),
                      memory.bytes(), 0, {});
        if (!filled.ok()) ++errors;
        filled_pages += filled.pages_filled();
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(errors.load(), 0);
    EXPECT_EQ(filled_pages.load(), 16u) << "each page is filled once";
    EXPECT_EQ(std::memcmp(memory.data(), source_.data(), memory.bytes()), 0);
    ASSERT_TRUE(
        kernel().Madvise(memory.address(), memory.bytes(), kMadvDontNeed).ok());
  }
}

TEST_P(KernelContract, ChangesOfMappingsAreEvents) {
  OPEN_OR_SKIP(uffd, kUffdFeatureEventRemap | kUffdFeatureEventUnmap);
  const CallResult mapped = kernel().Mmap(0, 4 * kPage, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const CallResult target =
      kernel().Mmap(0, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_TRUE(mapped.ok() && target.ok());
  const uintptr_t at = static_cast<uintptr_t>(mapped.value);
  ASSERT_TRUE(uffd->Register(at, 4 * kPage, kUffdRegisterMissing, 0).ok());
  // Each call waits until its event is read.
  std::thread changer([&] {
    EXPECT_NE(mremap(reinterpret_cast<void*>(at), kPage, kPage,
                     MREMAP_MAYMOVE | MREMAP_FIXED,
                     reinterpret_cast<void*>(target.value)),
              MAP_FAILED);
    EXPECT_TRUE(kernel().Munmap(at + 2 * kPage, 2 * kPage).ok());
  });
  EventReader reader(kernel(), uffd->fd());
  std::vector<Event> events;
  while (events.empty() || events.back().kind != Event::Kind::kUnmap ||
         events.back().start != at + 2 * kPage) {
    pollfd readable{uffd->fd(), POLLIN, 0};
    const CallResult polled = kernel().Poll(&readable, 1, 30'000);
    if (polled.error == EINTR) continue;
    ASSERT_EQ(polled.value, 1);
    for (const Event& event : reader.Read().events) events.push_back(event);
  }
  changer.join();
  bool remapped = false;
  for (const Event& event : events) {
    if (event.kind != Event::Kind::kRemap) continue;
    remapped = true;
    EXPECT_EQ(event.from, at);
    EXPECT_EQ(event.to, static_cast<uintptr_t>(target.value));
    EXPECT_EQ(event.bytes, kPage);
  }
  EXPECT_TRUE(remapped);
  EXPECT_EQ(events.back().end, at + 4 * kPage);
  // The moved page has taken its registration with it: it raises no more
  // events.
  kernel().Unregister(uffd->fd(), at + kPage, kPage);
  kernel().Unregister(uffd->fd(), static_cast<uintptr_t>(target.value), kPage);
  kernel().Munmap(at + kPage, kPage);
  kernel().Munmap(static_cast<uintptr_t>(target.value), kPage);
}

TEST_P(KernelContract, OneProcessMadviseDropsManyRanges) {
  ScratchMemory memory(8 * kPage);
  std::memset(memory.data(), 'm', memory.bytes());
  iovec ranges[] = {{memory.data(), kPage}, {memory.data() + 4 * kPage, kPage}};
  const CallResult dropped = kernel().ProcessMadvise(ranges, 2, kMadvDontNeed);
  if (dropped.error == EINVAL) {
    GTEST_SKIP() << "process_madvise(MADV_DONTNEED) on oneself (Linux 6.13)";
  }
  EXPECT_EQ(dropped.error, 0);
  EXPECT_EQ(dropped.value, 2 * int64_t{kPage});
  EXPECT_EQ(memory.data()[0], 0);
  EXPECT_EQ(memory.data()[kPage], 'm');
  EXPECT_EQ(memory.data()[4 * kPage], 0);
}

TEST_P(KernelContract, MappingCalls) {
  const CallResult mapped = kernel().Mmap(0, 2 * kPage, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_TRUE(mapped.ok());
  const uintptr_t at = static_cast<uintptr_t>(mapped.value);
  char* bytes = reinterpret_cast<char*>(at);
  bytes[0] = 'x';
  EXPECT_TRUE(kernel().Madvise(at, kPage, kMadvDontNeed).ok());
  EXPECT_EQ(bytes[0], 0);
  EXPECT_TRUE(kernel().Mprotect(at, kPage, PROT_READ).ok());
  EXPECT_TRUE(kernel().Munmap(at, 2 * kPage).ok());
}

TEST_P(KernelContract, MembarrierAsksForRegistration) {
  if (!kernel().Membarrier(MEMBARRIER_CMD_QUERY).ok()) {
    GTEST_SKIP() << "no membarrier(2)";
  }
  EXPECT_EQ(kernel().Membarrier(-1).error, EINVAL);
  EXPECT_TRUE(
      kernel().Membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED).ok());
  EXPECT_TRUE(kernel().Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED).ok());
}

TEST_P(KernelContract, DescriptorCalls) {
  const CallResult event = kernel().EventFd();
  ASSERT_TRUE(event.ok());
  const int fd = static_cast<int>(event.value);
  EXPECT_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
  EXPECT_NE(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
  pollfd readable{fd, POLLIN, 0};
  EXPECT_EQ(kernel().Poll(&readable, 1, 0).value, 0);
  const uint64_t one = 1;
  EXPECT_EQ(write(fd, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  EXPECT_EQ(kernel().Poll(&readable, 1, 0).value, 1);
  const CallResult second = kernel().DupCloexec(fd, 100);
  ASSERT_TRUE(second.ok());
  EXPECT_GE(second.value, 100);
  EXPECT_EQ(fcntl(static_cast<int>(second.value), F_GETFD), FD_CLOEXEC);
  EXPECT_TRUE(kernel().Close(static_cast<int>(second.value)).ok());
  EXPECT_TRUE(kernel().Close(fd).ok());
  EXPECT_EQ(fcntl(fd, F_GETFD), -1);
}

}  // namespace
}  // namespace firsttouch
