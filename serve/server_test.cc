#include "firsttouch/serve/server.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_format.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/stand_in.h"
#include "firsttouch/serve/test_image.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Seen = StandIn::Seen;

// What servers have told, for any number of threads.
class Told {
 public:
  auto Tell() {
    return [this](const std::string& text) {
      MutexLock lock(&mutex_);
      absl::StrAppend(&text_, text, "\n");
    };
  }
  std::string text() {
    MutexLock lock(&mutex_);
    return text_;
  }

 private:
  Mutex mutex_;
  std::string text_ ABSL_GUARDED_BY(mutex_);
};

class ServerTest : public ::testing::Test {
 protected:
  // Stand-ins first: they are forks of this process.
  std::unique_ptr<StandIn> MakeStandIn(const StandInOptions& options) {
    absl::StatusOr<std::unique_ptr<StandIn>> stand_in = StandIn::Start(options);
    if (!stand_in.ok()) {
      skip_ = std::string(stand_in.status().message());
      return nullptr;
    }
    return *std::move(stand_in);
  }

  void StartServer(ServerOptions options = {}) {
    options.tell = told_.Tell();
    absl::StatusOr<std::unique_ptr<Server>> server =
        Server::Start(std::move(options));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  static GuestArrival ArrivalOf(const StandIn& stand_in,
                                std::shared_ptr<GuestImage> image,
                                GuestOptions options = {}) {
    GuestArrival arrival;
    arrival.uffd = stand_in.Uffd();
    arrival.pidfd = stand_in.Pidfd();
    arrival.regions = stand_in.regions();
    arrival.image = std::move(image);
    arrival.options = std::move(options);
    if (arrival.options.name.empty()) {
      arrival.options.name = absl::StrCat(stand_in.pid());
    }
    return arrival;
  }

  std::shared_ptr<Guest> Attach(const StandIn& stand_in,
                                std::shared_ptr<GuestImage> image,
                                GuestOptions options = {}) {
    absl::StatusOr<uint64_t> id = server_->Attach(
        ArrivalOf(stand_in, std::move(image), std::move(options)));
    EXPECT_TRUE(id.ok()) << id.status();
    if (!id.ok()) return nullptr;
    id_ = *id;
    return server_->Find(*id);
  }

  // Places all pages, and waits for the end of that.
  static absl::Status Fill(Guest& guest) {
    Mutex mutex;
    CondVar changed;
    std::optional<absl::Status> end;
    guest.FillAll([&](const absl::Status& status) {
      MutexLock lock(&mutex);
      // One of its own, as in Guest::Arrived().
      end = absl::Status(status.code(), status.message());
      changed.Signal();
    });
    MutexLock lock(&mutex);
    while (!end.has_value()) changed.Wait(&mutex);
    return *end;
  }

  std::string skip_;
  Told told_;
  std::unique_ptr<Server> server_;
  uint64_t id_ = 0;
};

// For the machines (and users) that have no userfaultfd, or no huge pages.
#define SKIP_WITHOUT(stand_in) \
  if ((stand_in) == nullptr) GTEST_SKIP() << skip_

TEST_F(ServerTest, EveryPageIsAsTheImageHasIt) {
  const ImageRef image = TestImage(512);
  auto guest = MakeStandIn({.image = image, .pages = 512, .regions = 2});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image));
  ASSERT_NE(served, nullptr);
  EXPECT_EQ(guest->Look(0, 512), Seen{.as_image = 512});
  const GuestStats stats = served->Stats();
  EXPECT_EQ(stats.pages_copied, 384u);
  EXPECT_EQ(stats.pages_zeroed, 128u);
  EXPECT_LT(stats.faults, 100u) << "read-ahead while it goes on in a row";
  EXPECT_EQ(stats.lost, 0u);
}

TEST_F(ServerTest, AttachingPlacesNoPageWhateverTheAddresses) {
  // Where this process maps something next is where the guest has its memory:
  // what a server tries on memory of its own must not reach it.
  StartServer();
  for (const uint64_t pages : {1, 2}) {
    const ImageRef image = TestImage(pages);
    uintptr_t next;
    {
      const ScratchMemory probe(pages * kPageBytes);
      next = probe.address();
    }
    auto guest = MakeStandIn({.image = image, .pages = pages, .address = next});
    SKIP_WITHOUT(guest);
    ASSERT_NE(Attach(*guest, GuestImage::Create(image)), nullptr);
    EXPECT_EQ(guest->Look(0, pages), Seen{.as_image = pages});
  }
}

