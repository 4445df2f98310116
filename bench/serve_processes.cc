#include "firsttouch/bench/serve_processes.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace firsttouch::bench {

Process::Process(absl::FunctionRef<void()> body) {
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) Die("fork failed");
  if (pid_ > 0) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() == parent) body();
  _exit(0);
}

Process::~Process() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

bool Process::has_ended() const {
  siginfo_t info = {};
  return waitid(P_PID, static_cast<id_t>(pid_), &info,
                WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid != 0;
}

Channel::Channel() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    Die("socketpair failed");
  }
  ours_.reset(ends[0]);
  theirs_.reset(ends[1]);
}

void Channel::Tell(const void* what, size_t bytes) const {
  const char* at = static_cast<const char*>(what);
  while (bytes > 0) {
    const ssize_t sent = send(theirs_.get(), at, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) _exit(1);
    at += sent;
    bytes -= static_cast<size_t>(sent);
  }
}

void Channel::WaitUntilAsked() const {
  char byte;
  while (recv(theirs_.get(), &byte, 1, 0) < 0 && errno == EINTR) {
  }
}

void Channel::Ask() const {
  if (send(ours_.get(), "", 1, MSG_NOSIGNAL) != 1) Die("nobody can be asked");
}

void Channel::Hear(void* what, size_t bytes,
                   const std::vector<Process>& processes) const {
  constexpr int kLookAtProcessesMs = 200;
  char* at = static_cast<char*>(what);
  while (bytes > 0) {
    pollfd waits = {.fd = ours_.get(), .events = POLLIN, .revents = 0};
    if (poll(&waits, 1, kLookAtProcessesMs) > 0) {
      const ssize_t got = recv(ours_.get(), at, bytes, MSG_DONTWAIT);
      if (got <= 0) continue;
      at += got;
      bytes -= static_cast<size_t>(got);
      continue;
    }
    for (const Process& process : processes) {
      if (process.has_ended()) Die("a process of a sample has failed");
    }
  }
}

Gate::Gate() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) Die("pipe2 failed");
  read_.reset(ends[0]);
  write_.reset(ends[1]);
}

void Gate::Wait() const {
  char byte;
  while (read(read_.get(), &byte, 1) < 0 && errno == EINTR) {
  }
}

}  // namespace firsttouch::bench
