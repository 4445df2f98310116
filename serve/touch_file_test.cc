#include "firsttouch/serve/touch_file.h"

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/digest.h"
#include "firsttouch/serve/touches.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;

class TouchFileTest : public ::testing::Test {
 protected:
  TouchFileTest() {
    std::string folder = "/tmp/touch-file-XXXXXX";
    folder_ = mkdtemp(folder.data());
    path_ = folder_ + "/base.ftimg.touches";
  }
  ~TouchFileTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<std::vector<Touch>> Read() {
    return ReadTouchFile(path_, image_, PageCount(1000));
  }
  std::string Bytes() {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void Put(const std::string& bytes) {
    std::filesystem::remove(path_);
    std::ofstream(path_, std::ios::binary) << bytes;
  }

  std::string folder_;
  std::string path_;
  const Digest image_ = Sha256Of(std::string("an image"));
  const std::vector<Touch> touches_ = {
      {PageIndex(900), true, std::chrono::microseconds(5)},
      {PageIndex(3), false, std::chrono::microseconds(5)},
      {PageIndex(4), false, std::chrono::milliseconds(70)},
      {PageIndex(999), true, std::chrono::hours(1)}};
};

TEST_F(TouchFileTest, KeepsOrderTimesAndWrites) {
  ASSERT_TRUE(WriteTouchFile(path_, image_, touches_).ok());
  absl::StatusOr<std::vector<Touch>> read = Read();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, touches_);
  // And replaces what is there.
  ASSERT_TRUE(WriteTouchFile(path_, image_, {}).ok());
  EXPECT_EQ(Read()->size(), 0u);
}

TEST_F(TouchFileTest, TouchesOfAnotherImageAreRefused) {
  ASSERT_TRUE(
      WriteTouchFile(path_, Sha256Of(std::string("another")), touches_).ok());
  const absl::Status status = Read().status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(path_ + ": these are touches of another image"));
}

TEST_F(TouchFileTest, APageBehindTheImageIsRefused) {
  ASSERT_TRUE(WriteTouchFile(path_, image_, touches_).ok());
  const absl::Status status =
      ReadTouchFile(path_, image_, PageCount(999)).status();
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("touch 3 is of page 999, and the image has 999"));
}

TEST_F(TouchFileTest, EachDamagedByteIsFound) {
  EXPECT_TRUE(absl::IsNotFound(Read().status()));
  ASSERT_TRUE(WriteTouchFile(path_, image_, touches_).ok());
  const std::string bytes = Bytes();
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string other = bytes;
    other[at] = static_cast<char>(other[at] ^ 0x10);
    Put(other);
    const absl::Status status = Read().status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << at << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  }
  for (size_t size = 0; size < bytes.size(); ++size) {
    Put(bytes.substr(0, size));
    EXPECT_TRUE(absl::IsDataLoss(Read().status())) << size;
  }
  Put(bytes);
  EXPECT_EQ(*Read(), touches_);
}

}  // namespace
}  // namespace firsttouch
