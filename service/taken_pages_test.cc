// Pages, descriptors and files that are taken away while a lease uses them: the
// kernel unmaps clean pages (here by MADV_DONTNEED, which unmaps them as
// reclaim does), a stray close(2) closes a userfaultfd, a file is cut short.

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/descriptor_pin.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;
using testing::HasSubstr;

constexpr uint64_t kImagePages = 32;
constexpr uint64_t kPages = 40;

class TakenPagesTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    ServiceOptions& options = options_;
    options.name = "taken";
    options.layout = {.instances = 1,
                      .max_memory_bytes = 64 * kPageBytes,
                      .guard_after_bytes = 65536};
    options.supply = Asking(GetParam());
    options.trap_callback = JumpOutOfTrap;
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(options, kernel_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }

  Memory MustAcquire(const ImageRef& image) {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image, .size_bytes = kPages * kPageBytes});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  static void TakeAway(const Memory& memory, uint64_t page, uint64_t pages) {
    ASSERT_EQ(madvise(memory.base() + page * kPageBytes, pages * kPageBytes,
                      MADV_DONTNEED),
              0);
  }

  FakeKernel kernel_;
  ServiceOptions options_;
  std::unique_ptr<Service> service_;
};

INSTANTIATE_TEST_SUITE_P(AllWays, TakenPagesTest, AllWays(), WayName);

TEST_P(TakenPagesTest, MakeReadySuppliesWhatTheKernelHasUnmapped) {
  const ImageRef image = PatternImage("image", kImagePages, {5});
  const std::vector<uint8_t> initial = InitialBytes(image, kPages * kPageBytes);
  Memory memory = MustAcquire(image);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  for (const uint64_t page : {uint64_t{2}, uint64_t{5}, uint64_t{36}}) {
    const uint64_t at = page * kPageBytes;
    Load(memory, at);
    TakeAway(memory, page, 1);
    ASSERT_EQ(memory.MakeReady(at, 100, Access::kRead), absl::OkStatus());
    ASSERT_EQ(write(ends[1], memory.base() + at, 100), 100) << strerror(errno);
    ASSERT_EQ(memory.MakeReady(at, 100, Access::kWrite), absl::OkStatus());
    TakeAway(memory, page, 1);
    ASSERT_EQ(memory.MakeReady(at, 100, Access::kWrite), absl::OkStatus());
    ASSERT_EQ(read(ends[0], memory.base() + at, 100), 100) << strerror(errno);
    EXPECT_EQ(memcmp(memory.base() + at, initial.data() + at, 100), 0);
  }
  close(ends[0]);
  close(ends[1]);
}

TEST_P(TakenPagesTest, AReleaseAndAResetRestoreWhatSomebodyTookAway) {
  const ImageRef image = PatternImage("image", kImagePages, {5});
  for (const bool reset : {false, true, false}) {
    Memory memory = MustAcquire(image);
    for (const uint64_t page : {2, 5, 6, 36}) {
      Store(memory, page * kPageBytes, 9);
    }
    TakeAway(memory, 2, 1);
    TakeAway(memory, 5, 1);
    TakeAway(memory, 36, 1);
    // The growth makes the release go through all pages.
    ASSERT_EQ(memory.Grow(50 * kPageBytes), absl::OkStatus());
    Store(memory, 45 * kPageBytes, 9);
    if (reset) {
      ASSERT_EQ(memory.Reset(), absl::OkStatus());
    } else {
      ASSERT_EQ(memory.Release(), absl::OkStatus());
      memory = MustAcquire(image);
    }
    ASSERT_EQ(FirstDifference(memory, InitialBytes(image, kPages * kPageBytes)),
              std::nullopt);
    EXPECT_TRUE(TrapOf([&] { Load(memory, 45 * kPageBytes); }).has_value());
  }
  EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
}