TEST_F(ServerTest, AFaultOutOfRowFillsOnePage) {
  const ImageRef image = TestImage(512);
  auto guest = MakeStandIn({.image = image, .pages = 512});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image));
  for (uint64_t page : {100, 50, 400, 10}) {
    EXPECT_EQ(guest->Look(page, 1), Seen{.as_image = 1});
  }
  EXPECT_EQ(served->Stats().pages_copied, 4u);
}

TEST_F(ServerTest, WhatTheGuestGaveBackIsZeroAndNotTheImage) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image));
  EXPECT_EQ(guest->Look(0, 16), Seen{.as_image = 16});
  ASSERT_TRUE(guest->GiveBack(8, 16));  // Half of it was never touched.
  EXPECT_EQ(guest->Look(8, 16), (Seen{.as_image = 4, .zero = 12}));
  EXPECT_EQ(guest->Look(24, 40), Seen{.as_image = 40});
  EXPECT_EQ(served->Stats().removes, 1u);
}

TEST_F(ServerTest, ThreadsThatRaceWithGivingBackSeeImageOrZeroAndNothingElse) {
  const ImageRef image = TestImage(256);
  auto guest = MakeStandIn({.image = image, .pages = 256});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image),
                             {.background_bytes_per_second = UINT64_MAX});
  const Seen seen = guest->Race(4, 20);
  EXPECT_FALSE(seen.hung);
  EXPECT_EQ(seen.other, 0u);
  EXPECT_EQ(seen.sigbus, 0u);
  EXPECT_GT(seen.as_image, 0u);
}

TEST_F(ServerTest, AGuestInTooManyPiecesIsNotServedAnyMore) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(guest);
  auto killed = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(killed);
  StartServer();
  const auto shared = GuestImage::Create(image);
  auto served = Attach(*guest, shared, {.most_pieces = 7});
  // Seven pieces: three of zeroes, and what is between and around them.
  for (const uint64_t page : {8, 10, 12}) {
    ASSERT_TRUE(guest->GiveBack(page, 1));
  }
  EXPECT_EQ(guest->Look(0, 1), Seen{.as_image = 1});
  EXPECT_EQ(told_.text(), "");
  ASSERT_TRUE(guest->GiveBack(14, 1));
  EXPECT_EQ(guest->Look(0, 16), (Seen{.as_image = 1, .sigbus = 15}));
  EXPECT_THAT(told_.text(), HasSubstr("its memory is in more than 7 pieces"));
  EXPECT_FALSE(Fill(*served).ok());
  // Nothing is known of what it does from here on, and nothing wrong is said.
  ASSERT_TRUE(guest->Move(32, 8));
  ASSERT_TRUE(guest->GiveBack(48, 1));
  EXPECT_EQ(guest->Look(16, 20), Seen{.sigbus = 20});
  EXPECT_FALSE(served->ChangedPages(false).ok());
  served =
      Attach(*killed, shared, {.on_loss = OnLoss::kKill, .most_pieces = 1});
  EXPECT_FALSE(killed->Unmap(8, 1) && killed->Look(0, 1).as_image == 1);
  EXPECT_EQ(killed->WaitForSignal(), SIGKILL);
  // Where its other pages are nobody knows: they must not become zeroes.
  served.reset();
  server_.reset();
  EXPECT_EQ(guest->WaitForSignal(), SIGKILL);
}

TEST_F(ServerTest, MemoryThatMovesKeepsWhatItBeginsWith) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image));
  ASSERT_TRUE(guest->GiveBack(10, 2));
  ASSERT_TRUE(guest->Move(8, 16));
  EXPECT_EQ(guest->Look(8, 16), (Seen{.as_image = 15, .zero = 1}));
  EXPECT_EQ(guest->Look(0, 8), Seen{.as_image = 8});
  EXPECT_EQ(guest->Look(24, 40), Seen{.as_image = 40});
  EXPECT_EQ(served->Stats().moves, 1u);
  EXPECT_EQ(served->Stats().bytes, 64 * kPageBytes);
}

TEST_F(ServerTest, MemoryThatIsUnmappedIsNotServedAnyMore) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image));
  ASSERT_TRUE(guest->Unmap(16, 8));
  EXPECT_EQ(served->Stats().bytes, 56 * kPageBytes);
  EXPECT_EQ(guest->Look(0, 16), Seen{.as_image = 16});
  EXPECT_EQ(guest->Look(24, 40), Seen{.as_image = 40});
}

TEST_F(ServerTest, AForkedChildIsServedLikeItsParent) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64, .fork_events = true});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image));
  ASSERT_TRUE(guest->GiveBack(0, 2));
  EXPECT_EQ(guest->LookInFork(0, 64), (Seen{.as_image = 62, .zero = 2}));
  EXPECT_EQ(guest->Look(0, 64), (Seen{.as_image = 62, .zero = 2}));
  EXPECT_EQ(served->Stats().forks, 1u);
}

