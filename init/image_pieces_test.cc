#include "firsttouch/init/image_pieces.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;

constexpr PageCount kOne(1);

// A file of pages, page p of which is full of byte 1 + p.
class FileOfPages {
 public:
  explicit FileOfPages(uint64_t pages) {
    std::string path =
        (std::filesystem::path(::testing::TempDir()) / "piecesXXXXXX").string();
    const int fd = mkstemp(path.data());
    if (fd < 0) std::abort();
    unlink(path.c_str());
    for (uint64_t page = 0; page < pages; ++page) {
      const std::vector<char> bytes(kPageBytes, static_cast<char>(1 + page));
      if (pwrite(fd, bytes.data(), kPageBytes,
                 static_cast<off_t>(page * kPageBytes)) !=
          static_cast<ssize_t>(kPageBytes)) {
        std::abort();
      }
    }
    fd_ = std::shared_ptr<const int>(new int(fd), [](const int* owned) {
      close(*owned);
      delete owned;
    });
  }

  int fd() const { return *fd_; }
  // Pages [first, first + pages) at page `at` of an image.
  ImagePiece Piece(uint64_t first, uint64_t pages, uint64_t at) const {
    return {{PageIndex(at), PageCount(pages)}, fd(), first * kPageBytes, fd_};
  }

 private:
  std::shared_ptr<const int> fd_;
};

ImageRef MakeOrDie(absl::StatusOr<ImageRef> image) {
  if (!image.ok()) {
    ADD_FAILURE() << image.status();
    std::abort();
  }
  return *std::move(image);
}

ImageOptions Pages(uint64_t pages) {
  return {.name = "pieces", .size_bytes = pages * kPageBytes};
}

int FirstByte(const Image& image, uint64_t page) {
  return std::to_integer<int>(image.PageBytes(PageIndex(page))[0]);
}

bool HaveUffd() {
  return Uffd::Open(RealKernel(),
                    {.required_features = kUffdFeatureMissingShmem})
      .ok();
}

// Bytes of a page of a descriptor, by read(2); of a hole, 0.
int ByteOf(int fd, uint64_t page) {
  unsigned char byte = 0;
  EXPECT_EQ(pread(fd, &byte, 1, static_cast<off_t>(page * kPageBytes)), 1);
  return byte;
}

TEST(ImagePiecesTest, ShowsThePagesOfAFileWithoutCopyingAny) {
  const FileOfPages file(4);
  const ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(4), {file.Piece(0, 4, 0)}, {}));
  EXPECT_TRUE(image->is_file_backed());
  EXPECT_EQ(image->stored_pages(), 4);
  EXPECT_EQ(FirstByte(*image, 3), 4);
  EXPECT_EQ(image->MemfdBytes(), 0);
  const Image::Mapping mapping = image->PrivateMapping().value();
  EXPECT_EQ(mapping.fd, file.fd());
  EXPECT_EQ(mapping.offset_bytes, 0);
}

TEST(ImagePiecesTest, OnlyStoredPagesOfAPieceCount) {
  const FileOfPages file(4);
  const ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(4), {file.Piece(0, 4, 0)},
                                std::vector<PageRun>{{PageIndex(2), kOne}}));
  EXPECT_EQ(image->stored_pages(), 1);
  EXPECT_EQ(FirstByte(*image, 1), 0);
  EXPECT_EQ(FirstByte(*image, 2), 3);
  EXPECT_EQ(ByteOf(image->memfd(), 1), 0);
  EXPECT_EQ(ByteOf(image->memfd(), 2), 3);
}

TEST(ImagePiecesTest, JoinsPiecesOfFilesAndImagesAndOfJoinedImages) {
  const FileOfPages file(4);
  const std::vector<std::byte> nines(2 * kPageBytes, std::byte{99});
  const ImageRef built = MakeOrDie(ImageFromBytes(Pages(2), nines));
  std::vector<ImagePiece> pieces = {file.Piece(2, 2, 1)};
  AppendPieces(built, {PageIndex(0), kOne}, PageIndex(5), pieces);
  const ImageRef joined = MakeOrDie(ImageFromPieces(Pages(8), pieces, {}));
  EXPECT_EQ(joined->stored_pages(), 3);
  EXPECT_EQ(FirstByte(*joined, 0), 0);
  EXPECT_EQ(FirstByte(*joined, 1), 3);
  EXPECT_EQ(FirstByte(*joined, 2), 4);
  EXPECT_EQ(FirstByte(*joined, 5), 99);

  std::vector<ImagePiece> again;
  AppendPieces(joined, {PageIndex(2), PageCount(4)}, PageIndex(0), again);
  ASSERT_EQ(again.size(), 2);
  const ImageRef nested = MakeOrDie(ImageFromPieces(Pages(4), again, {}));
  EXPECT_EQ(FirstByte(*nested, 0), 4);
  EXPECT_EQ(FirstByte(*nested, 1), 0);
  EXPECT_EQ(FirstByte(*nested, 3), 99);
  // No one file has all: what a plain mapping needs is a copy.
  const Image::Mapping mapping = nested->PrivateMapping().value();
  EXPECT_EQ(mapping.offset_bytes, 0);
  EXPECT_EQ(ByteOf(mapping.fd, 0), 4);
  EXPECT_EQ(ByteOf(mapping.fd, 3), 99);
}

