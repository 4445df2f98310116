// On a kernel that only notes what it is asked for: server_test.cc has the real
// one.

#include "firsttouch/serve/page_placer.h"

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/test_image.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/fake_kernel.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Op = FakeKernel::Op;
using Outcome = Placed::Outcome;

constexpr uintptr_t kStart = uintptr_t{1} << 30;
constexpr uint64_t kPages = 1024;  // Two huge pages.

uintptr_t At(uint64_t page) { return kStart + page * kPageBytes; }

// A call that fills pages.
struct Fill {
  Op op;
  uint64_t page = 0;  // Of the piece.
  uint64_t pages = 0;
  // Where a copy comes from: a page of the image, or zeroes.
  enum Source : int64_t { kZeroes = -1, kElsewhere = -2, kNone = -3 };
  int64_t source = kNone;
  uint64_t mode = 0;
  friend bool operator==(const Fill&, const Fill&) = default;
};

class PlacerTest : public testing::Test {
 protected:
  PlacerTest() {
    for (const Op op : {Op::kCopy, Op::kZeroPage, Op::kPoison, Op::kWake}) {
      kernel_.Hook(op, [this](const FakeKernel::Call& call) { Note(call); });
    }
  }

  void Note(const FakeKernel::Call& call) {
    Fill fill{.op = call.op,
              .page = (call.start - kStart) / kPageBytes,
              .pages = call.bytes / kPageBytes,
              .mode = call.mode};
    if (call.op == Op::kCopy) {
      const auto data = reinterpret_cast<uintptr_t>(image_->image().data());
      const auto zeroes = reinterpret_cast<uintptr_t>(ZeroBytes());
      if (call.source >= data && call.source < data + image_->bytes()) {
        fill.source = static_cast<int64_t>((call.source - data) / kPageBytes);
      } else if (call.source >= zeroes &&
                 call.source < zeroes + kHugePageBytes) {
        fill.source = Fill::kZeroes;
      } else {
        fill.source = Fill::kElsewhere;
        const char* const bytes = reinterpret_cast<const char*>(call.source);
        copied_bytes_.assign(bytes, bytes + call.bytes);
      }
    }
    fills_.push_back(fill);
  }

  Placed Place(const AddressMap::Piece& piece, uint64_t page, uint64_t end,
               bool write = false) {
    fills_.clear();
    return placer_.Place(piece, At(page), At(end), write);
  }

  const std::shared_ptr<GuestImage> image_ =
      GuestImage::Create(TestImage(kPages));
  const AddressMap::Piece piece_ = {.start = At(0), .end = At(kPages)};
  FakeKernel kernel_{FakeKernel::kScripted};
  PagePlacer placer_{kernel_, /*uffd=*/77, *image_};
  std::vector<Fill> fills_;
  std::string copied_bytes_;
};

TEST_F(PlacerTest, StoredPagesAreCopiedTogetherAndHolesAreZero) {
  EXPECT_EQ(Place(piece_, 2, 9).outcome, Outcome::kDone);
  EXPECT_THAT(fills_,
              ElementsAre(Fill{Op::kCopy, 2, 1, 2}, Fill{Op::kZeroPage, 3, 1},
                          Fill{Op::kCopy, 4, 3, 4}, Fill{Op::kZeroPage, 7, 1},
                          Fill{Op::kCopy, 8, 1, 8}));
  EXPECT_EQ(placer_.pages_copied(), 5u);
  EXPECT_EQ(placer_.pages_zeroed(), 2u);
}

TEST_F(PlacerTest, APieceKnowsWhereItIsInTheImage) {
  AddressMap::Piece piece = piece_;
  piece.image_offset_bytes = 100 * kPageBytes;
  EXPECT_EQ(Place(piece, 1, 2).outcome, Outcome::kDone);
  EXPECT_THAT(fills_, ElementsAre(Fill{Op::kCopy, 1, 1, 101}));
}

