// The program, as systemd and a VMM see it.
//
//   firsttouchd_test FIRSTTOUCHD

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_store.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/serve/stand_in.h"
#include "firsttouch/serve/test_image.h"
#include "firsttouch/uffd/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;
using Seen = StandIn::Seen;

constexpr uint64_t kPages = 256;
std::string g_program;

UniqueFd BoundSocket(const std::string& path, int type) {
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  EXPECT_EQ(
      bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return fd;
}

class FirsttouchdTest : public ::testing::Test {
 protected:
  FirsttouchdTest() {
    std::string folder = "/tmp/firsttouchd-XXXXXX";
    folder_ = mkdtemp(folder.data());
    notify_ = BoundSocket(folder_ + "/notify", SOCK_DGRAM);
    image_ = TestImage(kPages);
    EXPECT_TRUE(WriteImageFile(*image_, File()).ok());
  }
  ~FirsttouchdTest() override {
    if (pid_ > 0) End(SIGKILL);
    guest_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::string File() const { return folder_ + "/guest.ftimg"; }
  std::string Socket() const { return folder_ + "/pages.sock"; }

  bool MakeGuest() {
    absl::StatusOr<std::unique_ptr<StandIn>> guest =
        StandIn::Start({.image = image_, .pages = kPages});
    if (!guest.ok()) {
      skip_ = std::string(guest.status().message());
      return false;
    }
    guest_ = *std::move(guest);
    return true;
  }

  // Starts the program, with `listening` (if any) as systemd gives a socket.
  void Start(std::vector<std::string> words, int listening = -1) {
    words.insert(words.begin(), g_program);
    log_ = folder_ + "/log";
    pid_ = fork();
    ASSERT_GE(pid_, 0);
    if (pid_ > 0) return;
    const int log = open(log_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(log, STDERR_FILENO);
    setenv("NOTIFY_SOCKET", (folder_ + "/notify").c_str(), 1);
    if (listening >= 0) {
      if (listening == 3) {
        fcntl(3, F_SETFD, 0);
      } else {
        dup2(listening, 3);
      }
      setenv("LISTEN_FDS", "1", 1);
      setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
    }
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    _exit(127);
  }

  // The next thing that systemd is told.
  std::string Told() {
    pollfd waits = {.fd = notify_.get(), .events = POLLIN, .revents = 0};
    if (poll(&waits, 1, 50'000) != 1) return "nothing; " + Log();
    std::array<char, 256> bytes;
    const ssize_t count = recv(notify_.get(), bytes.data(), bytes.size(), 0);
    return {bytes.data(), static_cast<size_t>(count)};
  }

  // The exit code, or 1000 + the signal.
  int End(int signal) {
    if (signal != 0) kill(pid_, signal);
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
  }

  std::string Log() {
    std::string text;
    const UniqueFd fd(open(log_.c_str(), O_RDONLY | O_CLOEXEC));
    std::array<char, 4096> bytes;
    for (ssize_t n; (n = read(fd.get(), bytes.data(), bytes.size())) > 0;) {
      text.append(bytes.data(), n);
    }
    return text;
  }

  std::string folder_;
  std::string log_;
  std::string skip_;
  ImageRef image_;
  UniqueFd notify_;
  std::unique_ptr<StandIn> guest_;
  pid_t pid_ = -1;
};

TEST_F(FirsttouchdTest, ServesAGuestFromAFileAndEndsBySigterm) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  Start({"--listen", Socket(), "--image", File()});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(0, 100), Seen{.as_image = 100});
  EXPECT_EQ(End(SIGTERM), 0);
  EXPECT_EQ(Told(), "STOPPING=1");
  EXPECT_THAT(Log(), HasSubstr(absl::StrCat("guest pid ", guest_->pid())));
  // What is not there is lost, and not zero. (Read-ahead has gone on.)
  const Seen rest = guest_->Look(100, 156);
  EXPECT_GT(rest.sigbus, 0u);
  EXPECT_EQ(rest.as_image + rest.sigbus, 156u);
}

TEST_F(FirsttouchdTest, ServesFromAStoreAtASocketOfSystemds) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  {
    absl::StatusOr<std::unique_ptr<ImageStore>> store =
        ImageStore::Open({.directory = folder_ + "/store"});
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->Put("base", *image_).ok());
  }
  const UniqueFd listening = BoundSocket(Socket(), SOCK_STREAM);
  ASSERT_EQ(listen(listening.get(), 8), 0);
  // Connects before there is a server, and waits for it.
  ASSERT_TRUE(guest_->Join(Socket()));
  Start({"--store", folder_ + "/store", "--name", "base"}, listening.get());
  ASSERT_EQ(Told(), "READY=1");
  EXPECT_EQ(guest_->Look(0, kPages), Seen{.as_image = kPages});
}

TEST_F(FirsttouchdTest, KeepsWhatGuestsTouchWithTheImage) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  Start({"--listen", Socket(), "--image", File(), "--record"});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(40, 8), Seen{.as_image = 8});
  guest_->Kill();
  WorkingSet::Words read;
  while (read.empty()) {
    absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(File());
    ASSERT_TRUE(info.ok()) << info.status();
    read = info->read;
    poll(nullptr, 0, 1);
  }
  EXPECT_EQ(read, (WorkingSet::Words{uint64_t{0xff} << 40}));
}

