// What becomes of guests when firsttouchd dies, or gives way to another.
//
//   survival_test FIRSTTOUCHD

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/serve/stand_in.h"
#include "firsttouch/serve/test_image.h"
#include "firsttouch/serve/unix_socket.h"
#include "firsttouch/tools/firsttouchd/program.h"
#include "firsttouch/uffd/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class SurvivalTest : public ProgramTest {
 protected:
  std::vector<std::string> Words() const {
    return {"--listen", Socket(), "--image", File(), "--state", State()};
  }
  std::vector<std::string> Replacing() const {
    std::vector<std::string> words = Words();
    words.push_back("--replace");
    return words;
  }

  // A guest that is served by a firsttouchd with a state. False: skip_.
  bool Serve(const std::vector<std::string>& words) {
    if (guest_ == nullptr && !MakeGuest()) return false;
    Start(words);
    EXPECT_EQ(Told(), "READY=1");
    EXPECT_TRUE(guest_->Join(Socket()));
    EXPECT_EQ(guest_->Look(0, 1), Seen{.as_image = 1});
    if (Log().find("but not taken over after a kill") != std::string::npos) {
      skip_ = Log();
      return false;
    }
    return true;
  }

  // Whether this process may take descriptors of others'.
  bool Restart() {
    Start(Words());
    EXPECT_EQ(Told(), "READY=1");
    if (Log().find("pidfd_getfd") == std::string::npos) return true;
    skip_ = Log();
    return false;
  }

  std::vector<std::string> Journals() const {
    std::vector<std::string> paths;
    for (const auto& entry : std::filesystem::directory_iterator(State())) {
      if (entry.path().filename().string().find("guest-") == 0) {
        paths.push_back(entry.path());
      }
    }
    return paths;
  }
};

TEST_F(SurvivalTest, TheGuestsOfAKilledServerGoOnWithTheNext) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  guest_->BeginLook(0, kPages);  // Waits.
  if (!Restart()) GTEST_SKIP() << skip_;
  EXPECT_EQ(guest_->Answer(), Seen{.as_image = kPages});
  EXPECT_THAT(Log(), HasSubstr(absl::StrCat("guest pid ", guest_->pid(),
                                            " is taken over")));
}

TEST_F(SurvivalTest, WhatWasGivenBackBeforeTheKillStaysZero) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  ASSERT_TRUE(guest_->GiveBack(8, 16));
  ASSERT_TRUE(guest_->Move(32, 8));
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  if (!Restart()) GTEST_SKIP() << skip_;
  // Once more, from what the second one has written.
  ASSERT_TRUE(guest_->GiveBack(64, 4));
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  if (!Restart()) GTEST_SKIP() << skip_;
  EXPECT_EQ(guest_->Look(0, kPages),
            (Seen{.as_image = kPages - 15, .zero = 15}));
}

TEST_F(SurvivalTest, KilledAtAnyMomentOldBytesNeverComeBack) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  // Threads touch all pages again and again, while one gives pages back and
  // knows which.
  guest_->BeginRace(3, 400);
  for (int i = 0; i < 6; ++i) {
    // Some progress, and then an instant that nobody chose.
    poll(nullptr, 0, 3 * i);
    EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
    if (!Restart()) GTEST_SKIP() << skip_;
  }
  const Seen seen = guest_->Answer();
  EXPECT_FALSE(seen.hung);
  EXPECT_EQ(seen.other, 0u)
      << "bytes of the image, or zeroes, in a wrong place";
  EXPECT_EQ(seen.sigbus, 0u);
}

TEST_F(SurvivalTest, AGuestThatDiesMeanwhileIsForgotten) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  EXPECT_EQ(Journals().size(), 1u);
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  const pid_t dead = guest_->pid();
  guest_->Kill();
  if (!Restart()) GTEST_SKIP() << skip_;
  EXPECT_EQ(Journals().size(), 0u);
  EXPECT_THAT(Log(), HasSubstr(absl::StrCat("process ", dead, " has ended")));
}

TEST_F(SurvivalTest, AGuestThatDiesWhileItIsServedLeavesNoRecord) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  guest_->Kill();
  while (!Journals().empty()) poll(nullptr, 0, 1);
}

