#include "firsttouch/serve/guest_journal.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
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
#include "firsttouch/init/digest.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/state_folder.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uintptr_t kStart = uintptr_t{1} << 32;
constexpr uint64_t kPages = 4096;

uffd_msg Removed(uint64_t first, uint64_t pages) {
  uffd_msg message = {};
  message.event = kUffdEventRemove;
  message.arg.remove.start = kStart + first * kPageBytes;
  message.arg.remove.end = kStart + (first + pages) * kPageBytes;
  return message;
}

uffd_msg Moved(uint64_t first, uintptr_t to) {
  uffd_msg message = {};
  message.event = kUffdEventRemap;
  message.arg.remap.from = kStart + first * kPageBytes;
  message.arg.remap.to = to;
  message.arg.remap.len = kPageBytes;
  return message;
}

uffd_msg Fault(uint64_t page) {
  uffd_msg message = {};
  message.event = kUffdEventPagefault;
  message.arg.pagefault.address = kStart + page * kPageBytes;
  return message;
}

class GuestJournalTest : public ::testing::Test {
 protected:
  GuestJournalTest() {
    std::string folder = "/dev/shm/guest-journal-XXXXXX";
    folder_ = mkdtemp(folder.data());
    path_ = folder_ + "/guest-1-1";
    absl::StatusOr<AddressMap> map =
        AddressMap::Create({{{.start = kStart, .bytes = kPages * kPageBytes}}});
    EXPECT_TRUE(map.ok());
    map_ = *std::move(map);
    record_.pid = 17;
    record_.start_time_ticks = 4711;
    record_.uffd_number = 9;
    record_.uffd_inode = 12345;
    record_.name = "pid 17";
    record_.image = "base";
    record_.socket = "/run/vm/pages.sock";
    record_.image_digest = Sha256Of(std::string("base"));
  }
  ~GuestJournalTest() override { std::filesystem::remove_all(folder_); }

  void Create() {
    absl::StatusOr<std::unique_ptr<GuestJournal>> journal =
        GuestJournal::Create(path_, record_, map_);
    ASSERT_TRUE(journal.ok()) << journal.status();
    journal_ = *std::move(journal);
  }

  // What a server does at a turn.
  void Read(const std::vector<uffd_msg>& messages) {
    BeginRead(messages);
    journal_->EndRead(messages.size());
    for (const uffd_msg& message : messages) Handle(message);
  }
  // What is there when the system call is over.
  void BeginRead(const std::vector<uffd_msg>& messages) {
    journal_->BeginRead(map_);
    for (size_t i = 0; i < messages.size(); ++i) {
      journal_->landing()[i] = messages[i];
    }
  }
  void Handle(const uffd_msg& message) {
    const Event event = EventFromMessage(message);
    if (event.kind == Event::Kind::kRemove) map_.Free(event.start, event.end);
    if (event.kind == Event::Kind::kRemap) {
      map_.Move(event.from, event.to, event.bytes);
    }
  }

  // The pages that the file says are zero, after the server's death.
  std::string Freed() {
    absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
    if (!left.ok()) return left.status().ToString();
    std::string freed;
    for (std::optional<AddressMap::Piece> piece = left->map.Next(0);
         piece.has_value(); piece = left->map.Next(piece->end)) {
      if (!piece->freed) continue;
      freed += std::to_string((piece->start - kStart) / kPageBytes) + "+" +
               std::to_string(piece->bytes() / kPageBytes) + " ";
    }
    return freed;
  }

  std::string folder_;
  std::string path_;
  AddressMap map_;
  GuestRecord record_;
  std::unique_ptr<GuestJournal> journal_;
};

TEST_F(GuestJournalTest, HasWhoTheGuestIsAndWhatItsRegionsAre) {
  Create();
  absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_EQ(left->journal->record(), record_);
  EXPECT_TRUE(left->journal->complete());
  EXPECT_FALSE(left->lost_fork);
  EXPECT_EQ(left->map.bytes(), kPages * kPageBytes);
  EXPECT_EQ(Freed(), "");
}

TEST_F(GuestJournalTest, KnowsWhatWasGivenBackAtEachStepOfADeath) {
  Create();
  Read({Removed(1, 1)});
  EXPECT_EQ(Freed(), "1+1 ");
  Create();
  // Right after the system call.
  BeginRead({Fault(7), Removed(3, 2)});
  EXPECT_EQ(Freed(), "1+1 3+2 ");
}

TEST_F(GuestJournalTest, AnotherServerGoesOnWithIt) {
  Create();
  BeginRead({Removed(3, 2)});
  absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
  ASSERT_TRUE(left.ok()) << left.status();
  ASSERT_TRUE(left->journal->GoOn(left->map).ok());
  map_ = left->map;
  journal_ = std::move(left->journal);
  Read({Removed(7, 1)});
  BeginRead({Removed(9, 1)});
  EXPECT_EQ(Freed(), "3+2 7+1 9+1 ");
}

