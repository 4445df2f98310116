#include "firsttouch/init/page_source.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_digest.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_pieces.h"
#include "firsttouch/init/image_store.h"
#include "firsttouch/init/page_source_with_kernel.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using testing::HasSubstr;

using When = PageSourceOptions::When;

// Byte i of page p.
std::byte ByteAt(uint64_t page, uint64_t i) {
  return std::byte{static_cast<uint8_t>(1 + (page * 31 + i * 7) % 251)};
}

class TestSource : public PageSource {
 public:
  absl::Status Fetch(PageIndex first, std::span<std::byte> bytes) override {
    asked.fetch_add(1);
    pages_asked.fetch_add(bytes.size() / kPageBytes);
    if (before) {
      if (absl::Status status = before(first); !status.ok()) return status;
    }
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % kPageBytes, 0u);
    for (uint64_t i = 0; i < bytes.size(); ++i) {
      EXPECT_EQ(bytes[i], std::byte{0});
      bytes[i] = ByteAt(first.value() + i / kPageBytes, i % kPageBytes);
    }
    return absl::OkStatus();
  }

  std::function<absl::Status(PageIndex)> before;
  std::atomic<int> asked{0};
  std::atomic<uint64_t> pages_asked{0};
};

constexpr uint64_t kSize = 99 * kPageBytes + 100;

std::vector<std::byte> Expected(uint64_t size = kSize) {
  std::vector<std::byte> bytes(size);
  for (uint64_t i = 0; i < size; ++i) {
    bytes[i] = ByteAt(i / kPageBytes, i % kPageBytes);
  }
  return bytes;
}

ImageRef MakeOrDie(absl::StatusOr<ImageRef> image) {
  if (!image.ok()) {
    ADD_FAILURE() << image.status();
    std::abort();
  }
  return *std::move(image);
}

std::vector<std::byte> BytesOf(const Image& image) {
  std::vector<std::byte> bytes(image.size_bytes());
  const absl::Status read = image.Read(0, bytes);
  EXPECT_TRUE(read.ok()) << read;
  return bytes;
}

// Whether a thread of this process sleeps, as the kernel sees it.
bool Sleeps(int thread) {
  std::ifstream status("/proc/self/task/" + std::to_string(thread) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("State:")) {
      return line.find('S', 6) != std::string::npos;
    }
  }
  return false;
}

TEST(PageSourceTest, NothingIsAskedForBeforeSomebodyNeedsIt) {
  auto source = std::make_shared<TestSource>();
  const ImageRef image =
      MakeOrDie(ImageFromSource({.name = "lazy", .size_bytes = kSize}, source));
  EXPECT_EQ(source->asked, 0);
  EXPECT_EQ(image->stored_pages(), 100u);
  EXPECT_EQ(image->MemfdBytes(), 0u);

  // The chunk around it, once.
  ASSERT_EQ(image->FetchPages(PageIndex(20), PageCount(1)), 0);
  ASSERT_EQ(image->FetchPages(PageIndex(17), PageCount(10)), 0);
  EXPECT_EQ(source->asked, 1);
  EXPECT_EQ(source->pages_asked, 16u);
  EXPECT_EQ(image->MemfdBytes(), 16 * kPageBytes);
  EXPECT_EQ(image->PageBytes(PageIndex(20))[5], ByteAt(20, 5));
  EXPECT_EQ(source->asked, 1);

  EXPECT_EQ(BytesOf(*image), Expected());
  EXPECT_EQ(source->asked, 7);
  EXPECT_EQ(source->pages_asked, 100u);
  // What is behind the end is zero, whatever the source wrote there.
  EXPECT_EQ(image->PageBytes(PageIndex(99))[101], std::byte{0});
  EXPECT_GE(image->memfd(), 0);
  EXPECT_EQ(source->asked, 7);
}

TEST(PageSourceTest, AllAtOnceIsABuiltImage) {
  auto source = std::make_shared<TestSource>();
  const ImageRef image =
      MakeOrDie(ImageFromSource({.name = "built", .size_bytes = kSize}, source,
                                {.when = When::kAllAtOnce}));
  EXPECT_FALSE(image->is_file_backed());
  EXPECT_EQ(source.use_count(), 1);
  EXPECT_EQ(source->pages_asked, 100u);
  EXPECT_EQ(BytesOf(*image), Expected());
}

