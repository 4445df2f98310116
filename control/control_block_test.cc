#include "firsttouch/control/control_block.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/fake_memfd.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;

constexpr ControlBlock::Shape kShape = {
    .slots = 3, .slot_bytes = 128, .page_states_bytes = 17 * 64};

std::unique_ptr<ControlBlock> Make(MemfdCalls& calls,
                                   const ControlBlock::Shape& shape = kShape,
                                   bool publish = true) {
  auto block =
      ControlBlock::Create(RealKernel(), calls, "mine", shape, publish);
  EXPECT_TRUE(block.ok()) << block.status();
  return *std::move(block);
}

std::unique_ptr<ControlBlock> Make() { return Make(RealMemfdCalls()); }

// The exit code of a forked child that runs `body`; -1 for a signal.
int InChild(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(CheckPoolNameTest, NamesAreForPeopleToRead) {
  EXPECT_TRUE(CheckPoolName("tenants of shard 7/eu").ok());
  EXPECT_TRUE(CheckPoolName(std::string(128, 'x')).ok());
  EXPECT_EQ(CheckPoolName("").message(),
            "name \"\" of 0 bytes is empty: give the pool one of 1 to 128 "
            "bytes that can be shown, by which people and pooldump find it");
  EXPECT_THAT(std::string(CheckPoolName("a\nb").message()),
              HasSubstr("name \"a\\nb\" of 3 bytes has control characters"));
  EXPECT_THAT(std::string(CheckPoolName(std::string(129, 'x')).message()),
              HasSubstr("of 129 bytes is too long"));
}

TEST(ControlBlockTest, IsAMemfdNamedAfterThePool) {
  EXPECT_EQ(DescriptorOf("memfd:firsttouch-pool:mine"), -1);
  auto block = Make();
  EXPECT_TRUE(block->published());
  const int fd = DescriptorOf("/memfd:firsttouch-pool:mine");
  ASSERT_GE(fd, 0);
  EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  const int seals = fcntl(fd, F_GET_SEALS);
  EXPECT_NE(seals & F_SEAL_SHRINK, 0);
  EXPECT_NE(seals & F_SEAL_GROW, 0);
  EXPECT_NE(seals & F_SEAL_SEAL, 0);
  block.reset();
  EXPECT_EQ(DescriptorOf("memfd:firsttouch-pool:mine"), -1);
}

TEST(ControlBlockTest, RecordsAndPageStatesLieApart) {
  auto block = Make();
  for (uint32_t slot = 0; slot < kShape.slots; ++slot) {
    std::memset(block->slot_record(slot), 0x10 + static_cast<int>(slot), 128);
    std::memset(block->page_states(slot), 0x20 + static_cast<int>(slot),
                kShape.page_states_bytes);
    block->NoteImage(slot, {.id = slot + 1, .name = "image"});
  }
  block->Publish({}, {});
  for (uint32_t slot = 0; slot < kShape.slots; ++slot) {
    EXPECT_EQ(block->slot_record(slot)[127], std::byte(0x10 + slot));
    EXPECT_EQ(block->page_states(slot)[0], std::byte(0x20 + slot));
    EXPECT_EQ(block->page_states(slot)[kShape.page_states_bytes - 1],
              std::byte(0x20 + slot));
    EXPECT_EQ(block->image_id(slot), slot + 1);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block->page_states(slot)) % 64, 0u);
  }
}

// A reader's mapping shows what the owner writes, and that the pool is gone.
TEST(ControlBlockTest, ReadersSeeWhatIsWritten) {
  auto block = Make();
  const int fd =
      open(absl::StrCat("/proc/self/fd/", DescriptorOf("pool:mine")).c_str(),
           O_RDONLY);
  ASSERT_GE(fd, 0);
  auto* const header = static_cast<const volatile ControlHeader*>(
      mmap(nullptr, block->bytes(), PROT_READ, MAP_SHARED, fd, 0));
  ASSERT_NE(header, MAP_FAILED);
  EXPECT_EQ(header->ready, 0u);
  ControlHeader facts = {};
  facts.pool_id = 17;
  block->Publish(facts, {.description = "some lines"});
  EXPECT_EQ(header->ready, 1u);
  EXPECT_EQ(header->pool_id, 17u);
  EXPECT_EQ(header->pid, static_cast<uint32_t>(getpid()));
  EXPECT_EQ(header->block_bytes, block->bytes());
  EXPECT_EQ(header->description.record_bytes, 10u);
  block.reset();
  EXPECT_EQ(header->ready, 0u);
  close(fd);
}

