#include "firsttouch/uffd/pagemap.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/unique_fd.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Op = FakeKernel::Op;
constexpr size_t kPage = 4096;

class PagemapTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<Pagemap> pagemap = Pagemap::Open(kernel_);
    if (!pagemap.ok()) GTEST_SKIP() << pagemap.status();
    pagemap_ = std::make_unique<Pagemap>(*std::move(pagemap));
  }

  // Has WP_ASYNC note the writes to the memory; false (and skip_) where there
  // is none.
  bool Track(const ScratchMemory& memory) {
    absl::StatusOr<Uffd> uffd =
        Uffd::Open(kernel_, {.required_features = kUffdFeatureWpAsync |
                                                  kUffdFeaturePagefaultFlagWp});
    if (!uffd.ok()) {
      skip_ = uffd.status().ToString();
      return false;
    }
    uffd_ = std::make_unique<Uffd>(*std::move(uffd));
    EXPECT_TRUE(uffd_
                    ->Register(memory.address(), memory.bytes(),
                               kUffdRegisterWp, kUffdIoctlWriteProtect)
                    .ok());
    return true;
  }

  FakeKernel kernel_;
  std::unique_ptr<Pagemap> pagemap_;
  std::unique_ptr<Uffd> uffd_;
  std::string skip_;
};

TEST_F(PagemapTest, EverySecondPageOf4MiBThroughASmallBuffer) {
  ScratchMemory memory(4 << 20);
  const uintptr_t start = memory.address();
  const uintptr_t end = start + memory.bytes();
  std::memset(memory.data(), 1, memory.bytes());
  if (!Track(memory)) GTEST_SKIP() << skip_;
  PageRegion buffer[8];
  const auto ignore = [](const PageRegion&) { return true; };
  ASSERT_TRUE(ScanPages(kernel_, pagemap_->fd(),
                        ScanRequest::WrittenAndProtect(start, end), buffer, 8,
                        ignore)
                  .ok());
  for (size_t page = 0; page < 1024; page += 2) memory.data()[page * kPage] = 2;

  std::vector<size_t> dirty;
  ScanResult scan = ScanPages(
      kernel_, pagemap_->fd(), ScanRequest::WrittenAndProtect(start, end),
      buffer, 8, [&](const PageRegion& region) {
        EXPECT_EQ(region.categories, kPageIsWritten);
        for (uintptr_t at = region.start; at < region.end; at += kPage) {
          dirty.push_back((at - start) / kPage);
        }
        return true;
      });
  EXPECT_TRUE(scan.ok()) << scan.error;
  EXPECT_EQ(scan.scanned_to, end);
  EXPECT_EQ(scan.pages, 512u);
  EXPECT_EQ(scan.regions, 512u);
  EXPECT_GE(scan.calls, 512u / 8);
  ASSERT_EQ(dirty.size(), 512u);
  for (size_t i = 0; i < 512; ++i) ASSERT_EQ(dirty[i], 2 * i);

  // The pages were protected again in the same step: none is written now.
  scan = ScanPages(kernel_, pagemap_->fd(), ScanRequest::Written(start, end),
                   buffer, 8, ignore);
  EXPECT_TRUE(scan.ok());
  EXPECT_EQ(scan.pages, 0u);
  EXPECT_EQ(scan.calls, 1u);
}

TEST_F(PagemapTest, NoRegionIsReportedTwiceThroughALargeBuffer) {
  constexpr size_t kPages = 4096;
  ScratchMemory memory(kPages * kPage);
  for (size_t page = 0; page < kPages; page += 2) {
    memory.data()[page * kPage] = 1;
  }
  std::vector<PageRegion> buffer(kPages);
  uintptr_t last_end = 0;
  const ScanResult scan =
      ScanPages(kernel_, pagemap_->fd(),
                ScanRequest::Resident(memory.address(),
                                      memory.address() + memory.bytes()),
                buffer.data(), buffer.size(), [&](const PageRegion& region) {
                  EXPECT_GE(region.start, last_end);
                  last_end = region.end;
                  return true;
                });
  EXPECT_TRUE(scan.ok()) << scan.error;
  EXPECT_EQ(scan.pages, kPages / 2);
}

TEST_F(PagemapTest, PagesNobodyTouchedAreNotWritten) {
  ScratchMemory memory(4 << 20);
  if (!Track(memory)) GTEST_SKIP() << skip_;
  memory.data()[5 * kPage] = 1;  // the page table now exists, 1,023 holes in it
  std::vector<uintptr_t> found;
  PageRegion buffer[4];
  const ScanResult scan = ScanPages(
      kernel_, pagemap_->fd(),
      ScanRequest::Written(memory.address(), memory.address() + memory.bytes()),
      buffer, 4, [&](const PageRegion& region) {
        found.push_back(region.start - memory.address());
        return true;
      });
  EXPECT_TRUE(scan.ok());
  EXPECT_EQ(scan.pages, 1u);
  EXPECT_EQ(found, std::vector<uintptr_t>{5 * kPage});
}