// A page that was taken away is supplied again as a release restores it, by a
// handler thread, which wakes the release before it has finished: with the
// pages behind, from the image of this lease.
TEST_P(TakenPagesTest, AReleaseWaitsForTheFillsOfItsRestore) {
  if (GetParam().by_mappings() ||
      GetParam().resolve != Resolve::kHandlerThread) {
    GTEST_SKIP() << "no other thread fills";
  }
  const ImageRef images[] = {PatternImage("one", kImagePages, {5}),
                             PatternImage("other", kImagePages, {7})};
  Memory memory = MustAcquire(images[0]);
  Store(memory, 2 * kPageBytes, 9);
  TakeAway(memory, 2, 1);
  std::atomic<bool> filling{false};
  std::atomic<bool> released{false};
  std::atomic<bool> released_meanwhile{false};
  const std::thread::id here = std::this_thread::get_id();
  const auto stay = [&](const FakeKernel::Call&) {
    if (std::this_thread::get_id() == here || filling.exchange(true)) return;
    for (int i = 0; i < 2000 && !released; ++i) sched_yield();
    released_meanwhile = released.load();
  };
  for (const Op op : {Op::kCopy, Op::kContinue}) kernel_.HookAfter(op, stay);
  ASSERT_EQ(memory.Release(), absl::OkStatus());
  released = true;
  for (const Op op : {Op::kCopy, Op::kContinue}) {
    kernel_.HookAfter(op, nullptr);
  }
  if (!filling) GTEST_SKIP() << "the page is dropped, not restored";
  EXPECT_FALSE(released_meanwhile);
  memory = MustAcquire(images[1]);
  EXPECT_EQ(
      FirstDifference(memory, InitialBytes(images[1], kPages * kPageBytes)),
      std::nullopt);
}

// The snapshot's thread looks for changed pages while another thread makes a
// page ready that was written to before.
TEST_P(TakenPagesTest, ASnapshotHasAWriteToAPageThatIsMadeReadyMeanwhile) {
  if (GetParam().by_mappings() || GetParam().resolve != Resolve::kInThread ||
      GetParam().tracking != Tracking::kSignal) {
    GTEST_SKIP() << "the guest's own thread fills, and signals track";
  }
  Memory memory = MustAcquire(nullptr);
  constexpr uint64_t kAt = 20 * kPageBytes;
  // The page is filled but not yet known to be present.
  std::atomic<bool> filled{false};
  std::atomic<bool> go_on{false};
  kernel_.HookAfter(Op::kZeroPage, [&](const FakeKernel::Call&) {
    if (filled.exchange(true)) return;
    while (!go_on) sched_yield();
  });
  std::thread reader([&] {
    ASSERT_TRUE(EnsureAlternateStack().ok());
    Load(memory, kAt);
  });
  while (!filled) sched_yield();
  Store(memory, kAt, 77);
  std::optional<std::thread> making_ready;
  kernel_.Hook(Op::kPagemapScan, [&](const FakeKernel::Call&) {
    if (making_ready.has_value()) return;
    const uint64_t before = kernel_.Calls(Op::kWriteProtect);
    making_ready.emplace([&] {
      EXPECT_EQ(memory.MakeReady(kAt, 1, Access::kWrite), absl::OkStatus());
    });
    while (kernel_.Calls(Op::kWriteProtect) == before) sched_yield();
  });
  const absl::StatusOr<ImageRef> snapshot = memory.Snapshot("snapshot");
  kernel_.Hook(Op::kPagemapScan, nullptr);
  go_on = true;
  reader.join();
  if (making_ready.has_value()) making_ready->join();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  if (!making_ready.has_value()) GTEST_SKIP() << "no PAGEMAP_SCAN here";
  EXPECT_EQ((*snapshot)->PageBytes(PageIndex(20))[0], std::byte{77});
}

