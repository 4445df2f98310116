// Memories whose image has a PageSource: a slow one, or one that fails.

#include <errno.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/service/trap.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;

constexpr uint64_t kImagePages = 64;
constexpr uint64_t kMemoryBytes = 80 * kPageBytes;

uint8_t ByteAt(uint64_t page, uint64_t i) {
  return static_cast<uint8_t>(1 + (page * 31 + i * 7) % 251);
}

class TestSource : public PageSource {
 public:
  absl::Status Fetch(PageIndex first, std::span<std::byte> bytes) override {
    asked.fetch_add(1);
    if (hold != nullptr) hold->WaitForNotification();
    if (failing.load()) return absl::UnavailableError("the source is down");
    for (uint64_t i = 0; i < bytes.size(); ++i) {
      bytes[i] =
          std::byte{ByteAt(first.value() + i / kPageBytes, i % kPageBytes)};
    }
    return absl::OkStatus();
  }

  std::atomic<int> asked{0};
  std::atomic<bool> failing{false};
  absl::Notification* hold = nullptr;
};

class SourceFaultsTest : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (const std::string missing = MissingFor(GetParam()); !missing.empty()) {
      GTEST_SKIP() << "this machine has no " << missing;
    }
    ServiceOptions options;
    options.name = "source";
    options.layout = {.instances = 1,
                      .max_memory_bytes = kMemoryBytes,
                      .guard_after_bytes = 1 << 20};
    options.supply = Asking(GetParam());
    options.trap_callback = JumpOutOfTrap;
    absl::StatusOr<std::unique_ptr<Service>> service = Service::Create(options);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
    MakeImage();
  }

  void MakeImage() {
    absl::StatusOr<ImageRef> image = ImageFromSource(
        {.name = "sourced", .size_bytes = kImagePages * kPageBytes}, source_);
    ASSERT_TRUE(image.ok()) << image.status();
    image_ = *std::move(image);
  }

  Memory MustAcquire() {
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = image_, .size_bytes = kMemoryBytes});
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : Memory();
  }

  // Expects that the next lease gets what the image says, and that all of the
  // pool's slots can be used.
  void ExpectCleanSlot() {
    Memory memory = MustAcquire();
    for (uint64_t page = 0; page < kMemoryBytes / kPageBytes; ++page) {
      for (uint64_t i : {uint64_t{0}, uint64_t{8}, kPageBytes - 1}) {
        ASSERT_EQ(Load(memory, page * kPageBytes + i),
                  page < kImagePages ? ByteAt(page, i) : 0)
            << "page " << page;
      }
    }
    EXPECT_EQ(service_->Stats().slots_quarantined, 0u);
  }

  std::shared_ptr<TestSource> source_ = std::make_shared<TestSource>();
  ImageRef image_;
  std::unique_ptr<Service> service_;
};

INSTANTIATE_TEST_SUITE_P(AllWays, SourceFaultsTest, AllWays(), WayName);

TEST_P(SourceFaultsTest, EachLeaseHasTheSourcesBytes) {
  for (int lease = 0; lease < 3; ++lease) {
    ExpectCleanSlot();
    Memory memory = MustAcquire();
    for (uint64_t page = lease; page < 80; page += 3) {
      Store(memory, page * kPageBytes + 8, 0xee);
      ASSERT_EQ(Load(memory, page * kPageBytes),
                page < kImagePages ? ByteAt(page, 0) : 0);
    }
  }
  ExpectCleanSlot();
  EXPECT_LE(source_->asked, 4);
}

TEST_P(SourceFaultsTest,
       ManyThreadsThatTouchAPageOfASlowSourceWaitForOneFetch) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "all pages are there at bind";
  absl::Notification go;
  source_->hold = &go;
  Memory memory = MustAcquire();
  std::atomic<int> done{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      ASSERT_TRUE(EnsureAlternateStack().ok());
      if (i == 7) {
        // The first touch is a write.
        Store(memory, 20 * kPageBytes + 16, 7);
      }
      EXPECT_EQ(Load(memory, 20 * kPageBytes + i), ByteAt(20, i));
      ++done;
    });
  }
  while (source_->asked == 0) std::this_thread::yield();
  EXPECT_EQ(done, 0);
  go.Notify();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(source_->asked, 1);
  EXPECT_EQ(Load(memory, 20 * kPageBytes + 16), 7);
  ASSERT_TRUE(memory.Release().ok());
  ExpectCleanSlot();
}

