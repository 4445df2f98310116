// The program, as systemd and a VMM see it.
//
//   firsttouchd_test FIRSTTOUCHD

#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/init/image_store.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/serve/stand_in.h"
#include "firsttouch/tools/firsttouchd/program.h"
#include "firsttouch/uffd/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;

TEST_F(ProgramTest, ServesAGuestFromAFileAndEndsBySigterm) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  Start({"--listen", Socket(), "--image", File()});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(0, 100), Seen{.as_image = 100});
  EXPECT_EQ(End(SIGTERM), 0);
  EXPECT_EQ(Told(), "STOPPING=1");
  EXPECT_THAT(Log(), HasSubstr(absl::StrCat("guest pid ", guest_->pid())));
  // What is not there is lost, and not zero. (Read-ahead has gone on.)
  const Seen rest = guest_->Look(100, 156);
  EXPECT_GT(rest.sigbus, 0u);
  EXPECT_EQ(rest.as_image + rest.sigbus, 156u);
}

TEST_F(ProgramTest, ServesFromAStoreAtASocketOfSystemds) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  {
    absl::StatusOr<std::unique_ptr<ImageStore>> store =
        ImageStore::Open({.directory = folder_ + "/store"});
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->Put("base", *image_).ok());
  }
  const UniqueFd listening = BoundSocket(Socket(), SOCK_STREAM);
  ASSERT_EQ(listen(listening.get(), 8), 0);
  // Connects before there is a server, and waits for it.
  ASSERT_TRUE(guest_->Join(Socket()));
  Start({"--store", folder_ + "/store", "--name", "base"}, listening.get());
  ASSERT_EQ(Told(), "READY=1");
  EXPECT_EQ(guest_->Look(0, kPages), Seen{.as_image = kPages});
}

TEST_F(ProgramTest, KeepsWhatGuestsTouchWithTheImage) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  Start({"--listen", Socket(), "--image", File(), "--record"});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(40, 8), Seen{.as_image = 8});
  guest_->Kill();
  WorkingSet::Words read;
  while (read.empty()) {
    absl::StatusOr<ImageFileInfo> info = ReadImageFileInfo(File());
    ASSERT_TRUE(info.ok()) << info.status();
    read = info->read;
    poll(nullptr, 0, 1);
  }
  EXPECT_EQ(read, (WorkingSet::Words{uint64_t{0xff} << 40}));
}

// The number of a process' userfaultfd among its descriptors.
int UffdOf(pid_t pid) {
  for (const auto& entry : std::filesystem::directory_iterator(
           absl::StrCat("/proc/", pid, "/fd"))) {
    std::error_code error;
    if (std::filesystem::read_symlink(entry, error) ==
        "anon_inode:[userfaultfd]") {
      return std::stoi(entry.path().filename());
    }
  }
  return -1;
}

TEST_F(ProgramTest, AGuestOfAKilledServerWaitsUntilAnotherTakesOver) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  Start({"--listen", Socket(), "--image", File()});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(0, 10), Seen{.as_image = 10});
  EXPECT_EQ(End(SIGKILL), 1000 + SIGKILL);
  guest_->BeginLook(0, kPages);
  // The guest's own, not the one that the test has of it.
  const UniqueFd pidfd = guest_->Pidfd();
  UniqueFd uffd(static_cast<int>(
      syscall(SYS_pidfd_getfd, pidfd.get(), UffdOf(guest_->pid()), 0)));
  if (!uffd) GTEST_SKIP() << "pidfd_getfd: " << std::strerror(errno);
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start({});
  ASSERT_TRUE(server.ok()) << server.status();
  GuestArrival arrival;
  arrival.uffd = std::move(uffd);
  arrival.pidfd = guest_->Pidfd();
  arrival.regions = guest_->regions();
  arrival.image = GuestImage::Create(image_);
  arrival.taken_over = true;
  absl::StatusOr<uint64_t> id = (*server)->Attach(std::move(arrival));
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(guest_->Answer(), Seen{.as_image = kPages});
}