// The userfaultfds among the descriptors of this process, in ascending order.
std::vector<int> Userfaultfds() {
  std::vector<int> found;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(entry.path(), gone) ==
        "anon_inode:[userfaultfd]") {
      found.push_back(std::stoi(entry.path().filename()));
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

class SevensSource : public PageSource {
 public:
  absl::Status Fetch(PageIndex, std::span<std::byte> bytes) override {
    memset(bytes.data(), 7, bytes.size());
    return absl::OkStatus();
  }
};

TEST_P(TakenPagesTest, ASourcesPageIsNeverZeroesAfterAStrayClose) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "all pages are there at bind";
  const std::vector<int> before = Userfaultfds();
  const ImageRef image =
      *ImageFromSource({.name = "sevens", .size_bytes = 64 * 1024},
                       std::make_shared<SevensSource>(), {.chunk_pages = 4});
  Memory memory = MustAcquire(image);
  EXPECT_EQ(Load(memory, 0), 7);
  for (const int fd : Userfaultfds()) {
    if (!std::binary_search(before.begin(), before.end(), fd)) close(fd);
  }
  for (const uint64_t page : {8, 12}) {
    const std::optional<TrapInfo> trap = TrapOf([&] {
      if (page == 8) {
        EXPECT_EQ(Load(memory, page * kPageBytes), 7);
      } else {
        Store(memory, page * kPageBytes, 1);
        EXPECT_EQ(Load(memory, page * kPageBytes + 1), 7);
      }
    });
    ASSERT_TRUE(trap.has_value());
    EXPECT_EQ(trap->error, EBADF);
  }
  EXPECT_EQ(Load(memory, kPageBytes), 7);
}

TEST_P(TakenPagesTest, NoWriteIsMissedAfterAStrayCloseOfTheAsyncTracker) {
  if (GetParam().tracking != Tracking::kAsync ||
      GetParam().resolve != Resolve::kInThread) {
    GTEST_SKIP() << "tracked by signals";
  }
  const std::vector<int> before = Userfaultfds();
  const ImageRef image = PatternImage("image", kImagePages);
  Memory memory = MustAcquire(image);
  ASSERT_EQ(memory.Release(), absl::OkStatus());
  memory = MustAcquire(image);
  ASSERT_EQ(before.size(), 2u);
  close(before[1]);
  for (int lease = 0; lease < 3; ++lease) {
    for (uint64_t page = lease; page < kImagePages; page += 3) {
      Store(memory, page * kPageBytes, 9);
    }
    ASSERT_EQ(memory.Release(), absl::OkStatus());
    memory = MustAcquire(image);
    ASSERT_EQ(FirstDifference(memory, InitialBytes(image, kPages * kPageBytes)),
              std::nullopt);
  }
}

// As after a stray close(2) that took every reference.
TEST_P(TakenPagesTest, AScanOfMemoryThatIsNoLongerTrackedIsAnError) {
  if (GetParam().tracking != Tracking::kAsync ||
      GetParam().resolve != Resolve::kInThread) {
    GTEST_SKIP() << "tracked by signals";
  }
  const std::vector<int> userfaultfds = Userfaultfds();
  const ImageRef image = PatternImage("image", kImagePages);
  Memory memory = MustAcquire(image);
  Store(memory, 0, 9);
  ASSERT_EQ(userfaultfds.size(), 2u);
  ASSERT_TRUE(RealKernel()
                  .Unregister(userfaultfds[1],
                              reinterpret_cast<uintptr_t>(memory.base()),
                              kImagePages * kPageBytes)
                  .ok());
  EXPECT_THAT(memory.Release().ToString(), HasSubstr("PAGEMAP_SCAN"));
  EXPECT_EQ(service_->Stats().slots_quarantined, 1u);
}