TEST_F(ServerTest, AForkedChildThatIsRefusedGetsSigbusAndNeverZeroes) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64, .fork_events = true});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served =
      Attach(*guest, GuestImage::Create(image), {.serve_forks = false});
  EXPECT_EQ(guest->Look(0, 8), Seen{.as_image = 8});
  const uint64_t there =
      served->Stats().pages_copied + served->Stats().pages_zeroed;
  EXPECT_EQ(guest->LookInFork(0, 64),
            (Seen{.as_image = there, .sigbus = 64 - there}));
  EXPECT_EQ(guest->Look(0, 64), Seen{.as_image = 64});
}

TEST_F(ServerTest, HugePagesHaveTheImageAndZeroesWhereItStoresNone) {
  constexpr uint64_t kPages = 4 * 512;
  const ImageRef image = TestImage(kPages);
  auto guest =
      MakeStandIn({.image = image, .pages = kPages, .huge_pages = true});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image));
  EXPECT_EQ(guest->Look(0, 1024), Seen{.as_image = 1024});
  ASSERT_TRUE(guest->GiveBack(0, 512));
  EXPECT_EQ(guest->Look(0, 512), (Seen{.as_image = 128, .zero = 384}));
  EXPECT_EQ(guest->Look(1024, 1024), Seen{.as_image = 1024});
}

TEST_F(ServerTest, ChangedPagesAreThoseThatWereWrittenOrGivenBack) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64, .track_writes = true});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image));
  ASSERT_TRUE(guest->Write(4, 2));  // First touched by a write.
  EXPECT_EQ(guest->Look(0, 4), Seen{.as_image = 4});
  EXPECT_EQ(guest->Look(6, 58), Seen{.as_image = 58});
  ASSERT_TRUE(guest->Write(20, 4));  // Read before; 23 is the zero page.
  ASSERT_TRUE(guest->GiveBack(40, 1));
  absl::StatusOr<std::vector<PageRun>> changed = served->ChangedPages(true);
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_THAT(*changed, ElementsAre(PageRun{PageIndex(4), PageCount(2)},
                                    PageRun{PageIndex(20), PageCount(4)},
                                    PageRun{PageIndex(40), PageCount(1)}));
  changed = served->ChangedPages(false);
  ASSERT_TRUE(changed.ok());
  EXPECT_THAT(*changed, IsEmpty());
  ASSERT_TRUE(guest->Write(5, 1));
  changed = served->ChangedPages(false);
  ASSERT_TRUE(changed.ok());
  EXPECT_THAT(*changed, ElementsAre(PageRun{PageIndex(5), PageCount(1)}));
}

TEST_F(ServerTest, TouchesAreRecordedInOrderAndPlacedForTheNextGuest) {
  const ImageRef image = TestImage(256);
  auto first = MakeStandIn({.image = image, .pages = 256});
  SKIP_WITHOUT(first);
  auto second = MakeStandIn({.image = image, .pages = 256});
  SKIP_WITHOUT(second);
  StartServer();
  const auto shared = GuestImage::Create(image);
  auto served = Attach(*first, shared, {.record_touches = true});
  first->Look(40, 4);
  first->Look(10, 2);
  first->Write(100, 1);
  first->Look(10, 2);
  std::vector<uint64_t> pages;
  for (const Touch& touch : served->Touches()) {
    pages.push_back(touch.page.value());
    EXPECT_EQ(touch.write, touch.page.value() == 100);
  }
  EXPECT_THAT(pages, ElementsAre(40, 41, 42, 43, 10, 11, 100));
  EXPECT_EQ(served->Stats().pages_placed_early, 0u);
  EXPECT_THAT(RunsOf(served->Touches()),
              ElementsAre(PageRun{PageIndex(10), PageCount(2)},
                          PageRun{PageIndex(40), PageCount(4)},
                          PageRun{PageIndex(100), PageCount(1)}));
  served->TeachWorkingSet();
  EXPECT_TRUE(image->working_set().known());
  // All of it is there before it is asked for: FillAll comes behind it.
  served = Attach(*second, shared);
  const absl::Status filled = Fill(*served);
  EXPECT_TRUE(filled.ok()) << filled;
  EXPECT_GE(served->Stats().pages_placed_early, 192u);
  EXPECT_EQ(second->Look(0, 256), Seen{.as_image = 256});
}