TEST(PageSourceTest, WhereThereIsNoUserfaultfdAllIsFetchedAtOnce) {
  FakeKernel kernel;
  kernel.Fail(FakeKernel::Op::kOpenUserfaultfdSyscall, FakeKernel::kEvery,
              CallResult{0, EPERM});
  kernel.Fail(FakeKernel::Op::kOpenUserfaultfdDevice, FakeKernel::kEvery,
              CallResult{0, ENOENT});
  auto source = std::make_shared<TestSource>();
  const ImageRef image =
      MakeOrDie(ImageFromSource({.name = "no uffd", .size_bytes = kSize},
                                source, {}, RealMemfdCalls(), kernel));
  EXPECT_FALSE(image->is_file_backed());
  EXPECT_EQ(BytesOf(*image), Expected());
}

TEST(PageSourceTest, PagesThatAreNotStoredAreNotAskedFor) {
  const std::vector<PageRun> stored = {{PageIndex(3), PageCount(2)},
                                       {PageIndex(40), PageCount(1)}};
  for (const When when : {When::kOnDemand, When::kAllAtOnce}) {
    auto source = std::make_shared<TestSource>();
    const ImageRef image = MakeOrDie(
        ImageFromSource({.name = "sparse", .size_bytes = kSize}, source,
                        {.when = when, .chunk_pages = 1, .stored = stored}));
    std::vector<std::byte> expected(kSize);
    const std::vector<std::byte> full = Expected();
    for (uint64_t page : {3, 4, 40}) {
      memcpy(expected.data() + page * kPageBytes,
             full.data() + page * kPageBytes, kPageBytes);
    }
    EXPECT_EQ(BytesOf(*image), expected);
    EXPECT_EQ(source->pages_asked, 3u);
    EXPECT_EQ(image->stored_pages(), 3u);
  }
}

TEST(PageSourceTest, ManyWhoNeedAChunkAskOnce) {
  auto source = std::make_shared<TestSource>();
  absl::Notification go;
  source->before = [&](PageIndex) {
    go.WaitForNotification();
    return absl::OkStatus();
  };
  const ImageRef image =
      MakeOrDie(ImageFromSource({.name = "many", .size_bytes = kSize}, source));
  std::atomic<int> done{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      EXPECT_EQ(image->FetchPages(PageIndex(i), PageCount(1)), 0);
      EXPECT_EQ(image->PageBytes(PageIndex(i))[9], ByteAt(i, 9));
      ++done;
    });
  }
  while (source->asked == 0) std::this_thread::yield();
  EXPECT_EQ(done, 0);
  go.Notify();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(source->asked, 1);
}

TEST(PageSourceTest, AFailureReachesAllWhoWaitAndTheNextOneTriesAnew) {
  auto source = std::make_shared<TestSource>();
  absl::Notification go;
  std::atomic<bool> fails{true};
  source->before = [&](PageIndex) -> absl::Status {
    go.WaitForNotification();
    if (fails.load()) return absl::DeadlineExceededError("too slow");
    return absl::OkStatus();
  };
  const ImageRef image = MakeOrDie(
      ImageFromSource({.name = "failing", .size_bytes = kSize}, source));
  std::vector<std::thread> threads;
  std::atomic<int> started{0};
  std::atomic<int> failed{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      ++started;
      failed += image->FetchPages(PageIndex(2), PageCount(1)) == ETIMEDOUT;
    });
  }
  // All of them wait for the first attempt, or come later and for another one
  // that fails too.
  while (started < 8 || source->asked == 0) std::this_thread::yield();
  go.Notify();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 8);
  EXPECT_EQ(image->MemfdBytes(), 0u);

  std::byte into[10];
  const absl::Status read = image->Read(0, into);
  EXPECT_THAT(read.ToString(), HasSubstr("image 'failing'"));
  fails = false;
  EXPECT_EQ(image->FetchPages(PageIndex(2), PageCount(1)), 0);
  EXPECT_EQ(BytesOf(*image), Expected());
}

TEST(PageSourceTest, AFailureWhileAllIsFetchedNamesImageAndPage) {
  auto source = std::make_shared<TestSource>();
  source->before = [](PageIndex) { return absl::NotFoundError("gone"); };
  const absl::Status status =
      ImageFromSource({.name = "at once", .size_bytes = kSize}, source,
                      {.when = When::kAllAtOnce})
          .status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_EQ(status.message(),
            "image 'at once': its source, for 100 pages from page 0 on: gone");
}