TEST(ControlBlockTest, AForkedChildCannotWriteToItsParentsBlock) {
  auto block = Make();
  block->Publish({}, {});
  *block->slot_record(1) = std::byte{7};
  EXPECT_EQ(InChild([&] {
              if (*block->slot_record(1) != std::byte{7}) return 1;
              *block->slot_record(1) = std::byte{8};
              *block->page_states(2) = std::byte{8};
              if (DescriptorOf("pool:mine") != -1) return 2;
              // The child's own child cannot either.
              return InChild([&] {
                if (*block->slot_record(1) != std::byte{8}) return 3;
                *block->slot_record(1) = std::byte{9};
                return 0;
              });
            }),
            0);
  EXPECT_EQ(*block->slot_record(1), std::byte{7});
  EXPECT_EQ(*block->page_states(2), std::byte{0});
  EXPECT_GE(DescriptorOf("pool:mine"), 0);
}

// A host closes descriptors that it does not know, and the number is reused.
TEST(ControlBlockTest, ADescriptorThatIsSomebodyElsesByNowIsLeftAlone) {
  auto block = Make();
  const int fd = DescriptorOf("pool:mine");
  close(fd);
  ASSERT_EQ(open("/dev/null", O_RDONLY), fd);
  *block->slot_record(0) = std::byte{7};
  EXPECT_EQ(InChild([&] {
              *block->slot_record(0) = std::byte{8};
              return fcntl(fd, F_GETFD) == -1 ? 1 : 0;
            }),
            0);
  EXPECT_EQ(*block->slot_record(0), std::byte{7});
  block.reset();
  EXPECT_NE(fcntl(fd, F_GETFD), -1);
  close(fd);
}

TEST(ControlBlockTest, WithoutAMemfdThereIsPrivateMemoryAndAReason) {
  struct Case {
    MemfdOp op;
    int error;
    const char* why;
  };
  for (const Case& one :
       {Case{MemfdOp::kCreate, EMFILE, "memfd_create: Too many open files"},
        Case{MemfdOp::kCreate, EPERM, "memfd_create: Operation not permitted"},
        Case{MemfdOp::kTruncate, ENOSPC, "No space left on device"}}) {
    FakeMemfdCalls calls;
    calls.Fail(one.op, 0, one.error);
    auto block = Make(calls);
    EXPECT_FALSE(block->published());
    EXPECT_THAT(block->why(), HasSubstr(one.why));
    *block->page_states(2) = std::byte{1};
    block->Publish({}, {});
    EXPECT_EQ(DescriptorOf("pool:mine"), -1);
    EXPECT_EQ(InChild([&] {
                *block->page_states(2) = std::byte{2};
                return 0;
              }),
              0);
    EXPECT_EQ(*block->page_states(2), std::byte{1});
  }
  EXPECT_EQ(Make(RealMemfdCalls(), kShape, /*publish=*/false)->why(),
            "ServiceOptions::publish is false");
}

// Kernels that lack the newer seals have the older ones.
TEST(ControlBlockTest, AKernelThatLacksASealIsDoneWithout) {
  FakeMemfdCalls calls;
  calls.Fail(MemfdOp::kAddSeals, 0, EINVAL);
  auto block = Make(calls);
  EXPECT_TRUE(block->published());
  const int seals = fcntl(DescriptorOf("pool:mine"), F_GET_SEALS);
  EXPECT_EQ(seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
            F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
}

// The kernel would allocate each page that it dumps.
TEST(ControlBlockTest, LargePageStatesAreKeptOutOfCores) {
  const auto dumped = [](const ControlBlock& block) {
    std::ifstream smaps("/proc/self/smaps");
    const std::string start = absl::StrCat(
        absl::Hex(reinterpret_cast<uintptr_t>(block.page_states(0))), "-");
    std::string line;
    bool inside = false;
    while (std::getline(smaps, line)) {
      if (line.find('-') == start.size() - 1) {
        inside = absl::StartsWith(line, start);
      }
      if (inside && absl::StartsWith(line, "VmFlags:")) {
        return !absl::StrContains(line, " dd");
      }
    }
    // It is not a mapping of its own, and thus like the records.
    return true;
  };
  EXPECT_TRUE(dumped(*Make()));
  EXPECT_FALSE(dumped(*Make(RealMemfdCalls(),
                            {.slots = 2,
                             .slot_bytes = 64,
                             .page_states_bytes = kMaxDumpedPageStatesBytes})));
}

}  // namespace
}  // namespace firsttouch