TEST_F(PlacerTest, PagesThatWereGivenBackAreZeroWhateverTheImageHas) {
  AddressMap::Piece piece = piece_;
  piece.freed = true;
  EXPECT_EQ(Place(piece, 0, 8).outcome, Outcome::kDone);
  EXPECT_THAT(fills_, ElementsAre(Fill{Op::kZeroPage, 0, 8}));
  piece.page_bytes = kHugePageBytes;
  EXPECT_EQ(Place(piece, 0, 512).outcome, Outcome::kDone);
  EXPECT_THAT(fills_, ElementsAre(Fill{Op::kCopy, 0, 512, Fill::kZeroes}));
  EXPECT_EQ(placer_.pages_copied(), 0u);
}

// The kernel's zero page would be copied at once, by a second fault.
TEST_F(PlacerTest, AZeroPageThatIsWrittenToIsAPageOfItsOwn) {
  EXPECT_EQ(Place(piece_, 3, 4, /*write=*/true).outcome, Outcome::kDone);
  EXPECT_THAT(fills_, ElementsAre(Fill{Op::kCopy, 3, 1, Fill::kZeroes}));
  EXPECT_EQ(placer_.pages_zeroed(), 1u);
}

TEST_F(PlacerTest, OfTrackedMemoryOnlyThePageThatIsWrittenToIsNotProtected) {
  AddressMap::Piece piece = piece_;
  piece.track_writes = true;
  EXPECT_EQ(Place(piece, 0, 4, /*write=*/true).outcome, Outcome::kDone);
  EXPECT_THAT(fills_,
              ElementsAre(Fill{Op::kCopy, 0, 1, 0},
                          Fill{Op::kCopy, 1, 2, 1, kUffdCopyWp},
                          Fill{Op::kCopy, 3, 1, Fill::kZeroes, kUffdCopyWp}));
  EXPECT_EQ(Place(piece, 3, 4, /*write=*/false).outcome, Outcome::kDone);
  EXPECT_THAT(fills_,
              ElementsAre(Fill{Op::kCopy, 3, 1, Fill::kZeroes, kUffdCopyWp}));
}

TEST_F(PlacerTest, AHugePageOfWhichAPartIsStoredHasZeroesInBetween) {
  AddressMap::Piece piece = piece_;
  piece.page_bytes = kHugePageBytes;
  EXPECT_EQ(Place(piece, 512, 1024).outcome, Outcome::kDone);
  ASSERT_THAT(fills_, ElementsAre(Fill{Op::kCopy, 512, 512, Fill::kElsewhere}));
  std::string expected;
  for (uint64_t page = 512; page < 1024; ++page) {
    std::vector<std::byte> bytes(kPageBytes);
    FillTestPage(PageIndex(page), bytes);
    expected.append(reinterpret_cast<const char*>(bytes.data()), kPageBytes);
  }
  EXPECT_TRUE(copied_bytes_ == expected);
  EXPECT_EQ(placer_.pages_copied(), 512u);
}

TEST_F(PlacerTest, AHugePageThatIsThereWakesItsWaiters) {
  AddressMap::Piece piece = piece_;
  piece.page_bytes = kHugePageBytes;
  kernel_.Fail(Op::kCopy, 1, RangeResult{0, EEXIST});
  EXPECT_EQ(Place(piece, 0, 512).outcome, Outcome::kDone);
  EXPECT_THAT(fills_, ElementsAre(Fill{Op::kCopy, 0, 512, Fill::kElsewhere},
                                  Fill{Op::kWake, 0, 512}));
  EXPECT_EQ(placer_.pages_copied(), 0u);
}

TEST_F(PlacerTest, TheFirstStopEndsACall) {
  // Two of three pages, then an event that is unread.
  kernel_.Shorten(Op::kCopy, 1, 2 * kPageBytes, EAGAIN);
  kernel_.Fail(Op::kCopy, 2, RangeResult{0, EAGAIN});
  EXPECT_EQ(Place(piece_, 0, 8).outcome, Outcome::kStopped);
  EXPECT_THAT(fills_,
              ElementsAre(Fill{Op::kCopy, 0, 3, 0}, Fill{Op::kCopy, 2, 1, 2}));
  EXPECT_EQ(placer_.pages_copied(), 2u);
}