TEST_F(PagemapTest, PrivateCopiesAreThePagesThatAreNoLongerTheFiles) {
  UniqueFd file(memfd_create("pagemap", MFD_CLOEXEC));
  ASSERT_TRUE(file);
  ASSERT_EQ(ftruncate(file.get(), 8 * kPage), 0);
  void* mapped = mmap(nullptr, 8 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE,
                      file.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  char* bytes = static_cast<char*>(mapped);
  for (size_t page = 0; page < 8; ++page) {
    volatile char read = bytes[page * kPage];
    (void)read;
  }
  bytes[3 * kPage] = 1;
  bytes[4 * kPage] = 1;
  const uintptr_t start = reinterpret_cast<uintptr_t>(mapped);
  std::vector<std::pair<uintptr_t, uintptr_t>> found;
  PageRegion buffer[4];
  const ScanResult scan =
      ScanPages(kernel_, pagemap_->fd(),
                ScanRequest::PrivateCopies(start, start + 8 * kPage), buffer, 4,
                [&](const PageRegion& region) {
                  found.push_back({region.start - start, region.end - start});
                  EXPECT_EQ(region.categories, kPageIsPresent);
                  return true;
                });
  EXPECT_TRUE(scan.ok()) << scan.error;
  EXPECT_EQ(scan.pages, 2u);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].first, 3 * kPage);
  EXPECT_EQ(found[0].second, 5 * kPage);
  munmap(mapped, 8 * kPage);
}

TEST_F(PagemapTest, TheCallbackEndsTheScan) {
  ScratchMemory memory(16 * kPage);
  memory.data()[1 * kPage] = 1;
  memory.data()[3 * kPage] = 1;
  memory.data()[5 * kPage] = 1;
  PageRegion buffer[4];
  int seen = 0;
  const ScanResult scan =
      ScanPages(kernel_, pagemap_->fd(),
                ScanRequest::Resident(memory.address(),
                                      memory.address() + memory.bytes()),
                buffer, 4, [&](const PageRegion&) { return ++seen < 2; });
  EXPECT_TRUE(scan.ok());
  EXPECT_EQ(seen, 2);
  EXPECT_EQ(scan.regions, 2u);
  EXPECT_EQ(scan.scanned_to, memory.address() + 4 * kPage);
}

TEST_F(PagemapTest, ProtectingWhatIsNotTrackedIsAnError) {
  ScratchMemory memory(4 * kPage);
  memory.data()[0] = 1;
  PageRegion buffer[4];
  const ScanResult scan =
      ScanPages(kernel_, pagemap_->fd(),
                ScanRequest::WrittenAndProtect(
                    memory.address(), memory.address() + memory.bytes()),
                buffer, 4, [](const PageRegion&) { return true; });
  EXPECT_EQ(scan.error, EPERM);
}

TEST_F(PagemapTest, SillyRequestsEnd) {
  PageRegion buffer[1];
  const auto none = [](const PageRegion&) { return true; };
  EXPECT_EQ(ScanPages(kernel_, pagemap_->fd(),
                      ScanRequest::Resident(0x1000, 0x2000), buffer, 0, none)
                .error,
            EINVAL);
  EXPECT_EQ(ScanPages(kernel_, pagemap_->fd(),
                      ScanRequest::Resident(0x2000, 0x1000), buffer, 1, none)
                .error,
            EINVAL);
  const ScanResult empty =
      ScanPages(kernel_, pagemap_->fd(), ScanRequest::Resident(0x1000, 0x1000),
                buffer, 1, none);
  EXPECT_TRUE(empty.ok());
  EXPECT_EQ(empty.calls, 0u);
}

TEST(ScanPages, AKernelThatDoesNotMoveOnEndsTheScan) {
  FakeKernel kernel(FakeKernel::kScripted);
  kernel.Fail(Op::kPagemapScan, FakeKernel::kEvery, CallResult{0, 0});
  PageRegion buffer[1];
  const ScanResult scan =
      ScanPages(kernel, 3, ScanRequest::Resident(0x1000, 0x2000), buffer, 1,
                [](const PageRegion&) { return true; });
  EXPECT_EQ(scan.error, EIO);
  EXPECT_EQ(scan.calls, 1u);
}

TEST(PagemapOpen, SaysWhichKernelIsNeeded) {
  FakeKernel kernel;
  kernel.Fail(Op::kPagemapScan, 1, CallResult{0, ENOTTY});
  const absl::StatusOr<Pagemap> pagemap = Pagemap::Open(kernel);
  EXPECT_EQ(pagemap.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(pagemap.status().message(),
            "this kernel has no PAGEMAP_SCAN (Linux 6.7): ENOTTY: "
            "Inappropriate ioctl for device (errno 25)");
  EXPECT_EQ(kernel.Calls(Op::kClose), 1u) << "the descriptor is closed";
}

TEST(PagemapOpen, SaysThatProcIsMissing) {
  FakeKernel kernel;
  kernel.Fail(Op::kOpenPagemap, 1, CallResult{0, ENOENT});
  EXPECT_EQ(Pagemap::Open(kernel).status().message(),
            "/proc/self/pagemap cannot be opened: ENOENT: No such file or "
            "directory (errno 2); is /proc mounted?");
}

}  // namespace
}  // namespace firsttouch
