#include "firsttouch/init/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class AtomicFileTest : public ::testing::Test {
 protected:
  AtomicFileTest() {
    std::string pattern = ::testing::TempDir() + "/atomicXXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~AtomicFileTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const {
    return folder_ + "/" + name;
  }

  static absl::Status WriteTo(
      const std::string& path, const std::string& text, bool replace = true,
      AtomicFile::Existing existing = AtomicFile::Existing::kFollow) {
    absl::StatusOr<AtomicFile> file = AtomicFile::Create(path, existing);
    if (!file.ok()) return file.status();
    EXPECT_EQ(pwrite(file->fd(), text.data(), text.size(), 0),
              static_cast<ssize_t>(text.size()));
    return file->Commit(replace);
  }

  static std::string Contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  size_t Entries() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(folder_), {}));
  }

  std::string folder_;
};

TEST_F(AtomicFileTest, ReplacesARegularFile) {
  ASSERT_TRUE(WriteTo(Path("a"), "old").ok());
  EXPECT_TRUE(WriteTo(Path("a"), "new").ok());
  EXPECT_EQ(Contents(Path("a")), "new");
  EXPECT_EQ(Entries(), 1u);
}

TEST_F(AtomicFileTest, FollowsSymbolicLinksAndKeepsThem) {
  fs::create_directory(Path("deep"));
  ASSERT_TRUE(WriteTo(Path("deep/file"), "old").ok());
  fs::create_symlink("deep/file", Path("relative"));
  fs::create_symlink(Path("relative"), Path("absolute"));
  EXPECT_TRUE(WriteTo(Path("absolute"), "new").ok());
  EXPECT_TRUE(fs::is_symlink(Path("absolute")));
  EXPECT_TRUE(fs::is_symlink(Path("relative")));
  EXPECT_FALSE(fs::is_symlink(Path("deep/file")));
  EXPECT_EQ(Contents(Path("deep/file")), "new");
}

TEST_F(AtomicFileTest, MakesWhatALinkLeadsTo) {
  fs::create_symlink("not-yet", Path("link"));
  EXPECT_TRUE(WriteTo(Path("link"), "text", /*replace=*/false).ok());
  EXPECT_EQ(Contents(Path("not-yet")), "text");
  EXPECT_TRUE(fs::is_symlink(Path("link")));
}

TEST_F(AtomicFileTest, LinksThatGoInCirclesAreNamed) {
  fs::create_symlink("b", Path("a"));
  fs::create_symlink("a", Path("b"));
  const absl::Status status = WriteTo(Path("a"), "text");
  EXPECT_THAT(status.message(), HasSubstr(Path("a")));
  EXPECT_THAT(status.message(), HasSubstr("Too many levels of symbolic links"));
}

TEST_F(AtomicFileTest, ReplacesALinkWhereThatIsAskedFor) {
  ASSERT_TRUE(WriteTo(Path("file"), "old").ok());
  fs::create_symlink("file", Path("link"));
  EXPECT_TRUE(
      WriteTo(Path("link"), "new", true, AtomicFile::Existing::kReplace).ok());
  EXPECT_FALSE(fs::is_symlink(Path("link")));
  EXPECT_EQ(Contents(Path("file")), "old");
}

TEST_F(AtomicFileTest, WritesThroughADevice) {
  if (mknod(Path("null").c_str(), S_IFCHR | 0666, makedev(1, 3)) != 0 ||
      mknod(Path("full").c_str(), S_IFCHR | 0666, makedev(1, 7)) != 0) {
    GTEST_SKIP() << "may not make devices";
  }
  if (open(Path("null").c_str(), O_WRONLY) < 0) {
    GTEST_SKIP() << "devices of this folder cannot be opened (nodev)";
  }
  EXPECT_TRUE(WriteTo(Path("null"), "text").ok());
  EXPECT_TRUE(fs::is_character_file(Path("null")));
  const absl::Status full = WriteTo(Path("full"), "text");
  EXPECT_THAT(full.message(), HasSubstr("No space left on device"));
  EXPECT_TRUE(fs::is_character_file(Path("full")));
  EXPECT_TRUE(absl::IsAlreadyExists(WriteTo(Path("null"), "text", false)));
  EXPECT_EQ(Entries(), 2u);
}

TEST_F(AtomicFileTest, WritesThroughAFifo) {
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  // More than a pipe holds.
  const std::string text(300'000, 'x');
  std::string read;
  std::thread reader([&] { read = Contents(Path("fifo")); });
  EXPECT_TRUE(WriteTo(Path("fifo"), text).ok());
  reader.join();
  EXPECT_EQ(read, text);
  EXPECT_TRUE(fs::is_fifo(Path("fifo")));
}

TEST_F(AtomicFileTest, WritesThroughAnOpenDescriptor) {
  const int fd = open(Path("out").c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_GE(fd, 0);
  const std::string name = "/proc/self/fd/" + std::to_string(fd);
  EXPECT_TRUE(WriteTo(name, "text").ok());
  // By the descriptor: the file itself was written, not another in its place.
  char buffer[8];
  EXPECT_EQ(pread(fd, buffer, sizeof(buffer), 0), 4);
  close(fd);
}

TEST_F(AtomicFileTest, AFolderIsNamed) {
  const absl::Status status = WriteTo(folder_, "text");
  EXPECT_THAT(status.message(), HasSubstr(folder_));
  EXPECT_THAT(status.message(), HasSubstr("Is a directory"));
}

TEST_F(AtomicFileTest, AKilledWriterLeavesNothing) {
  const int probe = open(folder_.c_str(), O_TMPFILE | O_RDWR, 0600);
  if (probe < 0) GTEST_SKIP() << "this file system has no O_TMPFILE";
  close(probe);
  const pid_t child = fork();
  if (child == 0) {
    const absl::StatusOr<AtomicFile> file = AtomicFile::Create(Path("a"));
    kill(getpid(), SIGKILL);
    _exit(file.ok() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(Entries(), 0u);
}

}  // namespace
}  // namespace firsttouch