TEST_F(ServerTest, WhatIsPlacedEarlyWhileThreadsTouchAndGiveBackIsNeverOld) {
  const ImageRef image = TestImage(1024);
  for (int i = 0; i < 8; ++i) {
    auto guest = MakeStandIn({.image = image, .pages = 1024});
    SKIP_WITHOUT(guest);
    StartServer();
    const auto served = Attach(*guest, GuestImage::Create(image));
    guest->BeginRace(2, 8);
    EXPECT_TRUE(Fill(*served).ok());
    const Seen seen = guest->Answer();
    EXPECT_FALSE(seen.hung);
    EXPECT_EQ(seen.other, 0u);
    EXPECT_EQ(seen.sigbus, 0u);
    server_.reset();
  }
}

TEST(GuestImageTest, WhatIsPlacedEarlyIsOneCopyAsLongAsSomebodyHasIt) {
  const auto image = GuestImage::Create(TestImage(8));
  const std::vector<PageRun> runs = {PageRun{PageIndex(1), PageCount(2)}};
  bool new_ones = false;
  auto first = image->Shared(runs, new_ones);
  EXPECT_TRUE(new_ones);
  EXPECT_EQ(*first, runs);
  EXPECT_EQ(image->Shared(runs, new_ones), first);
  EXPECT_FALSE(new_ones);
  EXPECT_NE(image->Shared({PageRun{PageIndex(1), PageCount(3)}}, new_ones),
            first);
  EXPECT_TRUE(new_ones);
  const std::weak_ptr<const std::vector<PageRun>> let_go = first;
  first.reset();
  EXPECT_TRUE(let_go.expired());
}

TEST_F(ServerTest, ManyGuestsOfOneImageAtOnce) {
  const ImageRef image = TestImage(512);
  std::vector<std::unique_ptr<StandIn>> guests;
  for (int i = 0; i < 8; ++i) {
    guests.push_back(MakeStandIn({.image = image, .pages = 512}));
    SKIP_WITHOUT(guests.back());
  }
  StartServer();
  const auto shared = GuestImage::Create(image);
  for (const auto& guest : guests) {
    ASSERT_NE(Attach(*guest, shared), nullptr);
  }
  for (const auto& guest : guests) guest->BeginLook(0, 512);
  for (const auto& guest : guests) {
    EXPECT_EQ(guest->Answer(), Seen{.as_image = 512});
  }
}

TEST_F(ServerTest, AGuestThatFaultsWithoutEndDoesNotKeepOthersWaiting) {
  const ImageRef image = TestImage(256);
  auto busy = MakeStandIn({.image = image, .pages = 256});
  SKIP_WITHOUT(busy);
  auto other = MakeStandIn({.image = image, .pages = 256});
  SKIP_WITHOUT(other);
  StartServer({.threads = 1});
  const auto shared = GuestImage::Create(image);
  Attach(*busy, shared);
  Attach(*other, shared);
  // Eight threads that give back and touch again for longer than the other
  // takes; killed at the end of the test.
  busy->BeginLook(0, 1);
  EXPECT_EQ(busy->Answer(), Seen{.as_image = 1});
  std::thread racing([&] { busy->Race(8, 2000); });
  EXPECT_EQ(other->Look(0, 256), Seen{.as_image = 256});
  kill(busy->pid(), SIGKILL);
  racing.join();
}

TEST_F(ServerTest, AGuestThatEndsOrIsKilledLeavesTheServerAlone) {
  const ImageRef image = TestImage(64);
  auto ends = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(ends);
  auto killed = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(killed);
  auto stays = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(stays);
  StartServer();
  const auto shared = GuestImage::Create(image);
  Attach(*ends, shared);
  const uint64_t ends_id = id_;
  Attach(*killed, shared);
  const uint64_t killed_id = id_;
  Attach(*stays, shared);
  killed->BeginLook(0, 64);
  killed->Kill();
  ends->Exit();
  EXPECT_EQ(ends->WaitForSignal(), 0);
  server_->WaitForEnd(ends_id);
  server_->WaitForEnd(killed_id);
  EXPECT_THAT(server_->guests(), ElementsAre(id_));
  EXPECT_EQ(stays->Look(0, 64), Seen{.as_image = 64});
}

TEST_F(ServerTest, AServerThatEndsLeavesSigbusAndNotZeroes) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(guest);
  StartServer();
  Attach(*guest, GuestImage::Create(image));
  EXPECT_EQ(guest->Look(0, 1), Seen{.as_image = 1});
  server_.reset();
  EXPECT_EQ(guest->Look(0, 64), (Seen{.as_image = 1, .sigbus = 63}));
}

