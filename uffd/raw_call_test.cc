#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "firsttouch/uffd/raw_call_portable.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(PortableRawCallTest, AResultIsTheKernels) {
  EXPECT_EQ(RawCall(SYS_getpid), getpid());
}

TEST(PortableRawCallTest, AnErrorIsNegativeAndErrnoIsLeftAlone) {
  errno = ENOMEM;
  EXPECT_EQ(RawCall(SYS_close, -1), -EBADF);
  EXPECT_EQ(errno, ENOMEM);
}

}  // namespace
}  // namespace firsttouch
