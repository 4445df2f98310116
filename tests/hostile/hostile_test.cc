// Judges the hostile programs (program.h) from outside: each runs as a child,
// once for each way of supplying memory.
//
// FIRSTTOUCH_HOSTILE_SEED=N draws an environment for each child
// (environment.h): the settings of a process change nothing of what is
// promised.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <ostream>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "firsttouch/tests/hostile/core_secret.h"
#include "firsttouch/tests/hostile/environment.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::hostile {
namespace {

using ::testing::AnyOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// program.h's kSkipExitCode, as the outside sees it.
constexpr int kSkipped = 77;

// How a program ended.
struct Outcome {
  int exit_code = -1;  // -1: by a signal
  int signal = 0;
  bool dumped_core = false;
  std::string out;
  std::string err;
  std::string directory;  // where it ran
  std::string environment;
};

void PrintTo(const Outcome& outcome, std::ostream* os) {
  if (outcome.signal != 0) {
    *os << "killed by " << strsignal(outcome.signal);
  } else {
    *os << "exit code " << outcome.exit_code;
  }
  if (!outcome.environment.empty()) {
    *os << "\n" << kEnvironmentVariable << "=" << outcome.environment;
  }
  *os << "\nstdout: " << outcome.out << "\nstderr: " << outcome.err;
}

// Reads both pipes until both are closed.
void ReadAll(int out, int err, Outcome& outcome) {
  std::array<pollfd, 2> fds = {pollfd{out, POLLIN, 0}, pollfd{err, POLLIN, 0}};
  std::array<std::string*, 2> texts = {&outcome.out, &outcome.err};
  while (fds[0].fd >= 0 || fds[1].fd >= 0) {
    ASSERT_GT(poll(fds.data(), fds.size(), -1), 0);
    for (size_t i = 0; i < fds.size(); ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t got = read(fds[i].fd, buffer, sizeof(buffer));
      if (got > 0) {
        texts[i]->append(buffer, static_cast<size_t>(got));
      } else {
        close(fds[i].fd);
        fds[i].fd = -1;
      }
    }
  }
}

// Backing and resolve; or one of the mappings, and nothing.
using Setting = std::tuple<std::string, std::string>;

class HostileTest : public testing::TestWithParam<Setting> {
 protected:
  bool in_thread() const { return std::get<1>(GetParam()) == "in-thread"; }
  bool by_mappings() const { return std::get<1>(GetParam()).empty(); }

  // Runs the program in an empty directory of its own.
  Outcome Run(const std::string& name) {
    Outcome outcome;
    const std::string program =
        (std::filesystem::read_symlink("/proc/self/exe").parent_path() /
         "hostile_programs")
            .string();
    std::string directory = testing::TempDir() + "/hostile.XXXXXX";
    EXPECT_NE(mkdtemp(directory.data()), nullptr);
    outcome.directory = directory;
    if (environments_.has_value()) {
      outcome.environment = DrawEnvironment(*environments_);
    }
    int out[2], err[2];
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(err, O_CLOEXEC), 0);
    const auto& [backing, resolve] = GetParam();
    const pid_t child = fork();
    EXPECT_GE(child, 0);
    if (child == 0) {
      dup2(out[1], STDOUT_FILENO);
      dup2(err[1], STDERR_FILENO);
      if (chdir(directory.c_str()) == 0 &&
          setenv(kEnvironmentVariable, outcome.environment.c_str(), 1) == 0) {
        execl(program.c_str(), program.c_str(), name.c_str(), backing.c_str(),
              resolve.empty() ? nullptr : resolve.c_str(), nullptr);
      }
      _exit(127);
    }
    close(out[1]);
    close(err[1]);
    ReadAll(out[0], err[0], outcome);
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    if (WIFEXITED(status)) outcome.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) {
      outcome.signal = WTERMSIG(status);
      outcome.dumped_core = WCOREDUMP(status);
    }
    return outcome;
  }

  // Another one for each test, so that one test can be repeated alone.
  void SetUp() override {
    const char* const seed = std::getenv("FIRSTTOUCH_HOSTILE_SEED");
    if (seed == nullptr) return;
    const std::string name =
        testing::UnitTest::GetInstance()->current_test_info()->name();
    std::seed_seq mixed(name.begin(), name.end());
    std::array<uint32_t, 1> of_name;
    mixed.generate(of_name.begin(), of_name.end());
    environments_.emplace(std::strtoull(seed, nullptr, 10) + of_name[0]);
  }

  // The program checks for itself and must come to its end; `traps` times it
  // leaves a trap to the host's handler, which is told on stderr.
  void ExpectSuccess(const std::string& name, int traps = 0) {
    const Outcome outcome = Run(name);
    if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
    ASSERT_EQ(outcome.exit_code, 0) << testing::PrintToString(outcome);
    std::string line;
    int lines = 0;
    for (std::istringstream err(outcome.err); std::getline(err, line);
         ++lines) {
      EXPECT_THAT(line, StartsWith("firsttouch: out of bounds read "));
    }
    EXPECT_EQ(lines, traps) << outcome.err;
  }

  // The program must die where it touched, and say so in one line.
  void ExpectOutOfBounds(const std::string& name, const std::string& line) {
    const Outcome outcome = Run(name);
    if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
    // SIGSEGV where a page had to be made inaccessible (no UFFDIO_POISON).
    if (by_mappings()) {
      EXPECT_EQ(outcome.signal, SIGSEGV) << testing::PrintToString(outcome);
    } else if (in_thread()) {
      EXPECT_EQ(outcome.signal, SIGBUS) << testing::PrintToString(outcome);
    } else {
      EXPECT_THAT(outcome.signal, AnyOf(SIGBUS, SIGSEGV))
          << testing::PrintToString(outcome);
    }
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, ContainsRegex("^firsttouch: out of bounds " +
                                           line + "[^\n]*\n$"))
        << testing::PrintToString(outcome);
  }

 private:
  std::optional<std::mt19937_64> environments_;
};