TEST(ImagePiecesTest, NeighboursInOneFileAreOnePiece) {
  const FileOfPages file(4);
  const ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(4), {file.Piece(0, 4, 0)}, {}));
  std::vector<ImagePiece> pieces;
  AppendPieces(image, {PageIndex(1), kOne}, PageIndex(0), pieces);
  AppendPieces(image, {PageIndex(2), kOne}, PageIndex(1), pieces);
  AppendPieces(image, {PageIndex(0), kOne}, PageIndex(2), pieces);
  ASSERT_EQ(pieces.size(), 2);
  EXPECT_EQ(pieces[0].pages.length, PageCount(2));
}

TEST(ImagePiecesTest, MorePiecesThanMappingsAllowAreCopied) {
  const FileOfPages file(2);
  std::vector<ImagePiece> pieces;
  for (uint64_t page = 0; page <= kMaxImagePieces; ++page) {
    pieces.push_back(file.Piece(page % 2, 1, page));
  }
  const ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(pieces.size()), pieces, {}));
  EXPECT_FALSE(image->is_file_backed());
  EXPECT_EQ(FirstByte(*image, 0), 1);
  EXPECT_EQ(FirstByte(*image, kMaxImagePieces - 1), 2);
}

TEST(ImagePiecesTest, PagesComeToTheMemfdWhenTheyAreAskedFor) {
  if (!HaveUffd()) GTEST_SKIP() << "userfaultfd is refused here";
  const FileOfPages file(200);
  const ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(200), {file.Piece(0, 200, 0)}, {}));
  EXPECT_EQ(image->FetchPages(PageIndex(0), kOne), EBADF);
  const int memfd = image->OnDemandMemfd().value();
  EXPECT_EQ(image->MemfdBytes(), 0);
  EXPECT_EQ(image->FetchPages(PageIndex(60), PageCount(10)), 0);
  EXPECT_EQ(image->MemfdBytes(), 10 * kPageBytes);
  EXPECT_EQ(ByteOf(memfd, 60), 61);
  EXPECT_EQ(ByteOf(memfd, 69), 70);
  // Again, and past the end.
  EXPECT_EQ(image->FetchPages(PageIndex(65), PageCount(1000)), 0);
  EXPECT_EQ(image->FetchPages(PageIndex(1000), PageCount(1)), 0);
  EXPECT_EQ(image->MemfdBytes(), 140 * kPageBytes);
  EXPECT_EQ(image->memfd(), memfd);
  EXPECT_EQ(image->MemfdBytes(), 200 * kPageBytes);
}

TEST(ImagePiecesTest, NobodyElseWritesToTheMemfd) {
  if (!HaveUffd()) GTEST_SKIP() << "userfaultfd is refused here";
  const FileOfPages file(2);
  const ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(2), {file.Piece(0, 2, 0)}, {}));
  const int memfd = image->OnDemandMemfd().value();
  EXPECT_EQ(pwrite(memfd, "x", 1, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(
      mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0),
      MAP_FAILED);
  EXPECT_EQ(ftruncate(memfd, 0), -1);
  EXPECT_EQ(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                      kPageBytes),
            -1);
}

TEST(ImagePiecesTest, AMinorFaultIsResolvedAfterTheFetch) {
  absl::StatusOr<Uffd> uffd =
      Uffd::Open(RealKernel(), {.required_features = kUffdFeatureMinorShmem});
  if (!uffd.ok()) GTEST_SKIP() << uffd.status();
  const FileOfPages file(8);
  const ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(8), {file.Piece(0, 8, 0)}, {}));
  const int memfd = image->OnDemandMemfd().value();
  void* const slot = mmap(nullptr, 8 * kPageBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE, memfd, 0);
  ASSERT_NE(slot, MAP_FAILED);
  const auto start = reinterpret_cast<uintptr_t>(slot);
  ASSERT_TRUE(uffd->Register(start, 8 * kPageBytes,
                             kUffdRegisterMissing | kUffdRegisterMinor, 0)
                  .ok());
  EXPECT_EQ(RealKernel().Continue(uffd->fd(), start, 8 * kPageBytes, 0).error,
            EFAULT);
  ASSERT_EQ(image->FetchPages(PageIndex(0), PageCount(8)), 0);
  EXPECT_TRUE(RealKernel().Continue(uffd->fd(), start, 8 * kPageBytes, 0).ok());
  EXPECT_EQ(static_cast<char*>(slot)[7 * kPageBytes], 8);
  munmap(slot, 8 * kPageBytes);
}

