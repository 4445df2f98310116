// The first process of a virtual machine in which tests run on another kernel.
//
// It mounts what tests look at, runs each line of /commands with the working
// directory /runfiles, writes how each ended to the console, and switches the
// machine off:
//
//   @kernel 6.1.0-50-cloud-amd64
//   @begin 0
//   ... what the command printed ...
//   @end 0 exited 0 after 3 s
//   @done
//
// boot.py reads these lines. The program is linked statically, for nothing but
// what a test needs is in the machine's file system.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

namespace {

void Mount(const char* type, const char* target) {
  mkdir(target, 0755);
  if (mount(type, target, type, 0, nullptr) != 0) {
    printf("@error mount %s: %s\n", target, strerror(errno));
  }
}

// Runs `line`, words separated by spaces, and returns its wait status, or -1.
int Run(const std::string& line) {
  std::vector<std::string> words;
  for (size_t at = 0; at < line.size();) {
    const size_t end = std::min(line.find(' ', at), line.size());
    if (end > at) words.push_back(line.substr(at, end - at));
    at = end + 1;
  }
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    // A session of its own, so that it can be ended together with what it
    // starts.
    setsid();
    execv(argv[0], argv.data());
    printf("exec %s: %s\n", argv[0], strerror(errno));
    _exit(127);
  }
  if (child < 0) return -1;
  int status = -1;
  // Orphans of earlier commands are children of the first process, too.
  for (;;) {
    int one = 0;
    const pid_t ended = wait(&one);
    if (ended == child) {
      status = one;
      break;
    }
    if (ended < 0 && errno != EINTR) break;
  }
  kill(-child, SIGKILL);
  return status;
}

}  // namespace

int main() {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  Mount("proc", "/proc");
  Mount("sysfs", "/sys");
  Mount("devtmpfs", "/dev");
  Mount("tmpfs", "/tmp");
  mkdir("/dev/shm", 01777);
  Mount("tmpfs", "/dev/shm");
  const int console = open("/dev/console", O_RDWR);
  for (int fd = 0; fd < 3 && console >= 0; ++fd) dup2(console, fd);

  // The limits of a login, not those of a kernel without a service manager.
  const rlimit open_files = {1024, 1 << 20};
  setrlimit(RLIMIT_NOFILE, &open_files);
  setenv("HOME", "/tmp", 1);
  setenv("PATH", "/usr/bin:/bin", 1);
  setenv("TEST_TMPDIR", "/tmp", 1);
  setenv("TEST_SRCDIR", "/runfiles", 1);
  // This machine's memory is nobody's.
  setenv("FIRSTTOUCH_MAY_OFFLINE_PAGES", "1", 1);

  utsname name{};
  uname(&name);
  printf("@kernel %s\n", name.release);
  if (chdir("/runfiles") != 0) printf("@error chdir: %s\n", strerror(errno));
  std::ifstream commands("/commands");
  int index = 0;
  for (std::string line; std::getline(commands, line); ++index) {
    printf("@begin %d\n", index);
    const time_t start = time(nullptr);
    const int status = Run(line);
    const bool exited = status >= 0 && WIFEXITED(status);
    const bool killed = status >= 0 && WIFSIGNALED(status);
    printf("\n@end %d %s %d after %d s\n", index,
           exited   ? "exited"
           : killed ? "signal"
                    : "lost",
           exited   ? WEXITSTATUS(status)
           : killed ? WTERMSIG(status)
                    : status,
           static_cast<int>(time(nullptr) - start));
  }
  printf("@done\n");
  fflush(stdout);
  sync();
  reboot(RB_POWER_OFF);
}