TEST_F(ProgramTest, SaysWhatIsMissing) {
  Start({"--listen", Socket(), "--image", folder_ + "/none"});
  EXPECT_EQ(End(0), 2);
  EXPECT_THAT(Log(), HasSubstr(folder_ + "/none"));
  Start({"--image", File()});
  EXPECT_EQ(End(0), 2);
  EXPECT_THAT(Log(), HasSubstr("there is no socket to listen at"));
  Start({"--listen", Socket()});
  EXPECT_EQ(End(0), 64);
  EXPECT_THAT(Log(), HasSubstr("say either --image FILE, or --store"));
}

TEST_F(ProgramTest, GuestsOfARecordedImageGetItsPagesInTheirOrder) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  const std::unique_ptr<StandIn> second = AnotherGuest();
  Start({"--listen", Socket(), "--image", File(), "--record"});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  guest_->Look(200, 3);
  guest_->Look(40, 8);
  guest_->Kill();
  while (!std::filesystem::exists(File() + ".touches")) poll(nullptr, 0, 1);
  EXPECT_EQ(End(SIGTERM), 0);
  EXPECT_EQ(Told(), "STOPPING=1");
  Start({"--listen", Socket(), "--image", File(), "--metrics",
         folder_ + "/metrics"});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(second->Join(Socket()));
  // All eleven pages, before any is touched.
  while (Ask(folder_ + "/metrics", "GET /metrics HTTP/1.0\r\n\r\n")
             .find("firsttouchd_pages_placed_early_total 11\n") ==
         std::string::npos) {
    poll(nullptr, 0, 1);
  }
  EXPECT_EQ(second->Look(0, kPages), Seen{.as_image = kPages});
  EXPECT_EQ(End(SIGTERM), 0);
  // Damaged, it is told and not used.
  std::filesystem::permissions(File() + ".touches",
                               std::filesystem::perms::owner_all);
  std::ofstream(File() + ".touches", std::ios::app) << "x";
  EXPECT_EQ(Told(), "STOPPING=1");
  Start({"--listen", Socket(), "--image", File()});
  ASSERT_EQ(Told(), "READY=1");
  EXPECT_THAT(Log(), HasSubstr("the order of touches is not used: " + File() +
                               ".touches: this is no file of touches: it does "
                               "not match its digest"));
}

TEST_F(ProgramTest, TellsNumbersAsOpenMetricsText) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  Start({"--listen", Socket(), "--image", File(), "--metrics",
         folder_ + "/metrics"});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(0, kPages), Seen{.as_image = kPages});
  const std::string answer =
      Ask(folder_ + "/metrics", "GET /metrics HTTP/1.1\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("HTTP/1.0 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("application/openmetrics-text; version=1.0.0"));
  EXPECT_THAT(answer, HasSubstr("\nfirsttouchd_guests 1\n"));
  EXPECT_THAT(answer, HasSubstr("_pages_placed_total{from=\"image\"} 192\n"));
  EXPECT_THAT(answer, HasSubstr("_pages_placed_total{from=\"zero\"} 64\n"));
  EXPECT_THAT(answer, HasSubstr("_guest_memory_bytes 1048576\n"));
  guest_->Kill();
  while (Ask(folder_ + "/metrics", "GET").find("_guests_ended_total 1\n") ==
         std::string::npos) {
    poll(nullptr, 0, 1);
  }
  // What a guest did is counted when it is gone, too.
  EXPECT_THAT(Ask(folder_ + "/metrics", "GET"),
              HasSubstr("_pages_placed_total{from=\"image\"} 192\n"));
}

TEST_F(ProgramTest, TellsSystemdsWatchdogThatItIsWell) {
  environment_ = {{"WATCHDOG_USEC", "2000"}};
  Start({"--listen", Socket(), "--image", File()});
  EXPECT_EQ(Told(), "READY=1");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Told(), "WATCHDOG=1");
}