TEST_P(SourceFaultsTest, AFailureIsATrapInEveryThreadAndLeavesACleanSlot) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "all pages are there at bind";
  absl::Notification go;
  source_->hold = &go;
  source_->failing = true;
  Memory memory = MustAcquire();
  // This page does not come from the source.
  Store(memory, 70 * kPageBytes, 1);
  std::atomic<int> trapped{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      ASSERT_TRUE(EnsureAlternateStack().ok());
      const std::optional<TrapInfo> trap = TrapOf([&] {
        if (i % 2 == 0) {
          Load(memory, 20 * kPageBytes + i);
        } else {
          Store(memory, 20 * kPageBytes + i, 9);
        }
      });
      ASSERT_TRUE(trap.has_value());
      EXPECT_EQ(trap->error, EHOSTDOWN);
      EXPECT_EQ(trap->offset_bytes, static_cast<int64_t>(20 * kPageBytes + i));
      EXPECT_EQ(trap->size_bytes, kMemoryBytes);
      EXPECT_EQ(trap->access, i % 2 == 0 ? Access::kRead : Access::kWrite);
      ++trapped;
    });
  }
  while (source_->asked == 0) std::this_thread::yield();
  go.Notify();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(trapped, 8);
  EXPECT_EQ(service_->Stats().traps, 8u);
  EXPECT_THAT(memory.MakeReady(0, 10, Access::kRead).ToString(),
              HasSubstr("fetching the image's page"));
  // A touch out of bounds has no error.
  EXPECT_EQ(TrapOf([&] { Load(memory, kMemoryBytes); })->error, 0);

  // The same memory goes on once the source works again.
  source_->failing = false;
  EXPECT_EQ(Load(memory, 20 * kPageBytes), ByteAt(20, 0));
  Store(memory, 20 * kPageBytes, 1);
  ASSERT_TRUE(memory.Release().ok());
  ExpectCleanSlot();
}

TEST_P(SourceFaultsTest, ALeaseThatEndsAfterAFailureLeavesACleanSlot) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "all pages are there at bind";
  for (const bool write : {false, true}) {
    MakeImage();
    source_->failing = true;
    Memory memory = MustAcquire();
    Store(memory, 79 * kPageBytes, 1);
    const uint64_t offset = (write ? 30 : 50) * kPageBytes;
    const std::optional<TrapInfo> trap = TrapOf([&] {
      if (write) {
        Store(memory, offset, 1);
      } else {
        Load(memory, offset);
      }
    });
    ASSERT_TRUE(trap.has_value());
    ASSERT_TRUE(memory.Release().ok());
    source_->failing = false;
    ExpectCleanSlot();
  }
}

TEST_P(SourceFaultsTest, WhereAllIsNeededAtBindAFailureIsTheAcquires) {
  if (!GetParam().by_mappings()) GTEST_SKIP() << "pages come on demand";
  source_->failing = true;
  const absl::Status refused =
      service_->Acquire({.image = image_, .size_bytes = kMemoryBytes}).status();
  EXPECT_THAT(refused.ToString(), HasSubstr("image 'sourced': its source"));
  source_->failing = false;
  ExpectCleanSlot();
}