TEST(PageSourceTest, WhatIsWaitedForGoesBeforeWhatIsWantedEarly) {
  auto source = std::make_shared<TestSource>();
  std::vector<uint64_t> order;  // One thread writes to it.
  absl::Notification first_is_under_way;
  absl::Notification go;
  source->before = [&](PageIndex first) {
    order.push_back(first.value() / 16);
    if (order.size() == 1) {
      first_is_under_way.Notify();
      go.WaitForNotification();
    }
    return absl::OkStatus();
  };
  const ImageRef image = MakeOrDie(
      ImageFromSource({.name = "order", .size_bytes = kSize}, source));
  image->FetchEarly(PageIndex(0), PageCount(64));  // Chunks 0 to 3.
  first_is_under_way.WaitForNotification();
  std::atomic<int> waiter{0};
  std::thread waits([&] {
    waiter = static_cast<int>(syscall(SYS_gettid));
    EXPECT_EQ(image->FetchPages(PageIndex(80), PageCount(1)), 0);
  });
  while (waiter == 0 || !Sleeps(waiter)) std::this_thread::yield();
  go.Notify();
  waits.join();
  EXPECT_EQ(image->FetchPages(PageIndex(0), PageCount(64)), 0);
  EXPECT_EQ(order.size(), 5u);
  EXPECT_EQ(order[0], 0u);
  EXPECT_EQ(order[1], 5u);
}

TEST(PageSourceTest, FilesStoresAndPiecesOfItAreWhole) {
  const auto make = [] {
    return MakeOrDie(ImageFromSource({.name = "whole", .size_bytes = kSize},
                                     std::make_shared<TestSource>(),
                                     {.threads = 3}));
  };
  const std::string path = testing::TempDir() + "/source.ftimg";
  absl::StatusOr<ImageFileInfo> written = WriteImageFile(*make(), path);
  ASSERT_TRUE(written.ok()) << written.status();
  const ImageRef opened = MakeOrDie(OpenImageFile(path));
  EXPECT_EQ(BytesOf(*opened), Expected());
  EXPECT_EQ(ContentDigest(*make()), ContentDigest(*opened));

  absl::StatusOr<std::unique_ptr<ImageStore>> store = ImageStore::Open({});
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(BytesOf(*MakeOrDie((*store)->Put("whole", *make()))), Expected());

  std::vector<std::byte> ones(kPageBytes, std::byte{1});
  const std::vector<PageData> pages = {{PageIndex(1), ones.data()}};
  std::vector<std::byte> expected = Expected();
  memcpy(expected.data() + kPageBytes, ones.data(), kPageBytes);
  const ImageOptions options = {.name = "changed", .size_bytes = kSize};
  EXPECT_EQ(BytesOf(*MakeOrDie(DeltaOf(options, make(), pages))), expected);
  const ImageRef base = make();
  EXPECT_EQ(BytesOf(*MakeOrDie(ImageWithPages(options, base.get(), pages))),
            expected);
  const Image::Mapping mapping = make()->PrivateMapping().value();
  EXPECT_GE(mapping.fd, 0);
}

TEST(PageSourceTest, WhoCopiesAnImageIsToldThatItsSourceFails) {
  auto source = std::make_shared<TestSource>();
  source->before = [](PageIndex) { return absl::UnavailableError("down"); };
  const ImageRef image =
      MakeOrDie(ImageFromSource({.name = "down", .size_bytes = kSize}, source));
  EXPECT_EQ(image->memfd(), -1);
  EXPECT_THAT(image->PrivateMapping().status().ToString(), HasSubstr("'down'"));
  const std::string path = testing::TempDir() + "/down.ftimg";
  EXPECT_THAT(WriteImageFile(*image, path).status().ToString(),
              HasSubstr("'down'"));
  EXPECT_NE(access(path.c_str(), F_OK), 0);
  absl::StatusOr<std::unique_ptr<ImageStore>> store = ImageStore::Open({});
  ASSERT_TRUE(store.ok());
  EXPECT_FALSE((*store)->Put("down", *image).ok());
  EXPECT_FALSE(DeltaOf({.name = "d", .size_bytes = kSize}, image, {}).ok());
  EXPECT_FALSE(
      ImageWithPages({.name = "d", .size_bytes = kSize}, image.get(), {}).ok());
}

