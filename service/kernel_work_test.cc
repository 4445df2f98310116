// The kernel may be at work on a memory's pages when the memory is released: an
// io_uring has them registered as buffers. The test makes raw system calls, so
// that it does not need the library for io_uring.

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr uint64_t kSize = 16 * kPageBytes;

// An io_uring with one buffer, for one request at a time.
class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (entries_ != nullptr) munmap(entries_, kEntriesBytes);
    if (rings_ != nullptr) munmap(rings_, rings_bytes_);
    if (fd_ >= 0) close(fd_);
  }

  // Returns why no io_uring is to be had here, or "".
  std::string Open(std::byte* buffer, size_t bytes) {
    io_uring_params params = {};
    fd_ = static_cast<int>(syscall(SYS_io_uring_setup, 1, &params));
    if (fd_ < 0) return std::string("io_uring_setup: ") + strerror(errno);
    if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0) {
      return "io_uring of a kernel before 5.4";
    }
    rings_bytes_ = std::max<size_t>(
        params.sq_off.array + params.sq_entries * sizeof(uint32_t),
        params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    rings_ = Map(rings_bytes_, IORING_OFF_SQ_RING);
    entries_ = Map(kEntriesBytes, IORING_OFF_SQES);
    if (rings_ == nullptr || entries_ == nullptr) {
      return std::string("mmap of the rings: ") + strerror(errno);
    }
    auto* const at = static_cast<std::byte*>(rings_);
    submitted_ = reinterpret_cast<uint32_t*>(at + params.sq_off.tail);
    slot_ = reinterpret_cast<uint32_t*>(at + params.sq_off.array);
    seen_ = reinterpret_cast<uint32_t*>(at + params.cq_off.head);
    completions_ = reinterpret_cast<io_uring_cqe*>(at + params.cq_off.cqes);
    completion_mask_ =
        *reinterpret_cast<uint32_t*>(at + params.cq_off.ring_mask);
    const iovec vector = {buffer, bytes};
    if (syscall(SYS_io_uring_register, fd_, IORING_REGISTER_BUFFERS, &vector,
                1) != 0) {
      return std::string("IORING_REGISTER_BUFFERS: ") + strerror(errno);
    }
    return "";
  }

  // Begins to read into the buffer (IORING_OP_READ_FIXED) or to write from it.
  void Begin(uint8_t operation, int file, std::byte* buffer, uint32_t bytes) {
    auto* const entry = static_cast<io_uring_sqe*>(entries_);
    *entry = {};
    entry->opcode = operation;
    entry->fd = file;
    entry->addr = reinterpret_cast<uint64_t>(buffer);
    entry->len = bytes;
    entry->off = ~uint64_t{0};
    *slot_ = 0;
    std::atomic_ref<uint32_t> tail(*submitted_);
    tail.store(tail.load(std::memory_order_relaxed) + 1,
               std::memory_order_release);
    EXPECT_EQ(syscall(SYS_io_uring_enter, fd_, 1, 0, 0, nullptr, 0), 1);
  }

  // Waits for the end of the request, and returns its result.
  int32_t End() {
    EXPECT_EQ(syscall(SYS_io_uring_enter, fd_, 0, 1, IORING_ENTER_GETEVENTS,
                      nullptr, 0),
              0);
    std::atomic_ref<uint32_t> head(*seen_);
    const uint32_t at = head.load(std::memory_order_acquire);
    const int32_t result = completions_[at & completion_mask_].res;
    head.store(at + 1, std::memory_order_release);
    return result;
  }

 private:
  static constexpr size_t kEntriesBytes = sizeof(io_uring_sqe);

  void* Map(size_t bytes, off_t what) const {
    void* const mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_POPULATE, fd_, what);
    return mapped == MAP_FAILED ? nullptr : mapped;
  }

  int fd_ = -1;
  void* rings_ = nullptr;
  size_t rings_bytes_ = 0;
  void* entries_ = nullptr;
  uint32_t* submitted_ = nullptr;
  uint32_t* slot_ = nullptr;
  uint32_t* seen_ = nullptr;
  io_uring_cqe* completions_ = nullptr;
  uint32_t completion_mask_ = 0;
};

class KernelWorkTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create({.name = "kernel work",
                         .layout = {.instances = 1,
                                    .max_memory_bytes = 32 * kPageBytes,
                                    .guard_after_bytes = 65536},
                         .supply = Asking(GetParam()),
                         .trap_callback = JumpOutOfTrap});
    if (!service.ok()) {
      GTEST_SKIP() << "not to be had here: " << service.status();
    }
    service_ = *std::move(service);
    ASSERT_EQ(pipe2(pipe_, O_CLOEXEC | O_NONBLOCK), 0);
  }

  void TearDown() override {
    for (int end : pipe_) {
      if (end >= 0) close(end);
    }
  }

  Memory MustAcquire() {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image_, .size_bytes = kSize});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  const ImageRef image_ = PatternImage("worked on", 8);
  std::unique_ptr<Service> service_;
  int pipe_[2] = {-1, -1};
};