TEST_F(ProgramTest, AConfigurationHasImagesAndPoliciesByTheSocket) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  const std::unique_ptr<StandIn> second = AnotherGuest();
  {
    absl::StatusOr<std::unique_ptr<ImageStore>> store =
        ImageStore::Open({.directory = folder_ + "/store"});
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->Put("base", *image_).ok());
  }
  const std::string config = folder_ + "/config";
  std::ofstream(config) << "image { name: 'a' file: '" << File()
                        << "' }\nimage { name: 'b' store: '" << folder_
                        << "/store' name_in_store: 'base' }\nlisten { path: '"
                        << Socket() << "' image: 'a' }\nlisten { path: '"
                        << Socket() << "2' image: 'b' user_id: 4711 }\n"
                        << "listen { path: '" << Socket()
                        << "3' image: 'b' }\n";
  Start({"--config", config});
  ASSERT_EQ(Told(), "READY=1");
  EXPECT_THAT(Ask(Socket() + "2", "[]"), HasSubstr("is not served here"));
  ASSERT_TRUE(guest_->Join(Socket()));
  ASSERT_TRUE(second->Join(Socket() + "3"));
  EXPECT_EQ(guest_->Look(0, kPages), Seen{.as_image = kPages});
  EXPECT_EQ(second->Look(0, kPages), Seen{.as_image = kPages});
  EXPECT_EQ(End(SIGTERM), 0);

  std::ofstream(config) << "image {\n  file: 'x'\n}\nretry: '5s'\n";
  Start({"--config", config});
  EXPECT_EQ(End(0), 64);
  EXPECT_THAT(Log(), HasSubstr(config + ":4:6: "));
}

TEST_F(ProgramTest, AStoreThatIsDamagedIsSigbusAndNeverBytes) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  {
    absl::StatusOr<std::unique_ptr<ImageStore>> store =
        ImageStore::Open({.directory = folder_ + "/store"});
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->Put("base", *image_).ok());
  }
  for (const auto& entry :
       std::filesystem::directory_iterator(folder_ + "/store/segments")) {
    std::filesystem::permissions(entry, std::filesystem::perms::owner_all);
    std::fstream file(entry.path(),
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-100, std::ios::end);
    file << "other bytes";
  }
  Start(
      {"--listen", Socket(), "--store", folder_ + "/store", "--name", "base"});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(0, kPages), (Seen{.as_image = 64, .sigbus = 192}))
      << "what the image does not store is zero, and known to be";
  EXPECT_THAT(Log(), HasSubstr("image 'base' does not match its digest"));
}

TEST_F(ProgramTest, AnImageThatIsRemovedOrReplacedIsServedOnAsItWas) {
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  Start({"--listen", Socket(), "--image", File()});
  ASSERT_EQ(Told(), "READY=1");
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(0, 1), Seen{.as_image = 1});
  ASSERT_TRUE(std::filesystem::remove(File()));
  EXPECT_EQ(guest_->Look(0, 100), Seen{.as_image = 100});
  std::ofstream(File()) << "another one";
  EXPECT_EQ(guest_->Look(0, kPages), Seen{.as_image = kPages});
}

TEST_F(ProgramTest, ServesAsAnOrdinaryUser) {
  if (geteuid() != 0) GTEST_SKIP() << "it is one already";
  if (getpwnam("nobody") == nullptr) GTEST_SKIP() << "there is no user nobody";
  if (!MakeGuest()) GTEST_SKIP() << skip_;
  Start({"--listen", Socket(), "--image", File(), "--user", "nobody"});
  ASSERT_EQ(Told(), "READY=1");
  struct stat status;
  ASSERT_EQ(stat(absl::StrCat("/proc/", pid_).c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, getpwnam("nobody")->pw_uid);
  ASSERT_TRUE(guest_->Join(Socket()));
  EXPECT_EQ(guest_->Look(0, kPages), Seen{.as_image = kPages});
}

}  // namespace
}  // namespace firsttouch

int main(int argc, char** argv) {
  return firsttouch::RunProgramTests(argc, argv);
}