TEST_F(ServerTest, AServerThatEndsLeavesSigbusBehindMemoryThatIsNotRegistered) {
  const ImageRef image = TestImage(64);
  for (const bool track_writes : {false, true}) {
    auto guest = MakeStandIn(
        {.image = image, .pages = 64, .track_writes = track_writes});
    SKIP_WITHOUT(guest);
    StartServer();
    Attach(*guest, GuestImage::Create(image));
    EXPECT_EQ(guest->Look(6, 1), Seen{.as_image = 1});
    ASSERT_TRUE(guest->Unregister(5, 1));
    server_.reset();
    EXPECT_EQ(guest->Look(0, 64),
              (Seen{.as_image = 1, .zero = 1, .sigbus = 62}));
    EXPECT_TRUE(guest->Write(6, 1));
  }
}

TEST_F(ServerTest, AServerThatEndsLetsProtectedPagesBeWrittenTo) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64, .track_writes = true});
  SKIP_WITHOUT(guest);
  StartServer();
  Attach(*guest, GuestImage::Create(image));
  EXPECT_EQ(guest->Look(0, 8), Seen{.as_image = 8});
  server_.reset();
  EXPECT_TRUE(guest->Write(0, 8));
}

TEST_F(ServerTest, TheEndOfAGuestIsToldOnceAlsoWhereItIsDetached) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(guest);
  std::atomic<int> ends{0};
  ServerOptions options;
  options.ended = [&ends](const std::shared_ptr<Guest>&) { ++ends; };
  StartServer(std::move(options));
  ASSERT_NE(Attach(*guest, GuestImage::Create(image)), nullptr);
  EXPECT_TRUE(server_->Detach(id_, /*complete=*/false).ok());
  EXPECT_EQ(ends, 1);
  EXPECT_EQ(server_->Detach(id_, /*complete=*/false).code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ends, 1);
}

TEST_F(ServerTest, AnotherServerTakesOverAndThreadsThatWaitGoOn) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(guest);
  // Nobody answers yet: the event is read here, as by a server that dies then.
  guest->BeginLook(0, 64);
  const UniqueFd uffd = guest->Uffd();
  pollfd waits = {.fd = uffd.get(), .events = POLLIN};
  ASSERT_EQ(poll(&waits, 1, 60'000), 1);
  EventReader reader(RealKernel(), uffd.get());
  ASSERT_EQ(reader.Read().events.size(), 1u);
  // Limits are for those who come, and not for those who are there.
  ServerOptions options;
  options.max_guests = 0;
  options.max_guest_bytes = 0;
  options.max_total_bytes = 0;
  StartServer(std::move(options));
  GuestArrival arrival = ArrivalOf(*guest, GuestImage::Create(image));
  arrival.taken_over = true;
  ASSERT_TRUE(server_->Attach(std::move(arrival)).ok());
  EXPECT_EQ(guest->Answer(), Seen{.as_image = 64});
}

TEST_F(ServerTest, AFilledGuestNeedsNoServer) {
  const ImageRef image = TestImage(256);
  auto guest = MakeStandIn({.image = image, .pages = 256});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(image));
  ASSERT_TRUE(guest->GiveBack(0, 4));
  const absl::Status filled = Fill(*served);
  EXPECT_TRUE(filled.ok()) << filled;
  EXPECT_EQ(served->Stats().pages_copied, 192u - 3);
  EXPECT_EQ(guest->Look(0, 256), (Seen{.as_image = 253, .zero = 3}));
}

TEST_F(ServerTest, FillingGoesOnBehindMemoryThatIsNotRegisteredAnyMore) {
  const ImageRef image = TestImage(256);
  auto guest = MakeStandIn({.image = image, .pages = 256});
  SKIP_WITHOUT(guest);
  StartServer();
  // No event tells of this.
  ASSERT_TRUE(guest->Unregister(5, 1));
  const auto served = Attach(*guest, GuestImage::Create(image));
  const absl::Status filled = Fill(*served);
  EXPECT_TRUE(filled.ok()) << filled;
  EXPECT_EQ(served->Stats().pages_copied, 192u - 1);
  EXPECT_THAT(told_.text(), HasSubstr("is not registered"));
  EXPECT_EQ(guest->Look(0, 256), (Seen{.as_image = 255, .zero = 1}));
}

// ---- Images that fail -------------------------------------------------------