TEST_P(TakenPagesTest, AnImageFileThatIsCutTrapsWithTheReason) {
  const ImageRef whole = PatternImage("to be cut", kImagePages);
  const std::string path = testing::TempDir() + "/cut.ftimg";
  for (const bool write : {false, true}) {
    ASSERT_TRUE(WriteImageFile(*whole, path).ok());
    const ImageRef image = *OpenImageFile(path);
    std::ifstream file(path, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)),
                            std::istreambuf_iterator<char>());
    const uint64_t cut = bytes.size() / 2 / kPageBytes * kPageBytes;
    Memory memory = MustAcquire(image);
    ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(cut)), 0);
    int trapped = 0;
    for (uint64_t page = 0; page < kImagePages; ++page) {
      SCOPED_TRACE(page);
      const auto* const expected =
          reinterpret_cast<const char*>(whole->PageBytes(PageIndex(page)));
      const size_t position =
          bytes.find(std::string(expected, kPageBytes).c_str(), 0);
      ASSERT_NE(position, std::string::npos);
      const uint64_t at = page * kPageBytes;
      const std::optional<TrapInfo> trap = TrapOf([&] {
        if (write) Store(memory, at + 1, 9);
        EXPECT_EQ(Load(memory, at), static_cast<uint8_t>(expected[0]));
      });
      if (trap.has_value()) {
        ++trapped;
        EXPECT_EQ(trap->error, EFAULT);
        EXPECT_EQ(trap->offset_bytes,
                  static_cast<int64_t>(at + (write ? 1 : 0)));
      }
      // Pages before the cut are there, whatever their neighbours are.
      EXPECT_EQ(trap.has_value(), position >= cut);
    }
    EXPECT_GT(trapped, 0);
    EXPECT_LT(trapped, static_cast<int>(kImagePages));
    EXPECT_EQ(memory.Release(), absl::OkStatus());
  }
  unlink(path.c_str());
}

// Pages that were changed before the cut and that nothing can restore after it,
// in each operation that looks at their initial bytes.
TEST_P(TakenPagesTest, WhatReadsAnImageFileThatIsCutOutlivesIt) {
  enum class Then { kRelease, kReset, kSnapshot, kDelta, kCount };
  constexpr uint64_t kIntact = 0;
  constexpr uint64_t kCut = kImagePages - 2;
  constexpr int kOfDelta = 100;
  const ImageRef whole = PatternImage("to be cut", kImagePages);
  const std::vector<uint8_t> initial = InitialBytes(whole, kPages * kPageBytes);
  // A delta's pages are of two files: no mapping of one file has them all.
  const std::vector<std::byte> other(kPageBytes, std::byte{3});
  const ImageRef changed = *ImageWithPages(
      {.name = "to be cut", .size_bytes = whole->size_bytes()}, whole.get(),
      std::vector<PageData>{{PageIndex(1), other.data()}});
  const std::string path = testing::TempDir() + "/cut_before_release.ftimg";
  const std::string delta_path = testing::TempDir() + "/over_the_cut.ftimg";
  options_.layout.instances = 3;
  service_ = *CreateService(options_, kernel_);
  for (const Then then : {Then::kRelease, Then::kReset, Then::kSnapshot,
                          Then::kDelta, Then::kCount}) {
    for (const int leases_before : {0, 1, 8, 1 + kOfDelta}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(then) << " after "
                                      << leases_before << " leases");
      ASSERT_TRUE(WriteImageFile(*whole, path).ok());
      ImageRef image = *OpenImageFile(path);
      const bool of_delta = leases_before >= kOfDelta;
      if (of_delta) {
        ASSERT_TRUE(
            WriteImageFile(*changed, delta_path, {.parent = image}).ok());
        image = *OpenImageFile(delta_path, {.parent = image});
      }
      // Cutting a file takes changed pages out of its private mappings, too.
      const bool kernel_took_changes = GetParam().by_mappings() && !of_delta;
      Memory sound = MustAcquire(whole);
      Store(sound, kCut * kPageBytes, 5);
      Memory memory;
      for (int lease = 0; lease <= leases_before % kOfDelta; ++lease) {
        if (lease > 0) {
          ASSERT_EQ(memory.Release(), absl::OkStatus());
        }
        memory = MustAcquire(image);
        Store(memory, kIntact * kPageBytes, 9);
        Store(memory, kCut * kPageBytes + 1, 9);
      }
      ASSERT_EQ(truncate(path.c_str(),
                         static_cast<off_t>(std::filesystem::file_size(path) /
                                            2 / kPageBytes * kPageBytes)),
                0);
      switch (then) {
        case Then::kRelease:
          break;
        case Then::kReset: {
          ASSERT_EQ(memory.Reset(), absl::OkStatus());
          EXPECT_EQ(Load(memory, kIntact * kPageBytes), initial[0]);
          break;
        }
        case Then::kSnapshot:
        case Then::kDelta: {
          const absl::StatusOr<ImageRef> snapshot =
              then == Then::kDelta ? memory.SnapshotDelta("snapshot")
                                   : memory.Snapshot("snapshot");
          // The snapshot has all pages, or its error gives the reason.
          if (!snapshot.ok()) {
            EXPECT_EQ(then, Then::kSnapshot);
            EXPECT_EQ(snapshot.status().code(), absl::StatusCode::kDataLoss);
            EXPECT_THAT(
                snapshot.status().message(),
                HasSubstr("image 'snapshot': the base image 'to be cut' "
                          "cannot be read at offset "));
          } else if (!kernel_took_changes) {
            EXPECT_EQ((*snapshot)->PageBytes(PageIndex(kCut))[1], std::byte{9});
            EXPECT_EQ((*snapshot)->PageBytes(PageIndex(kCut))[2],
                      std::byte{initial[kCut * kPageBytes + 2]});
          }
          break;
        }
        case Then::kCount:
          // Neighbours that were copied along may have changed, or not.
          EXPECT_GE(memory.CountPages().changed, kernel_took_changes ? 1u : 2u);
          break;
      }
      ASSERT_EQ(memory.Release(), absl::OkStatus());
      // The next lease has what the image had, or traps with the reason.
      memory = MustAcquire(image);
      EXPECT_EQ(Load(memory, kIntact * kPageBytes), initial[0]);
      const std::optional<TrapInfo> trap = TrapOf([&] {
        EXPECT_EQ(Load(memory, kCut * kPageBytes + 1),
                  initial[kCut * kPageBytes + 1]);
      });
      EXPECT_EQ(trap.has_value() ? trap->error : EFAULT, EFAULT);
      ASSERT_EQ(memory.Release(), absl::OkStatus());
      // Other memories are as before.
      EXPECT_EQ(Load(sound, kCut * kPageBytes), 5);
      ASSERT_EQ(sound.Release(), absl::OkStatus());
      sound = MustAcquire(whole);
      EXPECT_EQ(FirstDifference(sound, initial), std::nullopt);
      EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
    }
  }
  unlink(path.c_str());
  unlink(delta_path.c_str());
}