TEST_F(SurvivalTest, AGuestIsNeverServedFromAnotherImage) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  ASSERT_TRUE(WriteImageFile(*TestImage(kPages / 2), File() + "2").ok());
  guest_->BeginLook(0, kPages);
  Start({"--listen", Socket(), "--image", File() + "2", "--state", State()});
  EXPECT_EQ(Told(), "READY=1");
  EXPECT_THAT(Log(), HasSubstr("is not taken over: its image " + File()));
  EXPECT_EQ(Journals().size(), 1u);
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  // The right one.
  if (!Restart()) GTEST_SKIP() << skip_;
  EXPECT_EQ(guest_->Answer(), Seen{.as_image = kPages});
}

TEST_F(SurvivalTest, ADamagedRecordIsRefusedByNameAndCostsOthersNothing) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  const std::string damaged = State() + "/guest-0-0";
  std::ofstream(damaged) << "nonsense";
  guest_->BeginLook(0, kPages);
  if (!Restart()) GTEST_SKIP() << skip_;
  EXPECT_EQ(guest_->Answer(), Seen{.as_image = kPages});
  EXPECT_THAT(Log(), HasSubstr("guest-0-0 is not taken over: " + damaged +
                               ": this is no record of a guest"));
}

TEST_F(SurvivalTest, ByDefaultASigtermLeavesGuestsToTheNextOne) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  EXPECT_EQ(End(SIGTERM), 0);
  EXPECT_EQ(Told(), "STOPPING=1");
  guest_->BeginLook(0, kPages);
  if (!Restart()) GTEST_SKIP() << skip_;
  EXPECT_EQ(guest_->Answer(), Seen{.as_image = kPages});
}

TEST_F(SurvivalTest, ANewServerReplacesTheOldWithoutAFaultLost) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  guest_->BeginRace(3, 400);
  for (int i = 0; i < 4; ++i) {
    StartBeside(Replacing());
    EXPECT_EQ(Told(), "READY=1");
    EXPECT_EQ(EndOf(before_, 0), 0);
  }
  const Seen seen = guest_->Answer();
  EXPECT_FALSE(seen.hung);
  EXPECT_EQ(seen.other, 0u);
  EXPECT_EQ(seen.sigbus, 0u);
  EXPECT_GT(seen.as_image, 0u);
  EXPECT_THAT(Log(), HasSubstr("another firsttouchd goes on with 1 guests"));
  // The sockets have come along.
  const std::unique_ptr<StandIn> second = AnotherGuest();
  ASSERT_TRUE(second->Join(Socket()));
  EXPECT_EQ(second->Look(0, kPages), Seen{.as_image = kPages});
}

TEST_F(SurvivalTest, AServerThatLacksTheImageDoesNotReplaceTheOld) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  ASSERT_TRUE(WriteImageFile(*TestImage(kPages / 2), File() + "2").ok());
  StartBeside({"--listen", Socket(), "--image", File() + "2", "--state",
               State(), "--replace"});
  EXPECT_EQ(End(0), 2);
  EXPECT_EQ(Told(), "READY=1") << "the old one, again";
  EXPECT_EQ(guest_->Look(0, kPages), Seen{.as_image = kPages});
  EXPECT_THAT(Log(), HasSubstr("cannot be served by this one"));
}

TEST_F(SurvivalTest, AServerWhoseSuccessorDiesGoesOn) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  ASSERT_TRUE(guest_->GiveBack(8, 4));
  {
    const UniqueFd dies(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const sockaddr_un address = SocketAddress(State() + "/successor").value();
    ASSERT_EQ(connect(dies.get(), reinterpret_cast<const sockaddr*>(&address),
                      sizeof address),
              0);
    char first[8] = {};
    EXPECT_EQ(recv(dies.get(), first, sizeof first, 0), 4);
    EXPECT_STREQ(first, "lock");
  }
  EXPECT_EQ(Told(), "READY=1") << "again";
  EXPECT_EQ(guest_->Look(0, kPages), (Seen{.as_image = kPages - 3, .zero = 3}));
  EXPECT_THAT(Log(), HasSubstr("nobody has taken over, and this server goes "
                               "on"));
}