class DamagedImageTest : public ServerTest {
 protected:
  void SetUp() override {
    path_ = absl::StrCat(
        ::testing::TempDir(), "/", getpid(), "-",
        ::testing::UnitTest::GetInstance()->current_test_info()->name(),
        ".ftimg");
    image_ = TestImage(1024);
    absl::StatusOr<ImageFileInfo> written =
        WriteImageFile(*image_, path_, {.page_checksums = true});
    ASSERT_TRUE(written.ok()) << written.status();
    data_offset_ = written->data_offset;
    std::filesystem::permissions(path_, std::filesystem::perms::owner_all);
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::shared_ptr<GuestImage> Open() {
    absl::StatusOr<std::shared_ptr<GuestImage>> opened =
        GuestImage::OpenFile(path_);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *opened;
  }

  void RemoveChecksums() {
    absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(path_);
    ASSERT_TRUE(info.ok()) << info.status();
    std::ifstream in(path_, std::ios::binary);
    in.seekg(static_cast<std::streamoff>(info->data_offset));
    const std::string data{std::istreambuf_iterator<char>(in), {}};
    info->page_checksums.clear();
    const std::string manifest = EncodeManifest(*info);
    const ImageHeader header = HeaderFor(manifest, info->size_bytes);
    std::string file = EncodeHeader(header) + manifest;
    file.resize(header.data_offset);
    std::ofstream(path_, std::ios::binary) << file << data;
    data_offset_ = header.data_offset;
  }

  // Changes one byte of a page.
  void Damage(uint64_t page) {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(data_offset_ + page * kPageBytes));
    file.put('!');
  }

  std::string path_;
  ImageRef image_;
  uint64_t data_offset_ = 0;
};

TEST_F(DamagedImageTest, AFileIsServedAndEachPageCheckedOnce) {
  auto guest = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto served = Attach(*guest, Open());
  EXPECT_EQ(guest->Look(0, 1024), Seen{.as_image = 1024});
  EXPECT_GT(served->Stats().waits, 0u);
  EXPECT_EQ(told_.text(), "");
}

TEST_F(DamagedImageTest, APageWithAWrongChecksumIsSigbusAndNeverBytes) {
  auto guest = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(guest);
  Damage(1);
  StartServer();
  const auto served = Attach(*guest, Open());
  EXPECT_EQ(guest->Look(0, 1024), (Seen{.as_image = 1023, .sigbus = 1}));
  EXPECT_THAT(told_.text(),
              HasSubstr(absl::StrCat("page 1 of ", path_,
                                     " does not match its checksum")));
  EXPECT_EQ(served->Stats().lost, 1u);
}

// Another guest does not get what was found wrong for the first one.
TEST_F(DamagedImageTest, APageThatIsWrongStaysSo) {
  auto first = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(first);
  auto second = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(second);
  Damage(64);
  StartServer();
  const auto image = Open();
  Attach(*first, image);
  EXPECT_EQ(first->Look(0, 1024), (Seen{.as_image = 1023, .sigbus = 1}));
  Attach(*second, image);
  EXPECT_EQ(second->Look(0, 1024), (Seen{.as_image = 1023, .sigbus = 1}));
}

// As files were before they had checksums.
TEST_F(DamagedImageTest, AnExtentWithAWrongDigestIsSigbusAndNeverBytes) {
  auto guest = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(guest);
  RemoveChecksums();
  Damage(1);
  StartServer();
  const auto served = Attach(*guest, Open());
  // The extent of pages 0 to 2, which page 1 is in.
  EXPECT_EQ(guest->Look(0, 1024), (Seen{.as_image = 1021, .sigbus = 3}));
  EXPECT_THAT(told_.text(), HasSubstr("do not match their digest"));
  EXPECT_THAT(told_.text(), HasSubstr(path_));
  EXPECT_EQ(served->Stats().lost, 3u);
}

TEST_F(DamagedImageTest, ADamagedPageDoesNotKeepOthersFromBeingPlacedEarly) {
  auto guest = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(guest);
  Damage(5);
  StartServer();
  const auto served = Attach(
      *guest, Open(),
      {.place_first = std::make_shared<const std::vector<PageRun>>(
           std::vector<PageRun>{PageRun{PageIndex(0), PageCount(1024)}})});
  // All but the piece that has the page; the end of filling says so.
  const absl::Status filled = Fill(*served);
  EXPECT_EQ(filled.code(), absl::StatusCode::kDataLoss) << filled;
  EXPECT_THAT(std::string(filled.message()), HasSubstr("page 5"));
  EXPECT_GE(served->Stats().pages_placed_early, 1008u - 4);
  EXPECT_EQ(served->Stats().lost, 0u);
  EXPECT_EQ(guest->Look(0, 1024), (Seen{.as_image = 1023, .sigbus = 1}));
}

TEST_F(DamagedImageTest, WhereMuchIsDamagedNothingIsPlacedEarlyAnyMore) {
  auto guest = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto image = Open();
  ASSERT_EQ(truncate(path_.c_str(), static_cast<off_t>(data_offset_)), 0);
  const auto served = Attach(*guest, image);
  EXPECT_FALSE(Fill(*served).ok());
  EXPECT_THAT(told_.text(), HasSubstr("cannot be placed early, and no more"));
}