TEST_F(PlacerTest, WhatTheKernelSaysHasAName) {
  const std::pair<int, Outcome> expected[] = {
      {EAGAIN, Outcome::kStopped},      {ENOMEM, Outcome::kStopped},
      {ENOENT, Outcome::kUnregistered}, {ESRCH, Outcome::kGone},
      {EFAULT, Outcome::kLost},         {EINVAL, Outcome::kLost}};
  for (const auto& [error, outcome] : expected) {
    kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, error});
    kernel_.Fail(Op::kZeroPage, FakeKernel::kEvery, RangeResult{0, error});
    kernel_.Fail(Op::kWriteProtect, FakeKernel::kEvery, RangeResult{0, error});
    EXPECT_EQ(Place(piece_, 0, 1).outcome, outcome) << error;
    EXPECT_EQ(Place(piece_, 3, 4).outcome, outcome) << error;
    EXPECT_EQ(placer_.Unprotect(At(0), kPageBytes).outcome, outcome) << error;
    kernel_.Clear(Op::kCopy);
    kernel_.Clear(Op::kZeroPage);
    kernel_.Clear(Op::kWriteProtect);
  }
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EFAULT});
  const absl::Status cut = Place(piece_, 0, 1).status;
  EXPECT_EQ(cut.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(cut.message(),
              HasSubstr("UFFDIO_COPY: the bytes of image 'guest' cannot be "
                        "read: was its file cut short?"));
  kernel_.Clear(Op::kCopy);
  kernel_.Fail(Op::kCopy, FakeKernel::kEvery, RangeResult{0, EINVAL});
  EXPECT_THAT(Place(piece_, 0, 1).status.ToString(),
              HasSubstr("UFFDIO_COPY: Invalid argument"));
}

TEST_F(PlacerTest, PoisonsPagesOfEitherSizeAndLeavesThoseThatAreThere) {
  EXPECT_EQ(placer_.Poison(At(0), 4 * kPageBytes, kPageBytes).outcome,
            Outcome::kDone);
  EXPECT_THAT(fills_, ElementsAre(Fill{Op::kPoison, 0, 4}));
  fills_.clear();
  kernel_.Fail(Op::kPoison, 1, RangeResult{0, EEXIST});
  EXPECT_EQ(placer_.Poison(At(0), 2 * kHugePageBytes, kHugePageBytes).outcome,
            Outcome::kDone);
  EXPECT_THAT(fills_, ElementsAre(Fill{Op::kPoison, 0, 512},
                                  Fill{Op::kPoison, 512, 512}));
  kernel_.Fail(Op::kPoison, 1, RangeResult{0, ESRCH});
  EXPECT_EQ(placer_.Poison(At(0), 2 * kHugePageBytes, kHugePageBytes).outcome,
            Outcome::kGone);
}

// Nothing is placed whose digest has not been looked at.
TEST_F(PlacerTest, PagesThatAreNotReadyAreNamedAndNotPlaced) {
  const std::string path = testing::TempDir() + "/placer.ftimg";
  ASSERT_TRUE(WriteImageFile(*TestImage(kPages), path).ok());
  absl::StatusOr<std::shared_ptr<GuestImage>> image =
      GuestImage::OpenFile(path);
  ASSERT_TRUE(image.ok()) << image.status();
  PagePlacer placer(kernel_, /*uffd=*/77, **image);
  for (const uint64_t page_bytes : {kPageBytes, kHugePageBytes}) {
    fills_.clear();
    AddressMap::Piece piece = piece_;
    piece.page_bytes = page_bytes;
    const Placed placed =
        placer.Place(piece, At(512), At(1024), /*write=*/false);
    EXPECT_EQ(placed.outcome, Outcome::kNotReady);
    EXPECT_EQ(placed.first, PageIndex(512));
    EXPECT_EQ(placed.pages, PageCount(page_bytes == kPageBytes ? 3 : 512));
    EXPECT_THAT(fills_, IsEmpty());
  }
  // A hole needs no digest.
  EXPECT_EQ(placer.Place(piece_, At(515), At(516), /*write=*/false).outcome,
            Outcome::kDone);
  ASSERT_TRUE((*image)->MakeReady(PageIndex(512), PageCount(3)).ok());
  EXPECT_EQ(placer.Place(piece_, At(512), At(515), /*write=*/false).outcome,
            Outcome::kDone);
}

}  // namespace
}  // namespace firsttouch