TEST(ClosedDescriptorsDeathTest, NoPageIsZeroesAfterAllDescriptorsWereClosed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const bool sourced : {false, true}) {
    EXPECT_EXIT(
        {
          ImageRef image = PatternImage("image", 32);
          if (sourced) {
            image = *ImageFromSource(
                {.name = "sevens", .size_bytes = 32 * kPageBytes},
                std::make_shared<SevensSource>(), {.chunk_pages = 4});
          }
          absl::StatusOr<std::unique_ptr<Service>> service = Service::Create(
              {.name = "closed",
               .layout = {.instances = 1, .max_memory_bytes = 32 * kPageBytes},
               .supply = UserfaultfdOptions{.backing = Backing::kCopied}});
          absl::StatusOr<DescriptorPin> pin =
              absl::UnavailableError("no userfaultfd");
          if (service.ok()) {
            pin = DescriptorPin::Make(Userfaultfds().back());
          }
          if (!pin.ok() || !pin->outlives_all_descriptors()) {
            fprintf(stderr, "firsttouch: failed with errno 9: not tried\n");
            raise(SIGBUS);
          }
          Memory memory = *(*service)->Acquire(
              {.image = image, .size_bytes = 32 * kPageBytes});
          Load(memory, 0);
          syscall(SYS_close_range, 3, ~0u, 0);
          exit(Load(memory, 20 * kPageBytes) == 0 ? 1 : 2);
        },
        testing::KilledBySignal(SIGBUS), "firsttouch: .*failed with errno 9");
  }
}

}  // namespace
}  // namespace firsttouch