TEST_F(DamagedImageTest, AFileThatIsCutShortIsSigbusAndNeverZeroes) {
  auto guest = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(guest);
  StartServer();
  const auto image = Open();
  // Nothing behind what it looks at first.
  Attach(*guest, image, {.most_read_ahead_bytes = kPageBytes});
  EXPECT_EQ(guest->Look(0, 512), Seen{.as_image = 512});
  ASSERT_EQ(truncate(path_.c_str(),
                     static_cast<off_t>(data_offset_ + 512 * kPageBytes)),
            0);
  // Zero pages of the image are still known to be zero.
  EXPECT_EQ(guest->Look(512, 512), (Seen{.as_image = 128, .sigbus = 384}));
  EXPECT_THAT(told_.text(), HasSubstr("was the file cut short?"));
}

TEST_F(DamagedImageTest, AFileThatIsCutShortAfterItsCheckIsSigbusToo) {
  auto first = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(first);
  auto second = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(second);
  StartServer();
  const auto image = Open();
  Attach(*first, image);
  EXPECT_EQ(first->Look(0, 1024), Seen{.as_image = 1024});
  ASSERT_EQ(truncate(path_.c_str(), static_cast<off_t>(data_offset_)), 0);
  Attach(*second, image);
  EXPECT_EQ(second->Look(0, 1024), (Seen{.as_image = 256, .sigbus = 768}));
  EXPECT_THAT(told_.text(), HasSubstr("was its file cut short?"));
}

TEST_F(DamagedImageTest, AGuestMayBeKilledInstead) {
  auto guest = MakeStandIn({.image = image_, .pages = 1024});
  SKIP_WITHOUT(guest);
  Damage(0);
  StartServer();
  Attach(*guest, Open(), {.on_loss = OnLoss::kKill});
  EXPECT_TRUE(guest->Look(0, 1).hung);
  EXPECT_EQ(guest->WaitForSignal(), SIGKILL);
  server_->WaitForEnd(id_);
  EXPECT_THAT(told_.text(), HasSubstr("its process is killed"));
}

