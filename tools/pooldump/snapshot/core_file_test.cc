#include "firsttouch/tools/pooldump/snapshot/core_file.h"

#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/control/block.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/service/service.h"
#include "firsttouch/tools/pooldump/snapshot/test_block.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kMiB = 1 << 20;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string Write(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "/" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

// Runs `body` in a process that dumps core, in a folder of its own. Where the
// core is; nothing where this machine writes none there.
std::optional<std::string> CoreOf(const std::string& name,
                                  const std::function<void()>& body) {
  const std::string folder = testing::TempDir() + "/" + name;
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  const pid_t child = fork();
  if (child == 0) {
    if (chdir(folder.c_str()) != 0) _exit(1);
    rlimit limit = {};
    getrlimit(RLIMIT_CORE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_CORE, &limit);
    prctl(PR_SET_DUMPABLE, 1);
    body();
    _exit(2);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status)) << status;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    return entry.path();
  }
  return std::nullopt;
}

constexpr char kNoCores[] =
    "cores are not written to files here (core_pattern, RLIMIT_CORE)";

void ReadOutOfBounds(uint64_t offset) {
  std::vector<std::byte> bytes(4 * kPageBytes, std::byte{0x5a});
  auto image =
      ImageFromBytes({.name = "crashed", .size_bytes = bytes.size()}, bytes);
  auto service = Service::Create({.name = "dumped",
                                  .layout = {.instances = 4,
                                             .max_memory_bytes = 16 * kMiB,
                                             .guard_after_bytes = kMiB}});
  auto memory = (*service)->Acquire({.image = *image, .size_bytes = kMiB});
  auto other = (*service)->Acquire({.size_bytes = 2 * kMiB});
  if (!memory.ok() || !other.ok()) _exit(3);
  memory->base()[kPageBytes] = std::byte{1};
  memory->base()[10 * kPageBytes] = std::byte{1};
  volatile std::byte read = memory->base()[offset];
  static_cast<void>(read);
}

TEST(CoreFileTest, TellsWhereTheFaultingAddressLies) {
  const auto path = CoreOf("fault", [] { ReadOutOfBounds(3 * kMiB + 5); });
  if (!path.has_value()) GTEST_SKIP() << kNoCores;
  auto core = CoreFile::Open(*path);
  ASSERT_TRUE(core.ok()) << core.status();
  auto snapshot = core->Snapshot("");
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ(snapshot->source(), ProcessSnapshot::CORE);
  EXPECT_GT(snapshot->pid(), 0);
  EXPECT_FALSE(snapshot->command().empty());
  ASSERT_EQ(snapshot->pools_size(), 1);
  const PoolSnapshot& pool = snapshot->pools(0);
  EXPECT_EQ(pool.name(), "dumped");
  EXPECT_EQ(pool.totals().held(), 2u);
  EXPECT_EQ(pool.totals().counters().traps(), 1u);
  EXPECT_FALSE(pool.totals().has_resident_bytes());
  ASSERT_EQ(pool.images_size(), 1);
  EXPECT_EQ(pool.images(0).name(), "crashed");
  EXPECT_EQ(snapshot->warnings_size(), 0);

  const Crash& crash = snapshot->crash();
  EXPECT_TRUE(crash.signal() == SIGBUS || crash.signal() == SIGSEGV);
  EXPECT_TRUE(crash.has_address());
  EXPECT_GT(crash.thread_id(), 0);
  EXPECT_NE(crash.program_counter(), 0u);
  ASSERT_TRUE(crash.has_location());
  const Location& where = crash.location();
  EXPECT_EQ(where.place(), Location::MEMORY);
  EXPECT_EQ(where.pool(), "dumped");
  EXPECT_EQ(where.offset_bytes(), static_cast<int64_t>(3 * kMiB + 5));
  EXPECT_FALSE(where.in_bounds());
  EXPECT_EQ(where.size_bytes(), kMiB);
  EXPECT_EQ(where.slot_state(), Slot::HELD);
  EXPECT_EQ(where.image_name(), "crashed");

  auto map = core->Pages("dumped", where.slot());
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->warnings_size(), 0);
  ASSERT_GE(map->runs_size(), 1);
  EXPECT_EQ(map->runs(0).resident(), -1);

  auto elsewhere = core->Locate(reinterpret_cast<uint64_t>(&CoreFile::Open));
  ASSERT_TRUE(elsewhere.ok());
  EXPECT_EQ(elsewhere->place(), Location::NO_POOL);
  EXPECT_THAT(elsewhere->mapping(), HasSubstr("/"));

  EXPECT_EQ(
      core->Snapshot("other").status(),
      absl::NotFoundError("the core has no pool \"other\"; it has \"dumped\""));
}

TEST(CoreFileTest, ACoreOfAnAbortHasNoAddress) {
  const auto path = CoreOf("abort", [] {
    auto service =
        Service::Create({.name = "aborted",
                         .layout = {.instances = 1, .max_memory_bytes = kMiB}});
    if (!service.ok()) _exit(3);
    signal(SIGABRT, SIG_DFL);
    abort();
  });
  if (!path.has_value()) GTEST_SKIP() << kNoCores;
  auto core = CoreFile::Open(*path);
  ASSERT_TRUE(core.ok()) << core.status();
  auto snapshot = core->Snapshot("aborted");
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ(snapshot->crash().signal_name(), "SIGABRT");
  EXPECT_FALSE(snapshot->crash().has_address());
  EXPECT_FALSE(snapshot->crash().has_location());
}