TEST_F(GuestJournalTest, AnEventThatIsInTheLogAlreadyDoesNotCountTwice) {
  Create();
  // The page at 0 moves away, and what moves to its place is given back: to
  // apply the moves once more would lose that.
  Read({Moved(0, kStart + 2 * kPages * kPageBytes), Moved(1, kStart),
        Removed(0, 1)});
  absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_EQ(left->map.bytes(), map_.bytes());
  std::optional<AddressMap::Piece> piece = left->map.Find(kStart);
  ASSERT_TRUE(piece.has_value());
  EXPECT_TRUE(piece->freed);
  EXPECT_EQ(piece->OffsetOf(kStart), kPageBytes);
}

TEST_F(GuestJournalTest, ALogThatIsFullGoesOnInANewFile) {
  Create();
  for (uint64_t page = 0; page < kPages; page += 2) Read({Removed(page, 1)});
  EXPECT_TRUE(journal_->complete());
  absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_EQ(left->map.pieces(), kPages);
  EXPECT_TRUE(left->map.Find(kStart + 40 * kPageBytes)->freed);
  EXPECT_FALSE(left->map.Find(kStart + 41 * kPageBytes)->freed);
}

TEST_F(GuestJournalTest, WithoutRoomForANewFileItSaysThatItLacksEvents) {
  Create();
  const std::string away = folder_ + "-away";
  std::filesystem::rename(folder_, away);
  for (uint64_t page = 0; page < kPages; page += 2) Read({Removed(page, 1)});
  std::filesystem::rename(away, folder_);
  EXPECT_FALSE(journal_->complete());
  for (int i = 0; i < 2; ++i) {
    absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
    ASSERT_TRUE(left.ok()) << left.status();
    EXPECT_FALSE(left->journal->complete()) << "also when another goes on";
    ASSERT_TRUE(left->journal->GoOn(left->map).ok());
  }
}

TEST_F(GuestJournalTest, WithoutRoomToGoOnTheOldFileStaysAndSaysThatItLacks) {
  Create();
  BeginRead({Removed(3, 2)});
  absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
  ASSERT_TRUE(left.ok()) << left.status();
  rlimit whole;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &whole), 0);
  const rlimit none = {.rlim_cur = 0, .rlim_max = whole.rlim_max};
  const auto before = signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &none), 0);
  const absl::Status goes_on = left->journal->GoOn(left->map);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &whole), 0);
  signal(SIGXFSZ, before);
  EXPECT_TRUE(goes_on.ok()) << goes_on;
  EXPECT_FALSE(left->journal->complete());
  map_ = left->map;
  journal_ = std::move(left->journal);
  // Events can be read on.
  for (uint64_t page = 8; page < 64; page += 2) Read({Removed(page, 1)});
  left = GuestJournal::Open(path_);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_FALSE(left->journal->complete());
  EXPECT_EQ(left->journal->record(), record_);
}

TEST_F(GuestJournalTest, KilledWhileItClearsWhatHasLandedItCountsNothingTwice) {
  Create();
  Read({Removed(1, 1)});
  // Moves, which must not be applied once more; as before Answered().
  BeginRead({Moved(0, kStart + 2 * kPages * kPageBytes), Moved(1, kStart),
             Removed(0, 1)});
  journal_->EndRead(3);
  const std::string expected = Freed();
  const auto landing = journal_->landing();
  const std::vector<uffd_msg> landed(landing.begin(), landing.end());
  char* const bytes = reinterpret_cast<char*>(landing.data());
  const size_t size = 3 * sizeof(uffd_msg);
  // Cleared from either end: memset(3) goes as it likes.
  for (size_t cleared = 0; cleared <= size; ++cleared) {
    for (const size_t from : {size_t{0}, size - cleared}) {
      std::memset(bytes + from, 0, cleared);
      EXPECT_EQ(Freed(), expected) << cleared << " bytes from " << from;
      std::copy(landed.begin(), landed.end(), landing.begin());
    }
  }
}

TEST_F(GuestJournalTest, WhatIsGivenUpLacksEvents) {
  Create();
  Read({Removed(1, 1)});
  journal_->GiveUp();
  EXPECT_FALSE(journal_->complete());
  absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_FALSE(left->journal->complete());
}

TEST_F(GuestJournalTest, AForkThatWasNotAnsweredIsTold) {
  Create();
  uffd_msg fork = {};
  fork.event = kUffdEventFork;
  BeginRead({fork});
  absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_TRUE(left->lost_fork);
  journal_->EndRead(1);
  journal_->Answered();
  left = GuestJournal::Open(path_);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_FALSE(left->lost_fork);
}