// The number of a process' userfaultfd among its descriptors.
int UffdOf(pid_t pid) {
  for (const auto& entry : std::filesystem::directory_iterator(
           absl::StrCat("/proc/", pid, "/fd"))) {
    std::error_code error;
    if (std::filesystem::read_symlink(entry, error) ==
        "anon_inode:[userfaultfd]") {
      return std::stoi(entry.path().filename());
    }
  }
  return -1;
}

TEST_F(FirsttouchdTest, AGuestOfAKilledServerWaitsUntilAnotherTakesOver) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  Start({"--listen", Socket(), "--image", File()});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(0, 10), Seen{.as_image = 10});
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  guest_->BeginLook(0, kPages);
  // The guest's own, not the one that the test has of it.
  const UniqueFd pidfd = guest_->Pidfd();
  UniqueFd uffd(static_cast<int>(
      syscall(SYS_pidfd_getfd, pidfd.get(), UffdOf(guest_->pid()), 0)));
  if (!uffd) GTEST_SKIP() << "pidfd_getfd: " << std::strerror(errno);
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start({});
  ASSERT_TRUE(server.ok()) << server.status();
  GuestArrival arrival;
  arrival.uffd = std::move(uffd);
  arrival.pidfd = guest_->Pidfd();
  arrival.regions = guest_->regions();
  arrival.image = GuestImage::Create(image_);
  arrival.taken_over = true;
  absl::StatusOr<uint64_t> id = (*server)->Attach(std::move(arrival));
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(guest_->Answer(), Seen{.as_image = kPages});
}

TEST_F(FirsttouchdTest, SaysWhatIsMissing) {
  Start({"--listen", Socket(), "--image", folder_ + "/none"});
  EXPECT_EQ(End(0), 2);
  EXPECT_THAT(Log(), HasSubstr(folder_ + "/none"));
  Start({"--image", File()});
  EXPECT_EQ(End(0), 2);
  EXPECT_THAT(Log(), HasSubstr("there is no socket to listen at"));
  Start({"--listen", Socket()});
  EXPECT_EQ(End(0), 64);
  EXPECT_THAT(Log(), HasSubstr("say either --image FILE, or --store"));
}

}  // namespace
}  // namespace firsttouch

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  if (argc != 2) return 2;
  firsttouch::g_program = std::filesystem::absolute(argv[1]).string();
  return RUN_ALL_TESTS();
}