std::string SettingName(const testing::TestParamInfo<Setting>& info) {
  const auto& [backing, resolve] = info.param;
  std::string name = resolve.empty() ? backing : backing + "_" + resolve;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Ways, HostileTest,
                         testing::Combine(testing::Values("shared", "copied"),
                                          testing::Values("in-thread",
                                                          "handler-thread")),
                         SettingName);
INSTANTIATE_TEST_SUITE_P(Mappings, HostileTest,
                         testing::Values(Setting("mappings-drop", ""),
                                         Setting("mappings-scan", "")),
                         SettingName);

TEST_P(HostileTest, ReadPastEnd) {
  ExpectOutOfBounds("read_past_end",
                    "read in pool \"hostile\", instance 0, memory 0 .slot 0.: "
                    "offset 12288 is not below the size of 12288 bytes");
}

TEST_P(HostileTest, WritePastEnd) {
  ExpectOutOfBounds("write_past_end",
                    "write in pool \"hostile\", instance 0, memory 0 .slot 0.: "
                    "offset 16401 is not below the size of 16384 bytes");
}

TEST_P(HostileTest, ReadIntoGuard) {
  ExpectOutOfBounds("read_into_guard",
                    "read in pool \"hostile\", instance 0, memory 0 .slot 0.: "
                    "offset 385600 is not below the size of 12288 bytes");
}

TEST_P(HostileTest, ReadBeforeStart) {
  ExpectOutOfBounds("read_before_start",
                    "read in pool \"hostile\", instance 0, memory 0 .slot 0.: "
                    "offset -1 is not below the size of 12288 bytes");
}

TEST_P(HostileTest, ReadBelowANeighbour) {
  ExpectOutOfBounds("read_below_a_neighbour",
                    "read in pool \"hostile\", in the guard between instance "
                    "0, memory 0 .offset 1310712. and instance 1, memory 0 "
                    ".offset -8., which both can reach");
}

TEST_P(HostileTest, JumpPastEnd) {
  ExpectOutOfBounds("jump_past_end",
                    "instruction fetch in pool \"hostile\", instance 0, memory "
                    "0 .slot 0.: offset 12304 is not below the size of 12288 "
                    "bytes");
}

TEST_P(HostileTest, ReadAfterRelease) {
  ExpectOutOfBounds("read_after_release",
                    "read in pool \"hostile\", instance 0, memory 0 .slot 0, "
                    "not held by anybody.: offset 163840 is not below the size "
                    "of 0 bytes");
}

TEST_P(HostileTest, ReadOfAMemoryOfNoBytes) {
  ExpectOutOfBounds("read_size_zero",
                    "read in pool \"hostile\", instance 0, memory 0 .slot 0.: "
                    "offset 0 is not below the size of 0 bytes");
}

TEST_P(HostileTest, LastTenantLeavesNothing) { ExpectSuccess("last_tenant"); }

TEST_P(HostileTest, ForkedChildHasNoMemoriesAndTheParentIsUnharmed) {
  ExpectSuccess("forks");
}

TEST_P(HostileTest, ForkedChildMakesAPoolOfItsOwn) {
  ExpectSuccess("forked_child_makes_pool");
}

TEST_P(HostileTest, ForkedChildUsesAnImageAfterItsParentHasEnded) {
  ExpectSuccess("forked_child_outlives_parent");
}

TEST_P(HostileTest, ForkedChildDiesOfItsTouch) {
  const Outcome outcome = Run("forked_child_touches");
  if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
  EXPECT_EQ(outcome.exit_code, 0) << testing::PrintToString(outcome);
  EXPECT_EQ(outcome.out, "child: signal 11\n");
  EXPECT_EQ(outcome.err, "");
}

TEST_P(HostileTest, AStackOverflowIsASegmentationFault) {
  const Outcome outcome = Run("overflows_stack");
  if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
  EXPECT_EQ(outcome.signal, SIGSEGV) << testing::PrintToString(outcome);
  EXPECT_EQ(outcome.err, "");
}