INSTANTIATE_TEST_SUITE_P(AllWays, KernelWorkTest, AllWays(), WayName);

// Uses an image's page and a zero page, in the first lease and in later ones,
// whose pages are present already.
TEST_P(KernelWorkTest, WhatIsReadAfterTheReleaseIsSeenByNobody) {
  for (int cycle = 0; cycle < 3; ++cycle) {
    for (uint64_t page : {5, 12}) {
      Ring ring;
      Memory memory = MustAcquire();
      std::byte* const buffer = memory.base() + page * kPageBytes;
      ASSERT_EQ(memory.MakeReady(page * kPageBytes, kPageBytes, Access::kWrite),
                absl::OkStatus());
      if (const std::string why = ring.Open(buffer, kPageBytes); !why.empty()) {
        GTEST_SKIP() << why;
      }
      ring.Begin(IORING_OP_READ_FIXED, pipe_[0], buffer, 16);
      memory.DropAtRelease();
      if (cycle == 1) {
        EXPECT_EQ(memory.Reset(), absl::OkStatus());
      } else {
        EXPECT_EQ(memory.Release(), absl::OkStatus());
        memory = MustAcquire();
      }
      EXPECT_EQ(FirstDifference(memory, InitialBytes(image_, kSize)),
                std::nullopt);
      ASSERT_EQ(write(pipe_[1], "from the kernel", 16), 16);
      EXPECT_EQ(ring.End(), 16);
      EXPECT_EQ(FirstDifference(memory, InitialBytes(image_, kSize)),
                std::nullopt);
      Store(memory, page * kPageBytes, 0x51);
    }
  }
}

TEST_P(KernelWorkTest, WhatIsSentAfterTheReleaseIsOfTheLeaseThatSentIt) {
  for (int cycle = 0; cycle < 3; ++cycle) {
    for (uint64_t page : {5, 12}) {
      Ring ring;
      Memory memory = MustAcquire();
      std::byte* const buffer = memory.base() + page * kPageBytes;
      ASSERT_EQ(memory.MakeReady(page * kPageBytes, kPageBytes, Access::kWrite),
                absl::OkStatus());
      memset(buffer, 0x41, 16);
      if (const std::string why = ring.Open(buffer, kPageBytes); !why.empty()) {
        GTEST_SKIP() << why;
      }
      // Fills the pipe.
      std::vector<std::byte> filler(kPageBytes, std::byte{0x66});
      size_t filled = 0;
      while (true) {
        const ssize_t wrote = write(pipe_[1], filler.data(), filler.size());
        if (wrote < 0) break;
        filled += static_cast<size_t>(wrote);
      }
      ASSERT_EQ(errno, EAGAIN);
      ASSERT_GT(filled, 0u);
      ring.Begin(IORING_OP_WRITE_FIXED, pipe_[1], buffer, 16);
      memory.DropAtRelease();
      EXPECT_EQ(memory.Release(), absl::OkStatus());
      memory = MustAcquire();
      ASSERT_EQ(memory.MakeReady(page * kPageBytes, kPageBytes, Access::kWrite),
                absl::OkStatus());
      memset(memory.base() + page * kPageBytes, 0x42, 16);
      while (filled > 0) {
        const ssize_t got =
            read(pipe_[0], filler.data(), std::min(filled, filler.size()));
        ASSERT_GT(got, 0);
        filled -= static_cast<size_t>(got);
      }
      EXPECT_EQ(ring.End(), 16);
      uint8_t sent[16] = {};
      ASSERT_EQ(read(pipe_[0], sent, sizeof(sent)), 16);
      EXPECT_EQ(sent[0], 0x41);
      EXPECT_EQ(sent[15], 0x41);
    }
  }
}

// The cycles afterwards are as steady as before.
TEST_P(KernelWorkTest, TheNextLeaseIsAnOrdinaryOne) {
  for (int i = 0; i < 4; ++i) {
    Memory memory = MustAcquire();
    EXPECT_EQ(FirstDifference(memory, InitialBytes(image_, kSize)),
              std::nullopt);
    Store(memory, 3 * kPageBytes, 1);
    if (i == 0) memory.DropAtRelease();
  }
  const uint64_t dropped = service_->Stats().pages_dropped;
  for (int i = 0; i < 4; ++i) Store(MustAcquire(), 3 * kPageBytes, 1);
  if (service_->supply() != Supply::kMappingsDrop) {
    EXPECT_EQ(service_->Stats().pages_dropped, dropped);
  }
  Memory released = MustAcquire();
  EXPECT_EQ(released.Release(), absl::OkStatus());
  released.DropAtRelease();  // Nothing.
}

}  // namespace
}  // namespace firsttouch