TEST(ImagePiecesTest, AChildOfForkDropsItAndKeepsWhatLiesWhereTheViewWas) {
  if (!HaveUffd()) GTEST_SKIP() << "userfaultfd is refused here";
  const FileOfPages file(8);
  ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(8), {file.Piece(0, 8, 0)}, {}));
  ASSERT_TRUE(image->OnDemandMemfd().ok());
  const ChildResult child = RunInChild([&]() -> std::string {
    void* const view = reinterpret_cast<void*>(image->fetch()->view);
    void* const own =
        mmap(view, 8 * kPageBytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (own != view) return "the view is there in the child";
    image = nullptr;
    unsigned char resident[8];
    return mincore(own, 8 * kPageBytes, resident) == 0 ? "kept" : "unmapped";
  });
  EXPECT_EQ(child.output, "kept");
  EXPECT_EQ(image->FetchPages(PageIndex(0), PageCount(8)), 0);
}

TEST(ImagePiecesTest, AChildOfForkUsesItAfterItsParentHasEnded) {
  if (!HaveUffd()) GTEST_SKIP() << "userfaultfd is refused here";
  const FileOfPages file(8);
  const ChildResult parent = RunInChild([&]() -> std::string {
    const ImageRef image =
        MakeOrDie(ImageFromPieces(Pages(8), {file.Piece(0, 8, 0)}, {}));
    const absl::StatusOr<int> parents = image->OnDemandMemfd();
    if (!parents.ok()) return parents.status().ToString();
    if (image->FetchPages(PageIndex(0), kOne) != 0) return "no page 0";
    int alive[2];
    if (pipe(alive) != 0) return "no pipe";
    const pid_t child = fork();
    if (child != 0) return child > 0 ? "parent, " : "no child";
    // Ends with the parent, whose memory has gone then.
    close(alive[1]);
    char byte;
    if (read(alive[0], &byte, 1) != 0) return "the parent speaks";
    // What the parent has fetched by is of no use here.
    if (image->FetchPages(PageIndex(1), kOne) != EBADF) return "not EBADF";
    const absl::StatusOr<int> memfd = image->OnDemandMemfd();
    if (!memfd.ok()) return memfd.status().ToString();
    if (image->OnDemandMemfd().value() != *memfd) return "two memfds";
    if (const int error = image->FetchPages(PageIndex(0), PageCount(7))) {
      return "FetchPages gives " + std::to_string(error);
    }
    for (const int page : {0, 6}) {
      if (ByteOf(*memfd, page) != 1 + page) return "other bytes";
    }
    return image->memfd() == *memfd && ByteOf(*memfd, 7) == 8 ? "child" : "?";
  });
  EXPECT_EQ(parent.output, "parent, child");
}

TEST(ImagePiecesTest, ManyThreadsFetchTheSamePages) {
  const FileOfPages file(100);
  const ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(100), {file.Piece(0, 100, 0)}, {}));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const absl::StatusOr<int> memfd = image->OnDemandMemfd();
      for (uint64_t page = 0; page < 100; ++page) {
        if (!memfd.ok() || image->FetchPages(PageIndex(page), kOne) != 0 ||
            ByteOf(*memfd, page) != static_cast<int>(page + 1)) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(image->MemfdBytes(), 100 * kPageBytes);
}

TEST(ImagePiecesTest, AFileCutShortIsAnErrorOfTheFetch) {
  if (!HaveUffd()) GTEST_SKIP() << "userfaultfd is refused here";
  const FileOfPages file(8);
  const ImageRef image =
      MakeOrDie(ImageFromPieces(Pages(8), {file.Piece(0, 8, 0)}, {}));
  const int memfd = image->OnDemandMemfd().value();
  ASSERT_EQ(ftruncate(file.fd(), 4 * kPageBytes), 0);
  EXPECT_EQ(image->FetchPages(PageIndex(0), PageCount(8)), EFAULT);
  EXPECT_EQ(ByteOf(memfd, 3), 4);
  EXPECT_EQ(image->MemfdBytes(), 4 * kPageBytes);
  EXPECT_EQ(image->memfd(), -1);
  const absl::Status copied =
      CopyOfPieces(Pages(8), std::vector<ImagePiece>{file.Piece(0, 8, 0)}, {})
          .status();
  EXPECT_TRUE(absl::IsDataLoss(copied)) << copied;
  EXPECT_THAT(copied.message(),
              HasSubstr("ends at offset 16384, where page 4"));
}

