#include "firsttouch/tests/hostile/environment.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "firsttouch/uffd/test_util.h"

namespace firsttouch::hostile {
namespace {

constexpr int kMpolInterleave = 3;  // <linux/mempolicy.h>

bool SetLimit(__rlimit_resource which, rlim_t most) {
  rlimit limit = {};
  if (getrlimit(which, &limit) != 0) return false;
  limit.rlim_cur = std::min(most, limit.rlim_max);
  return setrlimit(which, &limit) == 0;
}

// Calls that came late or are rarely wanted, as under a container's profile.
// None is of a kind without which a pool cannot be.
bool RefuseCalls() {
  return RefuseSystemCalls(
      {SYS_membarrier, SYS_process_madvise, SYS_mbind, SYS_set_mempolicy},
      EPERM, /*refuse_uffd_device=*/false);
}

// Every millisecond of the process's time some thread is in a signal handler.
bool InterruptAtRandom() {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  const itimerval each = {{0, 1000}, {0, 1000}};
  return sigaction(SIGPROF, &action, nullptr) == 0 &&
         setitimer(ITIMER_PROF, &each, nullptr) == 0;
}

// As servers do in all threads but one.
bool BlockAsynchronousSignals() {
  sigset_t blocked;
  sigfillset(&blocked);
  // SIGALRM ends a program that hangs; by SIGUSR2 programs find out what a
  // handler's mask is.
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT,
                           SIGALRM, SIGPROF, SIGUSR2}) {
    sigdelset(&blocked, signal);
  }
  return sigprocmask(SIG_BLOCK, &blocked, nullptr) == 0;
}

bool UseOneProcessor() {
  cpu_set_t mine;
  if (sched_getaffinity(0, sizeof(mine), &mine) != 0) return false;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mine)) continue;
    CPU_ZERO(&mine);
    CPU_SET(cpu, &mine);
    break;
  }
  return sched_setaffinity(0, sizeof(mine), &mine) == 0;
}

bool InterleaveNodes() {
  const unsigned long nodes = 1;
  return syscall(SYS_set_mempolicy, kMpolInterleave, &nodes, 64) == 0;
}

struct Choice {
  const char* name;
  bool (*enter)();
  // Locked memory beyond a small limit is root's.
  bool for_root = false;
};

constexpr Choice kChoices[] = {
    {"batch", [] { return setpriority(PRIO_PROCESS, 0, 10) == 0; }},
    {"blocked-signals", BlockAsynchronousSignals},
    {"few-descriptors", [] { return SetLimit(RLIMIT_NOFILE, 64); }},
    {"interleaved", InterleaveNodes},
    {"interrupted", InterruptAtRandom},
    {"locked", [] { return mlockall(MCL_CURRENT | MCL_FUTURE) == 0; }, true},
    {"locked-on-fault",
     [] { return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0; },
     true},
    {"merged", [] { return prctl(kPrSetMemoryMerge, 1, 0, 0, 0) == 0; }},
    {"no-exec-gain",
     [] { return prctl(kPrSetMdwe, kPrMdweRefuseExecGain, 0, 0, 0) == 0; }},
    {"no-huge-pages",
     [] { return prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0; }},
    {"one-processor", UseOneProcessor},
    {"read-implies-exec", [] { return personality(READ_IMPLIES_EXEC) != -1; }},
    {"refused-calls", RefuseCalls},
};

// Of these only one at a time: a later one would undo the earlier, or refuse
// what the earlier needs (each mapping would be writable and executable).
constexpr std::string_view kExclusive[][2] = {
    {"locked", "locked-on-fault"}, {"no-exec-gain", "read-implies-exec"}};

}  // namespace

std::string DrawEnvironment(std::mt19937_64& random) {
  std::vector<std::string> names;
  const auto has = [&names](std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const Choice& choice : kChoices) {
    const bool drawn = random() % 3 == 0;
    if (!drawn || (choice.for_root && geteuid() != 0)) continue;
    const bool excluded = std::any_of(
        std::begin(kExclusive), std::end(kExclusive), [&](const auto& pair) {
          return pair[1] == choice.name && has(pair[0]);
        });
    if (!excluded) names.push_back(choice.name);
  }
  return absl::StrJoin(names, ",");
}

bool EnterEnvironment(std::string_view names) {
  const std::vector<std::string> each = absl::StrSplit(
      absl::string_view(names.data(), names.size()), ',', absl::SkipEmpty());
  for (const std::string& name : each) {
    const Choice* const choice =
        std::find_if(std::begin(kChoices), std::end(kChoices),
                     [&](const Choice& one) { return one.name == name; });
    if (choice == std::end(kChoices)) {
      std::fprintf(stderr, "%s: no setting is called \"%s\"\n",
                   kEnvironmentVariable, name.c_str());
      return false;
    }
    // EINVAL, ENOSYS: a kernel that has none.
    if (!choice->enter() && errno != EINVAL && errno != ENOSYS) {
      std::fprintf(stderr, "%s: %s: %s\n", kEnvironmentVariable, choice->name,
                   std::strerror(errno));
      return false;
    }
  }
  return true;
}

}  // namespace firsttouch::hostile
