#include "firsttouch/tools/firsttouchd/program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "absl/status/statusor.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/serve/test_image.h"
#include "firsttouch/serve/unix_socket.h"
#include "gmock/gmock.h"

namespace firsttouch {
namespace {

std::string& Program() {
  static std::string* const program = new std::string();
  return *program;
}

}  // namespace

UniqueFd BoundSocket(const std::string& path, int type) {
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  const sockaddr_un address = SocketAddress(path).value();
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<const sockaddr*>(&address),
                 sizeof address),
            0);
  return fd;
}

std::string Ask(const std::string& path, const std::string& text) {
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = SocketAddress(path).value();
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address),
              sizeof address) != 0) {
    return "nobody listens";
  }
  send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
  std::string answer;
  std::array<char, 4096> bytes;
  for (ssize_t n; (n = recv(fd.get(), bytes.data(), bytes.size(), 0)) > 0;) {
    answer.append(bytes.data(), static_cast<size_t>(n));
  }
  return answer;
}

int RunProgramTests(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  if (argc != 2) return 2;
  Program() = std::filesystem::absolute(argv[1]).string();
  return RUN_ALL_TESTS();
}

ProgramTest::ProgramTest() {
  std::string folder = "/dev/shm/firsttouchd-XXXXXX";
  folder_ = mkdtemp(folder.data());
  notify_ = BoundSocket(folder_ + "/notify", SOCK_DGRAM);
  // Also for a program that becomes another user.
  chmod(folder_.c_str(), 0755);
  chmod((folder_ + "/notify").c_str(), 0777);
  image_ = TestImage(kPages);
  EXPECT_TRUE(WriteImageFile(*image_, File()).ok());
}

ProgramTest::~ProgramTest() {
  if (pid_ > 0) End(SIGKILL);
  if (before_ > 0) EndOf(before_, SIGKILL);
  guest_.reset();
  std::filesystem::remove_all(folder_);
}

bool ProgramTest::MakeGuest() {
  guest_ = AnotherGuest();
  return guest_ != nullptr;
}

std::unique_ptr<StandIn> ProgramTest::AnotherGuest() {
  absl::StatusOr<std::unique_ptr<StandIn>> guest =
      StandIn::Start({.image = image_, .pages = kPages});
  if (guest.ok()) return *std::move(guest);
  skip_ = std::string(guest.status().message());
  return nullptr;
}

void ProgramTest::Start(std::vector<std::string> words, int descriptor,
                        const std::string& descriptor_name) {
  words.insert(words.begin(), Program());
  pid_ = fork();
  ASSERT_GE(pid_, 0);
  if (pid_ > 0) return;
  const int log =
      open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  dup2(log, STDERR_FILENO);
  setenv("NOTIFY_SOCKET", (folder_ + "/notify").c_str(), 1);
  for (const auto& [name, value] : environment_) {
    setenv(name.c_str(), value.c_str(), 1);
  }
  if (descriptor >= 0) {
    if (descriptor == 3) {
      fcntl(3, F_SETFD, 0);
    } else {
      dup2(descriptor, 3);
    }
    setenv("LISTEN_FDS", "1", 1);
    setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
    setenv("LISTEN_FDNAMES", descriptor_name.c_str(), 1);
  }
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  execv(arguments[0], arguments.data());
  _exit(127);
}

void ProgramTest::StartBeside(std::vector<std::string> words) {
  before_ = pid_;
  Start(std::move(words));
}

std::string ProgramTest::Told() {
  pollfd waits = {.fd = notify_.get(), .events = POLLIN, .revents = 0};
  if (poll(&waits, 1, 50'000) != 1) return "nothing; " + Log();
  std::array<char, 256> text;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control;
  iovec bytes = {text.data(), text.size()};
  msghdr message = {};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t count = recvmsg(notify_.get(), &message, MSG_CMSG_CLOEXEC);
  if (count < 0) return "nothing";
  told_.reset();
  if (const cmsghdr* const header = CMSG_FIRSTHDR(&message)) {
    int fd;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    told_.reset(fd);
  }
  return {text.data(), static_cast<size_t>(count)};
}

int ProgramTest::EndOf(pid_t& pid, int signal) {
  if (signal != 0) kill(pid, signal);
  int status = 0;
  waitpid(pid, &status, 0);
  pid = -1;
  return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string ProgramTest::Log() const {
  std::string text;
  const UniqueFd fd(open((folder_ + "/log").c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 4096> bytes;
  for (ssize_t n; (n = read(fd.get(), bytes.data(), bytes.size())) > 0;) {
    text.append(bytes.data(), static_cast<size_t>(n));
  }
  return text;
}

}  // namespace firsttouch