TEST_P(HostileTest, AStackOverflowReachesTheHostsHandler) {
  const Outcome outcome = Run("overflows_stack_under_host");
  if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
  EXPECT_EQ(outcome.exit_code, 7) << testing::PrintToString(outcome);
  EXPECT_EQ(outcome.out, "the host's handler was called\n");
}

TEST_P(HostileTest, AFaultNeedsNothingOfTheGuestsStack) {
  ExpectSuccess("faults_at_stack_end");
}

TEST_P(HostileTest, TrapsInsideTraps) { ExpectSuccess("traps_in_trap"); }

TEST_P(HostileTest, TrapsInsideTrapsWithoutEndKillAndDoNotHang) {
  const Outcome outcome = Run("traps_in_trap_for_ever");
  if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
  EXPECT_THAT(outcome.signal, AnyOf(SIGBUS, SIGSEGV))
      << testing::PrintToString(outcome);
}

TEST_P(HostileTest, AThousandTrapsInOneThread) {
  ExpectSuccess("thousand_traps");
}

TEST_P(HostileTest, TheHostsHandlersAreCalledAsIfWeWereNotThere) {
  ExpectSuccess("host_handler_before", 2);
}

TEST_P(HostileTest, AHostHandlerInFrontOfOurs) {
  ExpectSuccess("host_handler_after");
}

TEST_P(HostileTest, TheHostOwnsTheHandlers) {
  ExpectSuccess("host_owns_handlers", 1);
}

TEST_P(HostileTest, AForeignFaultWithoutAHandlerKills) {
  const Outcome outcome = Run("foreign_fault_dies");
  if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
  EXPECT_EQ(outcome.signal, SIGSEGV) << testing::PrintToString(outcome);
  EXPECT_EQ(outcome.err, "");
}

TEST_P(HostileTest, AClosedUserfaultfdNeverShowsZeroes) {
  const Outcome outcome = Run("userfaultfd_closed");
  if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
  EXPECT_THAT(outcome.out, Not(HasSubstr("where the image has")));
  if (outcome.exit_code == 0) {
    EXPECT_EQ(outcome.out, "served all the same\n");
  } else {
    EXPECT_THAT(outcome.signal, AnyOf(SIGBUS, SIGSEGV, SIGABRT))
        << testing::PrintToString(outcome);
    EXPECT_THAT(outcome.err, HasSubstr("firsttouch: "));
    EXPECT_THAT(outcome.err, HasSubstr("failed with errno 9; "));
  }
}

TEST_P(HostileTest, TenThousandLeasesCostNoMappings) {
  ExpectSuccess("many_leases");
}

TEST_P(HostileTest, FillsCrossTheEdgesOfMappings) {
  ExpectSuccess("split_mappings");
}

TEST_P(HostileTest, NeighboursChangeBetweenImages) {
  ExpectSuccess("rebinds_neighbours");
}

TEST_P(HostileTest, EveryPropertyOfThePoolSurvivesAHundredCycles) {
  ExpectSuccess("mixed_cycles");
}

TEST_P(HostileTest, ACoreFileIsSmallAndKeepsSecrets) {
  const Outcome outcome = Run("aborts_with_big_pool");
  if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
  ASSERT_EQ(outcome.signal, SIGABRT) << testing::PrintToString(outcome);
  if (!outcome.dumped_core) GTEST_SKIP() << "core files";
  std::filesystem::path core;
  for (const auto& entry :
       std::filesystem::directory_iterator(outcome.directory)) {
    core = entry.path();
  }
  ASSERT_FALSE(core.empty());
  struct stat status = {};
  ASSERT_EQ(stat(core.c_str(), &status), 0);
  // What it takes, and what a reader of it goes through.
  EXPECT_LT(status.st_blocks * 512, 64 << 20);
  EXPECT_LT(status.st_size, 256 << 20);
  std::string bytes(static_cast<size_t>(status.st_size), 0);
  std::ifstream(core, std::ios::binary)
      .read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  // The dump does have the program's memory: its own name for one.
  EXPECT_NE(bytes.find("aborts_with_big_pool"), std::string::npos);
  EXPECT_EQ(bytes.find(CoreSecret()), std::string::npos);
  std::filesystem::remove(core);
}

TEST_P(HostileTest, TheProcessEndsWhileThreadsRun) {
  for (int i = 0; i < 10; ++i) {
    const Outcome outcome = Run("exits_while_threads_run");
    if (outcome.exit_code == kSkipped) GTEST_SKIP() << outcome.out;
    ASSERT_EQ(outcome.exit_code, 0) << testing::PrintToString(outcome);
    ASSERT_EQ(outcome.out, "leaving\n");
    ASSERT_EQ(outcome.err, "");
  }
}

TEST_P(HostileTest, ThePoolIsDestroyedWhileBusy) {
  ExpectSuccess("destroyed_while_busy");
}

}  // namespace
}  // namespace firsttouch::hostile