TEST_F(GuestJournalTest, WhatWasAnsweredIsInTheLogAndCountsOnce) {
  Create();
  Read({Removed(1, 1), Fault(7)});
  journal_->Answered();
  EXPECT_EQ(Freed(), "1+1 ");
  Read({Removed(3, 2)});
  EXPECT_EQ(Freed(), "1+1 3+2 ");
}

TEST_F(GuestJournalTest, OutlivesTheDeathOfItsProcess) {
  const pid_t child = fork();
  if (child == 0) {
    Create();
    Read({Removed(5, 1)});
    BeginRead({Removed(9, 3)});
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(Freed(), "5+1 9+3 ");
}

TEST_F(GuestJournalTest, ADamagedFileIsRefusedByNameAndNeverHalfRead) {
  Create();
  Read({Removed(1, 1)});
  std::string bytes;
  {
    std::ifstream in(path_, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  const auto opened = [&](const std::string& changed) {
    std::filesystem::remove(path_);
    std::ofstream(path_, std::ios::binary) << changed;
    return GuestJournal::Open(path_).status();
  };
  EXPECT_TRUE(opened(bytes).ok());
  for (const size_t size : {size_t{0}, size_t{100}, size_t{4096}}) {
    const absl::Status status = opened(bytes.substr(0, size));
    EXPECT_TRUE(absl::IsDataLoss(status)) << size << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  }
  std::string other = bytes;
  other[0] = 'X';
  EXPECT_THAT(std::string(opened(other).message()), HasSubstr("begins with"));
  other = bytes;
  other[8] = 2;
  EXPECT_THAT(std::string(opened(other).message()), HasSubstr("version 2"));
  // Each byte of the head and the record: an error, or what it was.
  for (size_t at = 0; at < 4096; ++at) {
    other = bytes;
    other[at] = static_cast<char>(other[at] ^ 0x55);
    std::filesystem::remove(path_);
    std::ofstream(path_, std::ios::binary) << other;
    absl::StatusOr<GuestJournal::Left> left = GuestJournal::Open(path_);
    if (left.ok()) {
      EXPECT_EQ(left->journal->record(), record_) << at;
    }
  }
}

TEST_F(GuestJournalTest, AFolderIsForOneServerAndNobodyElseWritesToIt) {
  absl::StatusOr<std::unique_ptr<StateFolder>> first =
      StateFolder::Open(folder_);
  ASSERT_TRUE(first.ok()) << first.status();
  absl::Status second = StateFolder::Open(folder_).status();
  EXPECT_TRUE(absl::IsUnavailable(second)) << second;
  EXPECT_THAT(std::string(second.message()), HasSubstr("another server"));
  // Passed on, the lock stays.
  absl::StatusOr<std::unique_ptr<StateFolder>> next =
      StateFolder::Open(folder_, UniqueFd(dup((*first)->lock())));
  ASSERT_TRUE(next.ok()) << next.status();
  first->reset();
  EXPECT_TRUE(absl::IsUnavailable(StateFolder::Open(folder_).status()));
  next->reset();
  EXPECT_TRUE(StateFolder::Open(folder_).ok());

  chmod(folder_.c_str(), 0777);
  EXPECT_THAT(std::string(StateFolder::Open(folder_).status().message()),
              HasSubstr("has mode 0777; it must"));
  EXPECT_THAT(std::string(StateFolder::Open("/proc").status().message()),
              HasSubstr("not on a tmpfs"));
}

TEST_F(GuestJournalTest, AFolderGivesEachGuestAFile) {
  absl::StatusOr<std::unique_ptr<StateFolder>> folder =
      StateFolder::Open(folder_);
  ASSERT_TRUE(folder.ok()) << folder.status();
  auto one = (*folder)->Add(record_, map_);
  auto two = (*folder)->Add(record_, map_);
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  EXPECT_THAT(*(*folder)->Journals(), SizeIs(2));
  (*one)->Forget();
  (*two)->Forget();
  EXPECT_THAT(*(*folder)->Journals(), IsEmpty());
}

TEST_F(GuestJournalTest, AProcessIsKnownByItsStartToo) {
  GuestRecord record = RecordOf(getpid(), /*uffd=*/0);
  EXPECT_GT(record.start_time_ticks, 0u);
  EXPECT_EQ(record.uffd_number, -1) << "no userfaultfd";
  absl::StatusOr<UniqueFd> process = OpenProcess(record);
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_THAT(
      std::string(DescriptorOf(record, process->get()).status().message()),
      HasSubstr("is not known"));
  record.uffd_number = 0;
  record.uffd_inode = 1;
  const absl::Status other = DescriptorOf(record, process->get()).status();
  EXPECT_FALSE(other.ok()) << "an open file that is no userfaultfd";
  ++record.start_time_ticks;
  EXPECT_TRUE(absl::IsNotFound(OpenProcess(record).status()));
}

}  // namespace
}  // namespace firsttouch