TEST(PageSourceTest, AChildOfForkIsToldThatNobodyAnswers) {
  const ImageRef image =
      MakeOrDie(ImageFromSource({.name = "parent's", .size_bytes = kSize},
                                std::make_shared<TestSource>()));
  ASSERT_EQ(image->FetchPages(PageIndex(0), PageCount(1)), 0);
  const ChildResult child = RunInChild([&]() -> std::string {
    // Neither what is missing, nor what is there in the parent.
    for (const uint64_t page : {50, 0}) {
      const int error = image->FetchPages(PageIndex(page), PageCount(1));
      if (error != ECHILD) return "FetchPages gives " + std::to_string(error);
      if (image->IsFetched(PageIndex(page))) return "is said to be fetched";
    }
    std::byte byte;
    const absl::Status read = image->Read(0, {&byte, 1});
    if (read.ok()) return "Read succeeds";
    image->FetchEarly(PageIndex(0), PageCount(100));
    const absl::StatusOr<int> memfd = image->OnDemandMemfd();
    return memfd.ok() ? "has a memfd" : memfd.status().ToString();
  });
  EXPECT_EQ(child.output,
            "FAILED_PRECONDITION: image 'parent\'s' has a PageSource, whose "
            "threads are in the process that made the image; this is a child "
            "of fork(2): make an image of its own in the child");
  EXPECT_EQ(BytesOf(*image), Expected());
}

// The child has a thread where the source's was, and memory where the view was.
TEST(PageSourceTest, AChildOfForkDropsItAndKeepsWhatIsItsOwn) {
  ImageRef image =
      MakeOrDie(ImageFromSource({.name = "parent's", .size_bytes = kSize},
                                std::make_shared<TestSource>()));
  ASSERT_EQ(image->FetchPages(PageIndex(0), PageCount(1)), 0);
  const ChildResult child = RunInChild([&]() -> std::string {
    const uint64_t bytes = image->pages().bytes();
    void* const view = const_cast<std::byte*>(image->data());
    void* const own =
        mmap(view, bytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (own != view) return "the view is there in the child";
    std::memset(own, 42, bytes);
    absl::Notification done;
    pthread_t thread;
    const auto wait = [](void* until) -> void* {
      static_cast<absl::Notification*>(until)->WaitForNotification();
      return nullptr;
    };
    if (pthread_create(&thread, nullptr, wait, &done) != 0) return "no thread";
    image = nullptr;
    if (mincore(own, bytes, std::vector<unsigned char>(100).data()) != 0) {
      return "the child's memory was unmapped";
    }
    if (static_cast<char*>(own)[bytes - 1] != 42) return "other memory";
    done.Notify();
    const int error = pthread_join(thread, nullptr);
    return error == 0 ? "kept" : "pthread_join gives " + std::to_string(error);
  });
  EXPECT_EQ(child.output, "kept");
  EXPECT_EQ(child.exit_code, 0);
  EXPECT_EQ(BytesOf(*image), Expected());
}

TEST(PageSourceTest, OptionsThatAreNotRight) {
  const auto error = [](std::shared_ptr<PageSource> source,
                        const PageSourceOptions& options,
                        uint64_t size = kSize) {
    return std::string(ImageFromSource({.name = "bad", .size_bytes = size},
                                       std::move(source), options)
                           .status()
                           .message());
  };
  auto source = std::make_shared<TestSource>();
  EXPECT_EQ(error(nullptr, {}), "image 'bad': the source is null");
  EXPECT_EQ(error(source, {.chunk_pages = 0}),
            "image 'bad': chunk_pages 0 is not in 1 to 262144");
  EXPECT_EQ(error(source, {.threads = 0}),
            "image 'bad': threads 0 is not in 1 to 64");
  EXPECT_EQ(error(source, {.threads = 65}),
            "image 'bad': threads 65 is not in 1 to 64");
  EXPECT_THAT(error(source, {}, kMaxImageBytes + 1),
              HasSubstr("exceeds the limit of"));
  const std::vector<PageRun> past = {{PageIndex(99), PageCount(2)}};
  EXPECT_EQ(error(source, {.stored = past}),
            "image 'bad': stored pages 99 + 2 exceed the image's 100 pages");
  EXPECT_TRUE(ImageFromSource({.name = "empty", .size_bytes = 0}, source).ok());
}

}  // namespace
}  // namespace firsttouch