TEST(CoreFileTest, ACoreWithoutAPoolSaysSo) {
  const auto path = CoreOf("none", [] {
    signal(SIGABRT, SIG_DFL);
    abort();
  });
  if (!path.has_value()) GTEST_SKIP() << kNoCores;
  const absl::Status status = CoreFile::Open(*path).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("has no pool of firsttouch: it is of another process"));
}

TEST(CoreFileTest, SaysThatSharedMemoryWasNotDumped) {
  const auto path = CoreOf("filtered", [] {
    std::ofstream("/proc/self/coredump_filter") << "0x31";
    ReadOutOfBounds(3 * kMiB);
  });
  if (!path.has_value()) GTEST_SKIP() << kNoCores;
  const absl::Status status = CoreFile::Open(*path).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("set bit 1 of /proc/PID/coredump_filter"));
}

// Wherever a core ends, there is a clear error or what it has until there.
TEST(CoreFileTest, ACoreThatIsCutShortSaysSo) {
  const auto path = CoreOf("whole", [] { ReadOutOfBounds(3 * kMiB); });
  if (!path.has_value()) GTEST_SKIP() << kNoCores;
  const std::string whole = ReadAll(*path);
  const std::string cut = Write("cut", whole);
  bool short_seen = false;
  for (size_t bytes = whole.size(); bytes > 100; bytes = bytes * 9 / 10) {
    ASSERT_EQ(truncate(cut.c_str(), static_cast<off_t>(bytes)), 0);
    auto core = CoreFile::Open(cut);
    absl::Status status = core.status();
    if (core.ok()) {
      auto snapshot = core->Snapshot("");
      status = snapshot.status();
      if (snapshot.ok() && bytes < whole.size()) {
        ASSERT_GE(snapshot->warnings_size(), 1);
        EXPECT_THAT(snapshot->warnings(0), HasSubstr("the core is cut short"));
      }
    }
    if (status.ok()) continue;
    EXPECT_TRUE(absl::IsDataLoss(status)) << bytes << ": " << status;
    if (absl::StrContains(status.message(), "the core is cut short: it has")) {
      short_seen = true;
    }
  }
  EXPECT_TRUE(short_seen);
}

// As gcore writes it: mappings that are not dumped are left out altogether, and
// the signal is the one by which it stopped the process.
TEST(CoreFileTest, ACoreOfGcoreIsReadAsFarAsItGoes) {
  std::string block = TestBlock();
  ControlHeader header;
  std::memcpy(&header, block.data(), sizeof(header));
  // Its page states are not there, which come last.
  block.resize(header.pages.offset_bytes);
  std::string core = TestCore(block, 0);
  for (size_t at = 0; at + sizeof(siginfo_t) < core.size(); at += 4) {
    uint32_t word = 0;
    std::memcpy(&word, core.data() + at, sizeof(word));
    if (word != 0x53494749) continue;
    // Behind the type, "CORE" and its padding.
    const int stop = SIGSTOP;
    std::memcpy(core.data() + at + 12, &stop, sizeof(stop));
    break;
  }
  auto opened = CoreFile::Open(Write("gcore", core));
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto snapshot = opened->Snapshot("");
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  ASSERT_EQ(snapshot->pools_size(), 1);
  EXPECT_EQ(snapshot->pools(0).name(), "test");
  EXPECT_EQ(snapshot->pools(0).totals().held(), 1u);
  EXPECT_FALSE(snapshot->pools(0).totals().has_pages());
  ASSERT_GE(snapshot->warnings_size(), 1);
  EXPECT_THAT(snapshot->warnings(0),
              HasSubstr("page states are not in the core"));
  EXPECT_THAT(snapshot->warnings(0), Not(HasSubstr("overwritten")));
  EXPECT_FALSE(snapshot->has_crash());
}

TEST(CoreFileTest, ANumberThatNoFileHasIsDamageAndNotACut) {
  const std::string core = TestCore(TestBlock(), 0);
  const uint64_t huge = ~uint64_t{0};
  std::string wrong = core;
  std::memcpy(wrong.data() + offsetof(Elf64_Ehdr, e_phoff), &huge,
              sizeof(huge));
  EXPECT_THAT(
      std::string(CoreFile::Open(Write("phoff", wrong)).status().message()),
      HasSubstr("the core is damaged: it says that"));
  wrong = core;
  std::memcpy(
      wrong.data() + sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_offset), &huge,
      sizeof(huge));
  EXPECT_THAT(
      std::string(CoreFile::Open(Write("note", wrong)).status().message()),
      HasSubstr("lie at offset 18446744073709551615, which no file has"));
}

TEST(CoreFileTest, WhatIsNoCoreIsRefused) {
  const auto message = [](const std::string& path) {
    return std::string(CoreFile::Open(path).status().message());
  };
  EXPECT_TRUE(absl::IsNotFound(CoreFile::Open("/no/such/core").status()));
  EXPECT_THAT(message("/no/such/core"), HasSubstr("core /no/such/core"));
  EXPECT_THAT(message("/proc/self/exe"),
              HasSubstr("it is a program or a library, not a core"));
  EXPECT_THAT(message("/tmp"), HasSubstr("is not a file"));
  EXPECT_THAT(message(Write("empty", "")), HasSubstr("it has 0 bytes only"));
  EXPECT_THAT(message(Write("text", std::string(1000, 'x'))),
              HasSubstr("it is no ELF file"));
  EXPECT_THAT(message(Write("text", std::string(1000, 'x'))),
              HasSubstr("give the file that the kernel or gcore wrote"));
}

}  // namespace
}  // namespace firsttouch::pooldump