TEST_F(DamagedImageTest, TheDigestsOfADeltaAndItsParentAreChecked) {
  const std::string child_path = path_ + ".delta";
  std::vector<std::byte> changed(kPageBytes, std::byte{7});
  const std::vector<PageData> pages = {
      {.page = PageIndex(5), .bytes = changed.data()},
      {.page = PageIndex(9), .bytes = nullptr}};
  absl::StatusOr<ImageRef> child =
      ImageWithPages({.name = "child", .size_bytes = image_->size_bytes()},
                     image_.get(), pages);
  ASSERT_TRUE(child.ok()) << child.status();
  absl::StatusOr<ImageRef> parent = OpenImageFile(path_);
  ASSERT_TRUE(parent.ok()) << parent.status();
  ASSERT_TRUE(WriteImageFile(**child, child_path, {.parent = *parent}).ok());
  auto right = MakeStandIn({.image = *child, .pages = 1024});
  SKIP_WITHOUT(right);
  auto wrong = MakeStandIn({.image = *child, .pages = 1024});
  SKIP_WITHOUT(wrong);
  const OpenImageOptions options = {
      .find_parent = [this](const Digest&) -> absl::StatusOr<std::string> {
        return path_;
      }};
  absl::StatusOr<std::shared_ptr<GuestImage>> opened =
      GuestImage::OpenFile(child_path, options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  StartServer();
  Attach(*right, *opened);
  EXPECT_EQ(right->Look(0, 1024), Seen{.as_image = 1024});
  Damage(4);
  Damage(5);  // The child's.
  opened = GuestImage::OpenFile(child_path, options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  Attach(*wrong, *opened);
  EXPECT_EQ(wrong->Look(0, 1024), (Seen{.as_image = 1023, .sigbus = 1}));
  std::filesystem::remove(child_path);
}

// ---- Page sources -----------------------------------------------------------

class TestSource : public PageSource {
 public:
  absl::Status Fetch(PageIndex first, std::span<std::byte> bytes) override {
    ++fetches;
    if (failures > 0) {
      --failures;
      return absl::UnavailableError("the store is away");
    }
    for (uint64_t i = 0; i * kPageBytes < bytes.size(); ++i) {
      FillTestPage(first + PageCount(i),
                   bytes.subspan(i * kPageBytes, kPageBytes));
    }
    return absl::OkStatus();
  }
  std::atomic<int> failures{0};
  std::atomic<int> fetches{0};
};

TEST_F(ServerTest, PagesOfAPageSourceComeWhenTheyAreAskedFor) {
  auto guest = MakeStandIn({.image = TestImage(256), .pages = 256});
  SKIP_WITHOUT(guest);
  const auto source = std::make_shared<TestSource>();
  absl::StatusOr<ImageRef> image = ImageFromSource(
      {.name = "remote", .size_bytes = 256 * kPageBytes}, source);
  ASSERT_TRUE(image.ok()) << image.status();
  StartServer();
  const auto served = Attach(*guest, GuestImage::Create(*image));
  EXPECT_EQ(guest->Look(0, 256), Seen{.as_image = 256});
  EXPECT_EQ(source->fetches, 16);
}

TEST_F(ServerTest, APageSourceThatFailsIsTriedAgainUntilTheDeadline) {
  auto patient = MakeStandIn({.image = TestImage(64), .pages = 64});
  SKIP_WITHOUT(patient);
  auto hasty = MakeStandIn({.image = TestImage(64), .pages = 64});
  SKIP_WITHOUT(hasty);
  const auto source = std::make_shared<TestSource>();
  source->failures = 3;
  absl::StatusOr<ImageRef> image = ImageFromSource(
      {.name = "remote", .size_bytes = 64 * kPageBytes}, source);
  ASSERT_TRUE(image.ok()) << image.status();
  StartServer();
  const auto shared = GuestImage::Create(*image);
  const auto served =
      Attach(*patient, shared, {.retry_for = std::chrono::hours(1)});
  EXPECT_EQ(patient->Look(0, 16), Seen{.as_image = 16});
  EXPECT_EQ(served->Stats().retries, 3u);
  EXPECT_THAT(told_.text(), HasSubstr("it is tried again for 3600000 ms"));
  EXPECT_THAT(told_.text(), Not(HasSubstr("SIGBUS")));
  source->failures = 1;
  Attach(*hasty, shared);
  EXPECT_EQ(hasty->Look(32, 1), Seen{.sigbus = 1});
  EXPECT_THAT(told_.text(), HasSubstr("SIGBUS"));
  EXPECT_THAT(told_.text(), HasSubstr("the page source failed"));
  EXPECT_EQ(hasty->Look(33, 1), Seen{.as_image = 1});
}

// ---- What is refused --------------------------------------------------------

TEST_F(ServerTest, WhatCannotBeServedIsRefusedByName) {
  const ImageRef image = TestImage(64);
  auto guest = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(guest);
  auto second = MakeStandIn({.image = image, .pages = 64});
  SKIP_WITHOUT(second);
  StartServer({.max_guests = 1, .max_guest_bytes = 64 * kPageBytes});
  const auto shared = GuestImage::Create(image);
  const auto refusal = [&](GuestArrival arrival) {
    absl::StatusOr<uint64_t> id = server_->Attach(std::move(arrival));
    EXPECT_FALSE(id.ok());
    return id.status().ToString();
  };
  GuestArrival arrival = ArrivalOf(*guest, shared);
  arrival.uffd.reset(open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_THAT(refusal(std::move(arrival)),
              HasSubstr("is /dev/null and no userfaultfd"));
  arrival = ArrivalOf(*guest, shared);
  arrival.uffd.reset();
  EXPECT_THAT(refusal(std::move(arrival)), HasSubstr("no userfaultfd"));
  arrival = ArrivalOf(*guest, shared);
  absl::StatusOr<Uffd> own = Uffd::Open(RealKernel(), {});
  ASSERT_TRUE(own.ok()) << own.status();
  arrival.uffd.reset(
      static_cast<int>(RealKernel().DupCloexec(own->fd(), 0).value));
  EXPECT_THAT(refusal(std::move(arrival)),
              HasSubstr("belongs to the server's own memory"));
  arrival = ArrivalOf(*guest, shared);
  arrival.regions[0].image_offset_bytes = kPageBytes;
  EXPECT_THAT(refusal(std::move(arrival)),
              HasSubstr("is this the image of this guest?"));
  arrival = ArrivalOf(*guest, shared);
  arrival.regions[0].bytes += kPageBytes;
  EXPECT_THAT(refusal(std::move(arrival)),
              HasSubstr("one guest may have 262144"));
  ASSERT_NE(Attach(*guest, shared), nullptr);
  EXPECT_THAT(refusal(ArrivalOf(*second, shared)),
              HasSubstr("there are 1 guests, as many as there may be"));
  EXPECT_EQ(guest->Look(0, 64), Seen{.as_image = 64});
}

}  // namespace
}  // namespace firsttouch
