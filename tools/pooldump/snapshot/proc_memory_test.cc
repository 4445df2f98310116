#include "firsttouch/tools/pooldump/snapshot/proc_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "firsttouch/uffd/unique_fd.h"
#include "gtest/gtest.h"

namespace firsttouch::pooldump {
namespace {

constexpr uint64_t kPage = 4096;

constexpr char kSmaps[] =
    "1000-2000 rw-p 00000000 00:00 0                          [heap]\n"
    "Size:                  4 kB\n"
    "Rss:                   4 kB\n"
    "7f0000000000-7f0000010000 rw-p 00000000 00:01 7    /memfd:x (deleted)\n"
    "Size:                 64 kB\n"
    "Rss:                  32 kB\n"
    "Pss:                  20 kB\n"
    "Pss_Dirty:             9 kB\n"
    "Anonymous:            12 kB\n"
    "SwapPss:               3 kB\n"
    "Swap:                  4 kB\n"
    "VmFlags: rd wr mr mw me ac\n"
    "7f0000010000-7f0000020000 rw-p 00000000 00:00 0 \n"
    "Rss:                   8 kB\n"
    "Anonymous:             8 kB\n"
    "garbage\n"
    "7f0000020000-7f0000030000 rw-p 00000000 00:00 0 \n"
    "Rss:                 400 kB\n";

TEST(AddSmapsTest, SumsTheMappingsOfEachRange) {
  std::vector<SmapsRange> ranges = {{0x1000, 0x1800, {}},
                                    {0x7f0000000000, 0x7f0000020000, {}}};
  AddSmaps(kSmaps, ranges);
  EXPECT_EQ(ranges[0].sums.mappings(), 1u);
  EXPECT_EQ(ranges[0].sums.rss_bytes(), 4096u);
  EXPECT_EQ(ranges[1].sums.mappings(), 2u);
  EXPECT_EQ(ranges[1].sums.rss_bytes(), 40u * 1024);
  EXPECT_EQ(ranges[1].sums.pss_bytes(), 20u * 1024);
  EXPECT_EQ(ranges[1].sums.anonymous_bytes(), 20u * 1024);
  EXPECT_EQ(ranges[1].sums.swap_bytes(), 4u * 1024);
}

TEST(MappingNameAtTest, NamesWhatAnAddressIsIn) {
  EXPECT_EQ(MappingNameAt(kSmaps, 0x1fff), "[heap]");
  EXPECT_EQ(MappingNameAt(kSmaps, 0x7f0000000000), "/memfd:x (deleted)");
  EXPECT_EQ(MappingNameAt(kSmaps, 0x7f0000010000), "anonymous memory");
  EXPECT_EQ(MappingNameAt(kSmaps, 0x2000), std::nullopt);
  EXPECT_EQ(MappingNameAt("", 0), std::nullopt);
}

TEST(ForEachResidentRunTest, TellsPrivatePagesFromThoseOfAFile) {
  const UniqueFd proc(open("/proc/self", O_RDONLY | O_DIRECTORY));
  const UniqueFd file(memfd_create("file", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(file.get(), 8 * kPage), 0);
  auto* const memory = static_cast<std::byte*>(mmap(
      nullptr, 8 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get(), 0));
  ASSERT_NE(memory, MAP_FAILED);
  madvise(memory, 8 * kPage, MADV_RANDOM);
  memory[kPage] = std::byte{1};
  volatile std::byte read = memory[4 * kPage];
  static_cast<void>(read);
  const auto start = reinterpret_cast<uint64_t>(memory);
  uint64_t own = 0;
  uint64_t shared = 0;
  uint64_t last = start;
  const absl::Status status = ForEachResidentRun(
      proc.get(), start, start + 8 * kPage, [&](const ResidentRun& run) {
        EXPECT_GE(run.start, last);
        last = run.end;
        (run.is_private ? own : shared) += run.end - run.start;
      });
  munmap(memory, 8 * kPage);
  if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(own, kPage);
  EXPECT_GE(shared, kPage);
}

TEST(ReadProcFileTest, ReadsAllOfIt) {
  const UniqueFd proc(open("/proc/self", O_RDONLY | O_DIRECTORY));
  const auto smaps = ReadProcFile(proc.get(), "smaps");
  ASSERT_TRUE(smaps.ok());
  EXPECT_GT(smaps->size(), 10000u);
  EXPECT_EQ(smaps->back(), '\n');
  EXPECT_TRUE(
      absl::IsUnavailable(ReadProcFile(proc.get(), "no_such").status()));
}

}  // namespace
}  // namespace firsttouch::pooldump