TEST(ImagePiecesTest, WithoutUserfaultfdTheMemfdIsFilledInWhole) {
  FakeKernel kernel;
  kernel.Fail(FakeKernel::Op::kOpenUserfaultfdSyscall, FakeKernel::kEvery,
              CallResult{0, EPERM});
  kernel.Fail(FakeKernel::Op::kOpenUserfaultfdDevice, FakeKernel::kEvery,
              CallResult{0, ENOENT});
  const FileOfPages file(3);
  const ImageRef image = MakeOrDie(ImageFromPieces(
      Pages(4), {file.Piece(0, 3, 1)}, {}, RealMemfdCalls(), kernel));
  const int memfd = image->OnDemandMemfd().value();
  EXPECT_EQ(image->MemfdBytes(), 3 * kPageBytes);
  EXPECT_EQ(ByteOf(memfd, 3), 3);
  EXPECT_EQ(image->FetchPages(PageIndex(0), PageCount(4)), 0);
  EXPECT_EQ(image->memfd(), memfd);
  EXPECT_EQ(pwrite(memfd, "x", 1, 0), -1);
}

TEST(ImagePiecesTest, AFailedCallIsNamedAndTheNextOneSucceeds) {
  if (!HaveUffd()) GTEST_SKIP() << "userfaultfd is refused here";
  FakeKernel kernel;
  const FileOfPages file(3);
  const ImageRef image = MakeOrDie(ImageFromPieces(
      Pages(3), {file.Piece(0, 3, 0)}, {}, RealMemfdCalls(), kernel));
  kernel.Fail(FakeKernel::Op::kMmap, 1, CallResult{0, ENOMEM});
  const absl::Status failed = image->OnDemandMemfd().status();
  EXPECT_THAT(failed.message(),
              HasSubstr("image 'pieces': mmap of 12288 bytes failed"));
  EXPECT_TRUE(absl::IsResourceExhausted(failed)) << failed;
  EXPECT_TRUE(image->OnDemandMemfd().ok());
}

TEST(DeltaOfTest, IsWhatImageWithPagesIsAndCopiesNoOtherPages) {
  const FileOfPages file(8);
  const ImageRef bases[] = {
      MakeOrDie(ImageFromPieces(
          Pages(8), {file.Piece(0, 3, 0), file.Piece(5, 2, 3)}, {})),
      MakeOrDie(ImageFromSegments(Pages(8), {}))};
  std::vector<std::byte> ones(kPageBytes, std::byte{1});
  std::vector<std::byte> zeroes(kPageBytes);
  for (const ImageRef& base : bases) {
    // Each page of ten is kept, replaced, zeroed by bytes or zeroed by null.
    for (int choice = 0; choice < 1000; ++choice) {
      std::vector<PageData> pages;
      uint32_t state = choice * 2654435761u + 12345;
      for (uint64_t page = 0; page < 10; ++page) {
        state = state * 1664525 + 1013904223;
        switch (state >> 30) {
          case 1:
            pages.push_back({PageIndex(page), ones.data()});
            break;
          case 2:
            pages.push_back({PageIndex(page), zeroes.data()});
            break;
          case 3:
            pages.push_back({PageIndex(page), nullptr});
            break;
          default:
            break;
        }
      }
      const ImageOptions options = {.name = "delta",
                                    .size_bytes = 9 * kPageBytes + 7};
      const ImageRef expected =
          MakeOrDie(ImageWithPages(options, base.get(), pages));
      const ImageRef delta = MakeOrDie(DeltaOf(options, base, pages));
      ASSERT_EQ(delta->parent(), base);
      for (uint64_t page = 0; page < 10; ++page) {
        ASSERT_EQ(delta->IsStored(PageIndex(page)),
                  expected->IsStored(PageIndex(page)));
        ASSERT_EQ(std::memcmp(delta->PageBytes(PageIndex(page)),
                              expected->PageBytes(PageIndex(page)), kPageBytes),
                  0);
      }
    }
  }
}

TEST(DeltaOfTest, ErrorsNameThePageAndTheSizes) {
  const ImageRef base = MakeOrDie(ImageFromSegments(Pages(4), {}));
  EXPECT_THAT(DeltaOf({.name = "small", .size_bytes = kPageBytes}, base, {})
                  .status()
                  .message(),
              HasSubstr("an image does not shrink"));
  const std::vector<PageData> past = {{PageIndex(4), nullptr}};
  EXPECT_THAT(DeltaOf(Pages(4), base, past).status().message(),
              HasSubstr("changed page 0: page 4 is past the image's 4 pages"));
}

}  // namespace
}  // namespace firsttouch
