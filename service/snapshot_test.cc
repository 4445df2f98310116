// Snapshots: of memories that no thread writes to, of memories that other
// threads go on writing to, and as files.

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMaxPages = 128;

class SnapshotTest : public testing::TestWithParam<Way> {
 protected:
  ServiceOptions Options() {
    ServiceOptions options;
    options.name = "snapshot";
    options.layout = {.instances = 4,
                      .max_memory_bytes = kMaxPages * kPageBytes,
                      .guard_after_bytes = 1 << 20};
    options.supply = Asking(GetParam());
    options.trap_callback = JumpOutOfTrap;
    return options;
  }

  void SetUp() override {
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(GetParam(), Options(), kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  Memory MustAcquire(const ImageRef& image, uint64_t pages) {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image, .size_bytes = pages * kPageBytes});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  FakeKernel kernel_{RealKernel()};
  std::unique_ptr<Service> service_;
};

INSTANTIATE_TEST_SUITE_P(AllWays, SnapshotTest, AllWays(), WayName);
INSTANTIATE_TEST_SUITE_P(TestsOwn, SnapshotTest, testing::Values(kPlainWay),
                         WayName);

std::vector<uint8_t> BytesOf(const Image& image) {
  std::vector<uint8_t> bytes(image.size_bytes());
  EXPECT_TRUE(image.Read(0, std::as_writable_bytes(std::span(bytes))).ok());
  return bytes;
}

TEST_P(SnapshotTest, ADeltaHasThePagesThatDifferAndKnowsItsParent) {
  const ImageRef image = PatternImage("parent", 40, {5});
  for (int guest = 0; guest < 3; ++guest) {
    Memory memory = MustAcquire(image, 60);
    Store(memory, 3 * kPageBytes, 1);
    Store(memory, 55 * kPageBytes, 2);
    memset(memory.base() + 20 * kPageBytes, 0, kPageBytes);
    // Writing the same value makes no difference.
    Store(memory, 30 * kPageBytes, Load(memory, 30 * kPageBytes));
    ASSERT_EQ(memory.Grow(62 * kPageBytes), absl::OkStatus());
    Store(memory, 61 * kPageBytes + 5, 3);
    std::vector<uint8_t> held(62 * kPageBytes);
    memcpy(held.data(), memory.base(), held.size());

    absl::StatusOr<ImageRef> delta = memory.SnapshotDelta("delta");
    ASSERT_TRUE(delta.ok()) << delta.status();
    EXPECT_EQ((*delta)->parent(), image);
    EXPECT_EQ(BytesOf(**delta), held);
    EXPECT_EQ((*delta)->stored_pages(), 39u - 1 + 2);
    // The result is a memory like any other.
    Memory copy = MustAcquire(*delta, 62);
    EXPECT_EQ(FirstDifference(copy, held), std::nullopt);
    EXPECT_EQ(FirstDifference(memory, held), std::nullopt);

    // A whole snapshot stands alone.
    absl::StatusOr<ImageRef> whole = memory.Snapshot("whole");
    ASSERT_TRUE(whole.ok()) << whole.status();
    EXPECT_EQ((*whole)->parent(), nullptr);
    EXPECT_FALSE((*whole)->is_file_backed());
    EXPECT_EQ(BytesOf(**whole), held);

    // Files: the delta is written, opened with its parent, and merged.
    const std::string path = testing::TempDir() + "/delta.ftimg";
    absl::StatusOr<ImageFileInfo> written =
        WriteImageFile(**delta, path, {.parent = (*delta)->parent()});
    ASSERT_TRUE(written.ok()) << written.status();
    EXPECT_EQ(written->stored_pages, 3u);
    EXPECT_EQ(written->zeroed.size(), 1u);
    absl::StatusOr<ImageRef> opened = OpenImageFile(path, {.parent = image});
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ((*opened)->parent(), image);
    EXPECT_EQ(BytesOf(**opened), held);
    const std::string merged_path = testing::TempDir() + "/merged.ftimg";
    absl::StatusOr<ImageFileInfo> merged =
        MergeImageFile(path, merged_path, {.parent = image});
    ASSERT_TRUE(merged.ok()) << merged.status();
    absl::StatusOr<ImageRef> alone =
        OpenImageFile(merged_path, {.verify = OpenImageOptions::Verify::kAll});
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_EQ((*alone)->parent(), nullptr);
    EXPECT_EQ(BytesOf(**alone), held);
  }
}

TEST_P(SnapshotTest, ADeltaOfADelta) {
  const ImageRef first = PatternImage("first", 10);
  Memory memory = MustAcquire(first, 16);
  Store(memory, 0, 1);
  ImageRef second = memory.SnapshotDelta("second").value();
  memory = MustAcquire(second, 16);
  Store(memory, kPageBytes, 2);
  ImageRef third = memory.SnapshotDelta("third").value();
  EXPECT_EQ(third->parent(), second);
  std::vector<uint8_t> expected = InitialBytes(first, 16 * kPageBytes);
  expected[0] = 1;
  expected[kPageBytes] = 2;
  EXPECT_EQ(BytesOf(*third), expected);
  EXPECT_EQ(FirstDifference(MustAcquire(third, 16), expected), std::nullopt);
}

TEST_P(SnapshotTest, AMemoryWithoutAnImageGivesAnImageOfItsOwn) {
  Memory memory = MustAcquire(nullptr, 8);
  Store(memory, 3 * kPageBytes, 1);
  ImageRef image = memory.SnapshotDelta("alone").value();
  EXPECT_EQ(image->parent(), nullptr);
  EXPECT_EQ(image->stored_pages(), 1u);
}

// Each writer counts upwards in words that are on pages of their own: first the
// one with the lowest address, then the others, so that at any moment the words
// are n+1, ..., n+1, n, ..., n. A snapshot in which a later word is ahead of an
// earlier one has a write without the one before it.
TEST_P(SnapshotTest, WritersThatGoOnAreInItOrNotInTheOrderInWhichTheyWrote) {
  constexpr int kWriters = 2;
  constexpr int kWords = 12;
  constexpr int kSnapshots = 40;
  const ImageRef image = PatternImage("raced", 64);
  Memory memory = MustAcquire(image, 120);
  // Half of them in the image, half behind it; not in ascending order.
  const auto word = [&](int writer, int i) {
    const uint64_t page =
        (static_cast<uint64_t>(i) * 37 + writer * 18 + 1) % 120;
    return reinterpret_cast<std::atomic<uint64_t>*>(
        memory.base() + page * kPageBytes + 64 + 8 * writer);
  };
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> rounds[kWriters] = {};
  std::vector<std::thread> threads;
  for (int writer = 0; writer < kWriters; ++writer) {
    threads.emplace_back([&, writer] {
      ASSERT_TRUE(EnsureAlternateStack().ok());
      for (uint64_t n = 1; !stop.load(); ++n) {
        for (int i = 0; i < kWords; ++i) {
          word(writer, i)->store(n, std::memory_order_relaxed);
        }
        rounds[writer].store(n);
      }
    });
  }
  // Reads go on meanwhile, and the memory grows now and then.
  threads.emplace_back([&] {
    ASSERT_TRUE(EnsureAlternateStack().ok());
    for (uint64_t i = 0; !stop.load(); ++i) {
      Load(memory, i % 100 * kPageBytes + 2000);
      if (i % 50 == 0 && memory.size_bytes() < kMaxPages * kPageBytes) {
        ASSERT_TRUE(memory.GrowBy(kPageBytes).ok());
      }
      std::this_thread::yield();
    }
  });
  while (rounds[0].load() == 0 || rounds[1].load() == 0) {
    std::this_thread::yield();
  }

  uint64_t last[kWriters] = {};
  for (int i = 0; i < kSnapshots; ++i) {
    uint64_t before[kWriters];
    for (int w = 0; w < kWriters; ++w) before[w] = rounds[w].load();
    absl::StatusOr<ImageRef> snapshot =
        i % 2 == 0 ? memory.Snapshot("raced") : memory.SnapshotDelta("raced");
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    for (int w = 0; w < kWriters; ++w) {
      uint64_t earlier = 0;
      for (int j = 0; j < kWords; ++j) {
        uint64_t value = 0;
        ASSERT_TRUE(
            (*snapshot)
                ->Read(reinterpret_cast<std::byte*>(word(w, j)) - memory.base(),
                       std::as_writable_bytes(std::span(&value, 1)))
                .ok());
        if (j == 0) {
          earlier = value;
          // Everything written before the call is there, and no value goes
          // back.
          EXPECT_GE(value, before[w]);
          EXPECT_GE(value, last[w]);
          last[w] = value;
        }
        ASSERT_TRUE(value == earlier || value + 1 == earlier)
            << "word " << j << " is " << value << " after " << earlier;
        earlier = value;
      }
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();

  // The snapshot lost nothing, neither for this lease nor for the next one.
  for (int w = 0; w < kWriters; ++w) {
    EXPECT_EQ(word(w, 0)->load(), rounds[w].load());
    EXPECT_EQ(word(w, kWords - 1)->load(), rounds[w].load());
  }
  ASSERT_TRUE(memory.Release().ok());
  for (int i = 0; i < 4; ++i) {
    Memory next = MustAcquire(image, 120);
    EXPECT_EQ(FirstDifference(next, InitialBytes(image, 120 * kPageBytes)),
              std::nullopt);
  }
}

TEST_P(SnapshotTest, TwoSnapshotsAtOnce) {
  const ImageRef image = PatternImage("two", 16);
  Memory memory = MustAcquire(image, 16);
  Store(memory, 5, 5);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 20; ++j) {
        absl::StatusOr<ImageRef> snapshot = memory.Snapshot("one of two");
        ASSERT_TRUE(snapshot.ok()) << snapshot.status();
        EXPECT_EQ((*snapshot)->PageBytes(PageIndex(0))[5], std::byte{5});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Store(memory, 6, 6);
}

TEST_P(SnapshotTest, BoundsAreTheSameAfterwards) {
  Memory memory = MustAcquire(PatternImage("bounds", 4), 8);
  Store(memory, 0, 1);
  ASSERT_TRUE(memory.Snapshot("x").ok());
  for (uint64_t offset : {8 * kPageBytes, 100 * kPageBytes}) {
    std::optional<TrapInfo> trap = TrapOf([&] { Store(memory, offset, 1); });
    ASSERT_TRUE(trap.has_value());
    EXPECT_EQ(trap->offset_bytes, static_cast<int64_t>(offset));
    trap = TrapOf([&] { Load(memory, offset); });
    ASSERT_TRUE(trap.has_value());
  }
  Store(memory, 7 * kPageBytes, 1);
}

int CountMappings() {
  std::ifstream maps("/proc/self/maps");
  int lines = 0;
  for (std::string line; std::getline(maps, line);) ++lines;
  return lines;
}

TEST_P(SnapshotTest, AsManyMappingsAreThereAfterwards) {
  std::vector<Memory> memories;
  const ImageRef image = PatternImage("mappings", 4);
  for (int i = 0; i < 4; ++i) {
    memories.push_back(MustAcquire(image, 8 + i));
    for (uint64_t page = 0; page < 8; page += 2) {
      Store(memories.back(), page * kPageBytes, 1);
    }
  }
  ASSERT_TRUE(memories[0].Snapshot("x").ok());
  const int before = CountMappings();
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(memories[i % 4].Snapshot("x").ok());
  }
  EXPECT_LE(CountMappings(), before + 1);
}

// The VmFlags line of the mapping that begins at `start`.
std::string FlagsOfMapping(uintptr_t start) {
  std::ifstream smaps("/proc/self/smaps");
  bool wanted = false;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    if (sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      wanted = begin <= start && start < end;
    } else if (wanted && line.starts_with("VmFlags:")) {
      return line;
    }
  }
  return "none";
}

// The copies are kept from the same readers as the memory.
TEST_P(SnapshotTest, CopiesAreInNoChildAndNoCoreDump) {
  Memory memory = MustAcquire(PatternImage("copies", 4), 8);
  Store(memory, 0, 1);
  std::vector<std::string> flags;
  kernel_.Hook(FakeKernel::Op::kMunmap, [&](const FakeKernel::Call& call) {
    if (call.bytes == 8 * kPageBytes) {
      flags.push_back(FlagsOfMapping(call.start));
    }
  });
  ASSERT_TRUE(memory.Snapshot("x").ok());
  kernel_.Hook(FakeKernel::Op::kMunmap, {});
  ASSERT_EQ(flags.size(), 1u);
  EXPECT_THAT(flags[0], HasSubstr(" dc "));  // MADV_DONTFORK
  EXPECT_THAT(flags[0], HasSubstr(" dd "));  // MADV_DONTDUMP
}

TEST_P(SnapshotTest, ARefusedPropertyOfTheCopiesIsNamed) {
  Memory memory = MustAcquire(PatternImage("refused", 4), 8);
  Store(memory, 0, 1);
  kernel_.Fail(FakeKernel::Op::kMadvise, 1, CallResult{0, ENOMEM});
  EXPECT_THAT(
      memory.Snapshot("x").status().ToString(),
      HasSubstr("RESOURCE_EXHAUSTED: MADV_DONTFORK of 32768 bytes for a "
                "snapshot (mostly untouched; RLIMIT_AS and overcommit count "
                "it); out of memory: this process has "));
  ASSERT_TRUE(memory.Snapshot("x").ok());
}

TEST_P(SnapshotTest, AMemoryThatCannotBeMadeReadOnlyIsLeftAsItWas) {
  Memory memory = MustAcquire(PatternImage("refused", 4), 8);
  Store(memory, 0, 1);
  // The first call is that for the room for the copies.
  kernel_.Fail(FakeKernel::Op::kMprotect, 2, CallResult{0, ENOMEM});
  const absl::Status refused = memory.Snapshot("x").status();
  EXPECT_THAT(refused.ToString(), HasSubstr("mprotect"));
  Store(memory, 0, 2);
  ASSERT_TRUE(memory.Snapshot("x").ok());
  ASSERT_TRUE(memory.Release().ok());
}

TEST_P(SnapshotTest, AMemoryThatStaysReadOnlyIsMappedAnewForTheNextLease) {
  Memory memory = MustAcquire(PatternImage("stuck", 4), 8);
  Store(memory, 0, 1);
  kernel_.Fail(FakeKernel::Op::kMprotect, 3, CallResult{0, ENOMEM});
  const absl::Status stuck = memory.Snapshot("x").status();
  EXPECT_THAT(stuck.ToString(), HasSubstr("mprotect"));
  EXPECT_TRUE(absl::IsFailedPrecondition(memory.Snapshot("x").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(memory.Grow(9 * kPageBytes)));
  EXPECT_TRUE(absl::IsFailedPrecondition(memory.Reset()));
  EXPECT_EQ(memory.Release(), absl::OkStatus());
  EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
  // Takes every slot, so that this one is among them.
  const ImageRef image = PatternImage("unstuck", 4);
  std::vector<Memory> memories;
  for (uint32_t i = 0; i < service_->Stats().slots; ++i) {
    memories.push_back(MustAcquire(image, 8));
    EXPECT_EQ(FirstDifference(memories[i], InitialBytes(image, 8 * kPageBytes)),
              std::nullopt);
    Store(memories[i], 0, 2);
    Store(memories[i], 7 * kPageBytes, 2);
  }
}

}  // namespace
}  // namespace firsttouch