TEST_F(SurvivalTest, GuestsOfASuccessorThatDiesJustAfterItHasTakenThemGoOn) {
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  ASSERT_TRUE(guest_->GiveBack(8, 4));
  {
    const UniqueFd dies(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const sockaddr_un address = SocketAddress(State() + "/successor").value();
    ASSERT_EQ(connect(dies.get(), reinterpret_cast<const sockaddr*>(&address),
                      sizeof address),
              0);
    std::string text;
    do {
      std::array<char, 256> bytes = {};
      ASSERT_GT(recv(dies.get(), bytes.data(), bytes.size() - 1, 0), 0);
      text = bytes.data();
    } while (text != "end");
    ASSERT_EQ(send(dies.get(), "taken", 5, 0), 5);
  }
  EXPECT_EQ(End(0), 0) << "the old one has nothing to do any more";
  EXPECT_EQ(Journals().size(), 1u);
  guest_->BeginLook(0, kPages);  // Waits.
  if (!Restart()) GTEST_SKIP() << skip_;
  EXPECT_EQ(guest_->Answer(), (Seen{.as_image = kPages - 3, .zero = 3}));
}

// A successor may take longer than a watchdog waits.
TEST_F(SurvivalTest, TheWatchdogIsToldAlsoWhileASuccessorThinks) {
  environment_ = {{"WATCHDOG_USEC", "2000"}};
  if (!Serve(Words())) GTEST_SKIP() << skip_;
  const UniqueFd thinks(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const sockaddr_un address = SocketAddress(State() + "/successor").value();
  ASSERT_EQ(connect(thinks.get(), reinterpret_cast<const sockaddr*>(&address),
                    sizeof address),
            0);
  std::string text;
  do {
    std::array<char, 256> bytes = {};
    ASSERT_GT(recv(thinks.get(), bytes.data(), bytes.size() - 1, 0), 0);
    text = bytes.data();
  } while (text != "end");
  // What it was told before that.
  char byte;
  while (recv(notify_.get(), &byte, 1, MSG_DONTWAIT) > 0) {
  }
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Told(), "WATCHDOG=1");
}

TEST_F(SurvivalTest, OneStateHasOneServer) {
  Start(Words());
  ASSERT_EQ(Told(), "READY=1");
  before_ = pid_;
  Start({"--listen", Socket() + "2", "--image", File(), "--state", State()});
  EXPECT_EQ(End(0), 2);
  EXPECT_THAT(Log(), HasSubstr("another server uses this state"));
  // --replace where there is none starts like any.
  EXPECT_EQ(EndOf(before_, SIGKILL), 1000 + SIGKILL);
  Start(Replacing());
  EXPECT_EQ(Told(), "READY=1");
}

TEST_F(SurvivalTest, SystemdKeepsDescriptorsForTheNextStart) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  std::vector<std::string> words = Words();
  words.push_back("--keep-descriptors");
  Start(words);
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  const std::string told = Told();
  ASSERT_THAT(told, StartsWith("FDSTORE=1\nFDNAME=guest-"));
  const std::string name = std::filesystem::path(Journals().at(0)).filename();
  EXPECT_EQ(told, "FDSTORE=1\nFDNAME=" + name + "\nFDPOLL=0");
  UniqueFd kept = std::move(told_);
  ASSERT_TRUE(kept);
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  guest_->BeginLook(0, kPages);
  Start(words, kept.get(), name);
  EXPECT_EQ(Told(), "READY=1");
  EXPECT_EQ(guest_->Answer(), Seen{.as_image = kPages});
  guest_->Kill();
  EXPECT_EQ(Told(), "FDSTOREREMOVE=1\nFDNAME=" + name);
}

TEST_F(SurvivalTest, SystemdKeepsNoDescriptorOfAGuestThatIsRefused) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  ASSERT_TRUE(WriteImageFile(*TestImage(kPages / 2), File() + "2").ok());
  Start({"--listen", Socket(), "--image", File() + "2", "--state", State(),
         "--keep-descriptors"});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_THAT(Told(), StartsWith("FDSTORE=1\nFDNAME=guest-"));
  EXPECT_THAT(Told(), StartsWith("FDSTOREREMOVE=1\nFDNAME=guest-"));
  EXPECT_EQ(Journals().size(), 0u);
}

}  // namespace
}  // namespace firsttouch

int main(int argc, char** argv) {
  return firsttouch::RunProgramTests(argc, argv);
}
