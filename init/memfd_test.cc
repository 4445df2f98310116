#include "firsttouch/init/memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace firsttouch {
namespace {

class MemfdTest : public testing::Test {
 protected:
  void SetUp() override {
    const MemfdResult created =
        calls_.Create("firsttouch:test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    ASSERT_TRUE(created.ok()) << created.error;
    fd_ = static_cast<int>(created.value);
    ASSERT_EQ(calls_.Truncate(fd_, 4 * 4096).error, 0);
  }
  void TearDown() override { EXPECT_EQ(calls_.Close(fd_).error, 0); }

  MemfdCalls& calls_ = RealMemfdCalls();
  int fd_ = -1;
};

TEST_F(MemfdTest, WrittenBytesAreReadBackAndCounted) {
  std::vector<char> out(5000, 'x');
  std::vector<char> in(5000, 'y');
  EXPECT_EQ(calls_.Write(fd_, out.data(), out.size(), 4096).value, 5000);
  EXPECT_EQ(calls_.Read(fd_, in.data(), in.size(), 4096).value, 5000);
  EXPECT_EQ(in, out);
  EXPECT_EQ(calls_.AllocatedBytes(fd_).value, 2 * 4096);
}

TEST_F(MemfdTest, APunchedRangeReadsAsZeroAndCostsNothing) {
  std::vector<char> bytes(3 * 4096, 'x');
  ASSERT_EQ(calls_.Write(fd_, bytes.data(), bytes.size(), 0).value, 3 * 4096);
  ASSERT_EQ(calls_.PunchHole(fd_, 4096, 4096).error, 0);
  EXPECT_EQ(calls_.AllocatedBytes(fd_).value, 2 * 4096);
  ASSERT_EQ(calls_.Read(fd_, bytes.data(), bytes.size(), 0).value, 3 * 4096);
  EXPECT_EQ(bytes[4095], 'x');
  EXPECT_EQ(std::count(bytes.begin() + 4096, bytes.begin() + 8192, 0), 4096);
  EXPECT_EQ(bytes[8192], 'x');
}

TEST_F(MemfdTest, TheMappingIsReadOnly) {
  const MemfdResult mapped = calls_.MapReadOnly(fd_, 4096, MAP_SHARED);
  ASSERT_TRUE(mapped.ok()) << mapped.error;
  const uintptr_t address = static_cast<uintptr_t>(mapped.value);
  EXPECT_DEATH(*reinterpret_cast<volatile char*>(address) = 1, "");
  EXPECT_EQ(calls_.Advise(address, 4096, MADV_DONTDUMP).error, 0);
  EXPECT_EQ(calls_.Unmap(address, 4096).error, 0);
}

TEST_F(MemfdTest, FailuresAreErrnosAndErrnoStaysAsItWas) {
  errno = 77;
  EXPECT_EQ(calls_.Create("x", ~0u).error, EINVAL);
  EXPECT_EQ(calls_.Truncate(-1, 0).error, EBADF);
  EXPECT_EQ(calls_.Write(-1, "x", 1, 0).error, EBADF);
  char byte;
  EXPECT_EQ(calls_.Read(-1, &byte, 1, 0).error, EBADF);
  EXPECT_EQ(calls_.PunchHole(-1, 0, 1).error, EBADF);
  EXPECT_EQ(calls_.AllocatedBytes(-1).error, EBADF);
  EXPECT_EQ(calls_.AddSeals(-1, F_SEAL_WRITE).error, EBADF);
  EXPECT_EQ(calls_.MapReadOnly(-1, 4096, MAP_SHARED).error, EBADF);
  EXPECT_EQ(calls_.Unmap(1, 4096).error, EINVAL);
  EXPECT_EQ(calls_.Advise(1, 4096, MADV_DONTDUMP).error, EINVAL);
  EXPECT_EQ(calls_.Close(-1).error, EBADF);
  EXPECT_EQ(calls_.Write(fd_, nullptr, 1, 0).error, EFAULT);
  EXPECT_EQ(errno, 77);
}

TEST_F(MemfdTest, SealsHold) {
  ASSERT_EQ(calls_.AddSeals(fd_, F_SEAL_WRITE | F_SEAL_SEAL).error, 0);
  EXPECT_EQ(calls_.Write(fd_, "x", 1, 0).error, EPERM);
  EXPECT_EQ(calls_.AddSeals(fd_, F_SEAL_GROW).error, EPERM);
}

TEST_F(MemfdTest, FileSizeLimitIsTheSoftLimit) {
  struct rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const uint64_t expected =
      std::min<uint64_t>(limit.rlim_cur, std::numeric_limits<int64_t>::max());
  EXPECT_EQ(calls_.FileSizeLimit().value, static_cast<int64_t>(expected));
}

}  // namespace
}  // namespace firsttouch