TEST_P(SourceFaultsTest, AnUnavailableSourceIsUnavailableAndNotUnknown) {
  source_->failing = true;
  absl::Status status;
  if (GetParam().by_mappings()) {
    status = service_->Acquire({.image = image_, .size_bytes = kMemoryBytes})
                 .status();
  } else {
    Memory memory = MustAcquire();
    status = memory.MakeReady(20 * kPageBytes, 1, Access::kRead);
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  source_->failing = false;
  ExpectCleanSlot();
}

TEST_P(SourceFaultsTest, ASnapshotAfterAWriteThatFailedIsAnErrorAndNoDeath) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "all pages are there at bind";
  source_->failing = true;
  Memory memory = MustAcquire();
  Store(memory, 70 * kPageBytes, 1);
  for (uint64_t page : {20, 63}) {
    const std::optional<TrapInfo> trap =
        TrapOf([&] { Store(memory, page * kPageBytes, 1); });
    ASSERT_TRUE(trap.has_value());
    EXPECT_EQ(trap->error, EHOSTDOWN);
  }
  for (const absl::Status& refused : {memory.Snapshot("all").status(),
                                      memory.SnapshotDelta("delta").status()}) {
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
    EXPECT_THAT(refused.ToString(), HasSubstr("image 'sourced': its source"));
  }

  source_->failing = false;
  const absl::StatusOr<ImageRef> delta = memory.SnapshotDelta("delta");
  ASSERT_TRUE(delta.ok()) << delta.status();
  EXPECT_EQ((*delta)->PageBytes(PageIndex(70))[0], std::byte{1});
  EXPECT_EQ((*delta)->PageBytes(PageIndex(20))[0], std::byte{ByteAt(20, 0)});
  const absl::StatusOr<ImageRef> snapshot = memory.Snapshot("all");
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ((*snapshot)->PageBytes(PageIndex(20))[0], std::byte{ByteAt(20, 0)});
  EXPECT_EQ((*snapshot)->PageBytes(PageIndex(70))[0], std::byte{1});
  Store(memory, 20 * kPageBytes, 2);
  EXPECT_EQ(Load(memory, 20 * kPageBytes + 1), ByteAt(20, 1));
  ASSERT_TRUE(memory.Release().ok());
  ExpectCleanSlot();
}

TEST_P(SourceFaultsTest, NoWriterWaitsForASourceBecauseOfASnapshot) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "all pages are there at bind";
  absl::Notification go;
  source_->hold = &go;
  Memory memory = MustAcquire();
  Store(memory, 70 * kPageBytes, 1);
  std::thread writer([&] {
    ASSERT_TRUE(EnsureAlternateStack().ok());
    Store(memory, 20 * kPageBytes, 7);
  });
  while (source_->asked == 0) std::this_thread::yield();
  // The source has not answered yet.
  std::atomic<int> began{0};
  const auto take = [&](bool delta) {
    EXPECT_TRUE(EnsureAlternateStack().ok());
    began.fetch_add(1);
    const absl::StatusOr<ImageRef> image =
        delta ? memory.SnapshotDelta("delta") : memory.Snapshot("all");
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_EQ((*image)->PageBytes(PageIndex(70))[0], std::byte{1});
    EXPECT_EQ((*image)->PageBytes(PageIndex(20))[0], std::byte{ByteAt(20, 0)});
  };
  std::thread all(take, false);
  std::thread delta(take, true);
  while (began != 2) std::this_thread::yield();
  for (int i = 1; i < 2000; ++i) {
    Store(memory, 70 * kPageBytes + i, 2);  // Would hang.
    std::this_thread::yield();
  }
  go.Notify();
  writer.join();
  all.join();
  delta.join();
  EXPECT_EQ(Load(memory, 20 * kPageBytes), 7);
  ASSERT_TRUE(memory.Release().ok());
  ExpectCleanSlot();
}

TEST_P(SourceFaultsTest, ABindDoesNotWaitForTheWorkingSet) {
  if (GetParam().by_mappings()) GTEST_SKIP() << "all pages are there at bind";
  absl::Notification go;
  source_->hold = &go;
  image_->working_set().Replace(std::vector<uint64_t>{1u << 20},
                                std::vector<uint64_t>{1u << 20 | 1u << 3});
  Memory memory = MustAcquire();  // Would hang.
  Store(memory, 70 * kPageBytes, 1);
  go.Notify();
  EXPECT_EQ(Load(memory, 3 * kPageBytes), ByteAt(3, 0));
  EXPECT_EQ(Load(memory, 20 * kPageBytes), ByteAt(20, 0));
  EXPECT_EQ(source_->asked, 2);
}

}  // namespace
}  // namespace firsttouch
