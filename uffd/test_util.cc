#include "firsttouch/uffd/test_util.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "firsttouch/uffd/abi.h"

namespace firsttouch {

ChildResult RunInChild(const std::function<std::string()>& body) {
  ChildResult result;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) std::abort();
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) std::abort();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    const std::string text = body();
    std::fflush(nullptr);
    size_t written = 0;
    while (written < text.size()) {
      const ssize_t n =
          write(STDOUT_FILENO, text.data() + written, text.size() - written);
      if (n <= 0) _exit(99);
      written += static_cast<size_t>(n);
    }
    _exit(0);
  }
  close(ends[1]);
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  for (;;) {
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    pollfd readable{ends[0], POLLIN, 0};
    if (left_ms <= 0 || poll(&readable, 1, static_cast<int>(left_ms)) == 0) {
      result.timed_out = true;
      kill(child, SIGKILL);
      break;
    }
    char buffer[4096];
    const ssize_t n = read(ends[0], buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    result.output.append(buffer, static_cast<size_t>(n));
  }
  close(ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  return result;
}

bool BecomeNobody() {
  constexpr uid_t kNobody = 65534;
  if (getuid() != kNobody) {
    if (setgroups(0, nullptr) != 0 ||
        setresgid(kNobody, kNobody, kNobody) != 0 ||
        setresuid(kNobody, kNobody, kNobody) != 0) {
      return false;
    }
  }
  // A change of user makes /proc/self root's; this undoes it.
  return prctl(PR_SET_DUMPABLE, 1) == 0;
}

bool RefuseSystemCalls(const std::vector<int>& numbers, int error,
                       bool refuse_uffd_device) {
  std::vector<sock_filter> filter;
  const uint32_t refuse =
      SECCOMP_RET_ERRNO | (static_cast<uint32_t>(error) & SECCOMP_RET_DATA);
  filter.push_back(
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)));
  for (const int number : numbers) {
    filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
                              static_cast<uint32_t>(number), 0, 1));
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, refuse));
  }
  if (refuse_uffd_device) {
    filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3));
    filter.push_back(
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])));
    filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
                              static_cast<uint32_t>(kUffdIocNew), 0, 1));
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, refuse));
  }
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

int DescriptorOf(std::string_view text) {
  for (int fd = 0; fd < 256; ++fd) {
    char link[256];
    const ssize_t length = readlink(
        ("/proc/self/fd/" + std::to_string(fd)).c_str(), link, sizeof link);
    if (length > 0 &&
        std::string_view(link, static_cast<size_t>(length)).find(text) !=
            std::string_view::npos) {
      return fd;
    }
  }
  return -1;
}

ScratchMemory::ScratchMemory(size_t bytes) : bytes_(bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) std::abort();
  madvise(data, bytes, MADV_NOHUGEPAGE);
  data_ = static_cast<char*>(data);
}

ScratchMemory::~ScratchMemory() { munmap(data_, bytes_); }

}  // namespace firsttouch
