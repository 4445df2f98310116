#include "firsttouch/uffd/proc.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "firsttouch/uffd/test_util.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

TEST(Proc, ParsesALineWithBlanksInItsPath) {
  const std::optional<Mapping> mapping = ParseMapping(
      "7f0a1c000000-7f0a1c021000 rw-s 00001000 00:01 2048      "
      "/memfd:a store (deleted)");
  ASSERT_TRUE(mapping.has_value());
  EXPECT_EQ(mapping->start, 0x7f0a1c000000u);
  EXPECT_EQ(mapping->end, 0x7f0a1c021000u);
  EXPECT_EQ(mapping->inode, 2048u);
  EXPECT_TRUE(mapping->is_shared());
  EXPECT_EQ(mapping->kind(), Mapping::Kind::kShmem);
  EXPECT_EQ(mapping->Describe(),
            "shared memfd mapping /memfd:a store (deleted)");
}

TEST(Proc, NamesEachKind) {
  const auto describe = [](const char* line) {
    const std::optional<Mapping> mapping = ParseMapping(line);
    return mapping.has_value() ? mapping->Describe() : "no mapping";
  };
  EXPECT_EQ(describe("1000-2000 rw-p 00000000 00:00 0 "),
            "private anonymous memory");
  EXPECT_EQ(describe("1000-2000 rw-p 00000000 00:00 0    [anon:pool a]"),
            "private anonymous memory [anon:pool a]");
  EXPECT_EQ(describe("1000-2000 rw-p 00000000 00:00 0    [heap]"),
            "private anonymous memory [heap]");
  EXPECT_EQ(describe("1000-2000 r-xp 00000000 00:00 0    [vdso]"),
            "special mapping [vdso]");
  EXPECT_EQ(describe("1000-2000 rw-s 00000000 00:01 77  /dev/zero (deleted)"),
            "shared anonymous memory");
  EXPECT_EQ(describe("1000-2000 rw-s 0 00:0f 7 /anon_hugepage (deleted)"),
            "shared hugetlbfs mapping /anon_hugepage (deleted)");
  EXPECT_EQ(describe("1000-2000 r--p 00000000 08:01 77    /etc/no such file"),
            "private file mapping /etc/no such file");
  EXPECT_EQ(describe("not a mapping at all, is it"), "no mapping");
  EXPECT_EQ(describe(""), "no mapping");
}

TEST(Proc, FindsTheMappingOfAnAddress) {
  ScratchMemory memory(1 << 20);
  const std::vector<Mapping> found =
      MappingsOf(memory.address() + 4096, memory.address() + 8192);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_LE(found[0].start, memory.address());
  EXPECT_GE(found[0].end, memory.address() + memory.bytes());
  EXPECT_EQ(found[0].kind(), Mapping::Kind::kAnonymous);
  EXPECT_GT(CountMappings(), 3u);
}

TEST(Proc, ReadsNumbers) {
  EXPECT_GT(ReadNumber("/proc/sys/vm/max_map_count").value_or(0), 0);
  EXPECT_FALSE(ReadNumber("/proc/sys/vm/no_such_limit").has_value());
  EXPECT_FALSE(ReadNumber("/proc/version").has_value());
  EXPECT_TRUE(ReadFirstLine("/proc/version").has_value());
}

// A directory of empty files that the destructor removes.
class Settings {
 public:
  explicit Settings(std::vector<std::string> names)
      : directory_(testing::TempDir() + "/settings XXXXXX"),
        names_(std::move(names)) {
    EXPECT_NE(mkdtemp(directory_.data()), nullptr);
    for (const std::string& name : names_) {
      std::ofstream(directory_ + "/" + name) << "1\n";
    }
  }
  ~Settings() {
    for (const std::string& name : names_) {
      unlink((directory_ + "/" + name).c_str());
    }
    rmdir(directory_.c_str());
  }
  Settings(const Settings&) = delete;
  Settings& operator=(const Settings&) = delete;

  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
  std::vector<std::string> names_;
};

TEST(Proc, OnlyAKernelThatIsKnownToBeSilentDoesNotLogPoisonedPages) {
  const Settings without({"overcommit_memory"});
  EXPECT_FALSE(MayLogPoisonedPages(without.directory()));
  const Settings with({"overcommit_memory", "memory_failure_recovery"});
  EXPECT_TRUE(MayLogPoisonedPages(with.directory()));
  // Nothing is known where /proc is not mounted, or another file system is
  // there.
  const Settings empty({});
  EXPECT_TRUE(MayLogPoisonedPages(empty.directory()));
  EXPECT_TRUE(MayLogPoisonedPages(empty.directory() + "/none"));
  EXPECT_TRUE(MayLogPoisonedPages("/dev/null"));
}

}  // namespace
}  // namespace firsttouch
