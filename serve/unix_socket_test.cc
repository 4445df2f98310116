#include "firsttouch/serve/unix_socket.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <string>
#include <string_view>
#include <vector>

#include "firsttouch/uffd/unique_fd.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

class UnixSocketTest : public testing::Test {
 protected:
  UnixSocketTest() {
    std::array<int, 2> pair = {-1, -1};
    EXPECT_EQ(
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()), 0);
    from_.reset(pair[0]);
    to_.reset(pair[1]);
  }

  UniqueFd from_;
  UniqueFd to_;
  std::array<char, 16> bytes_ = {};
  std::vector<UniqueFd> came_;
  int flags_ = 0;
};

TEST(SocketAddress, OfAPathThatFits) {
  const std::string longest(kMaxSocketPathBytes, 'p');
  ASSERT_TRUE(SocketAddress(longest).has_value());
  EXPECT_EQ(SocketAddress(longest)->sun_path, longest);
  EXPECT_FALSE(SocketAddress(longest + "p").has_value());
}

TEST_F(UnixSocketTest, DescriptorsComeWithTheBytesAndCloseOnExec) {
  const std::array<int, 2> sent = {from_.get(), to_.get()};
  EXPECT_EQ(SendWithDescriptors(from_.get(), "two", sent), 3);
  EXPECT_EQ(ReceiveWithDescriptors(to_.get(), bytes_, 0, 2, came_, flags_), 3);
  EXPECT_EQ(std::string_view(bytes_.data(), 3), "two");
  ASSERT_EQ(came_.size(), 2u);
  for (const UniqueFd& fd : came_) {
    EXPECT_EQ(fcntl(fd.get(), F_GETFD), FD_CLOEXEC);
  }
  EXPECT_EQ(flags_ & MSG_CTRUNC, 0);
}

TEST_F(UnixSocketTest, MoreDescriptorsThanThereIsRoomForAreToldOf) {
  const std::vector<int> sent(5, from_.get());
  EXPECT_EQ(SendWithDescriptors(from_.get(), "5", sent), 1);
  EXPECT_EQ(ReceiveWithDescriptors(to_.get(), bytes_, 0, 2, came_, flags_), 1);
  EXPECT_EQ(came_.size(), 2u);
  EXPECT_NE(flags_ & MSG_CTRUNC, 0);
}

TEST_F(UnixSocketTest, MoreDescriptorsThanAMessageMayCarryAreNotSent) {
  const std::vector<int> sent(kMaxDescriptors + 1, from_.get());
  EXPECT_EQ(SendWithDescriptors(from_.get(), "17", sent), -1);
  EXPECT_EQ(errno, EINVAL);
}

}  // namespace
}  // namespace firsttouch
