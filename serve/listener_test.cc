#include "firsttouch/serve/listener.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/serve/client.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/handshake.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/serve/stand_in.h"
#include "firsttouch/serve/test_image.h"
#include "firsttouch/serve/unix_socket.h"
#include "firsttouch/uffd/mutex.h"
#include "firsttouch/uffd/test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using Seen = StandIn::Seen;

constexpr uint64_t kPages = 64;

// A client that sends what it is told to.
class RawClient {
 public:
  explicit RawClient(const std::string& path)
      : socket_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const sockaddr_un address = SocketAddress(path).value();
    connected_ =
        connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address),
                sizeof address) == 0;
  }

  bool connected() const { return connected_; }

  void Send(const std::string& text, const std::vector<int>& descriptors) {
    SendWithDescriptors(socket_.get(), text, descriptors);
  }

  void EndSending() { shutdown(socket_.get(), SHUT_WR); }

  // All that comes until the connection ends, or the first line.
  std::string Answer() {
    std::string answer;
    while (answer.find('\n') == std::string::npos) {
      pollfd waits = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
      if (poll(&waits, 1, 60'000) != 1) return answer + " (no more came)";
      std::array<char, 512> bytes;
      const ssize_t count = recv(socket_.get(), bytes.data(), bytes.size(), 0);
      if (count <= 0) break;
      answer.append(bytes.data(), count);
    }
    return answer;
  }

 private:
  UniqueFd socket_;
  bool connected_ = false;
};

class ListenerTest : public ::testing::Test {
 protected:
  ListenerTest()
      : path_(absl::StrCat("/tmp/serve-", getpid(), "-", ++sockets_)) {}
  ~ListenerTest() override {
    listener_.reset();
    server_.reset();
    std::filesystem::remove(path_);
  }

  bool MakeStandIn() {
    absl::StatusOr<std::unique_ptr<StandIn>> started =
        StandIn::Start({.image = image_, .pages = kPages});
    if (!started.ok()) {
      skip_ = std::string(started.status().message());
      return false;
    }
    stand_in_ = *std::move(started);
    return true;
  }

  void Listen(ListenerOptions options = {}) {
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start({});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    absl::StatusOr<UniqueFd> socket = ListenAt(path_);
    ASSERT_TRUE(socket.ok()) << socket.status();
    options.image = [image = GuestImage::Create(image_)](const PeerProcess&) {
      return image;
    };
    options.tell = [this](const std::string& text) {
      MutexLock lock(&mutex_);
      absl::StrAppend(&told_, text, "\n");
    };
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Start(*server_, *std::move(socket), std::move(options));
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
  }

  std::string told() {
    MutexLock lock(&mutex_);
    return told_;
  }

  // What a client is told that sends this.
  std::string AnswerTo(const std::string& text,
                       const std::vector<int>& descriptors) {
    RawClient client(path_);
    client.Send(text, descriptors);
    client.EndSending();
    return client.Answer();
  }

  inline static int sockets_ = 0;
  const std::string path_;
  const ImageRef image_ = TestImage(kPages);
  std::string skip_;
  std::unique_ptr<StandIn> stand_in_;
  Mutex mutex_;
  std::string told_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Server> server_;
  std::unique_ptr<Listener> listener_;
};

TEST_F(ListenerTest, AGuestThatComesAsFirecrackerDoesIsServed) {
  if (!MakeStandIn()) GTEST_SKIP() << skip_;
  Listen();
  const UniqueFd uffd = stand_in_->Uffd();
  RawClient client(path_);
  client.Send(RegionsText(stand_in_->regions()), {uffd.get()});
  EXPECT_EQ(client.Answer(), "{\"ok\":true}\n");
  EXPECT_EQ(stand_in_->Look(0, kPages), Seen{.as_image = kPages});
}

TEST_F(ListenerTest, AConnectionThatEndsAfterItsMessageHarmsNobody) {
  if (!MakeStandIn()) GTEST_SKIP() << skip_;
  Listen();
  const UniqueFd uffd = stand_in_->Uffd();
  EXPECT_EQ(AnswerTo(RegionsText(stand_in_->regions()), {uffd.get()}),
            "{\"ok\":true}\n");
  EXPECT_EQ(stand_in_->Look(0, kPages), Seen{.as_image = kPages});
}

TEST_F(ListenerTest, AMessageInPiecesIsPutTogether) {
  if (!MakeStandIn()) GTEST_SKIP() << skip_;
  Listen();
  const UniqueFd uffd = stand_in_->Uffd();
  const std::string text = RegionsText(stand_in_->regions());
  RawClient client(path_);
  client.Send(text.substr(0, 10), {uffd.get()});
  client.Send(text.substr(10), {});
  EXPECT_EQ(client.Answer(), "{\"ok\":true}\n");
  EXPECT_EQ(stand_in_->Look(0, kPages), Seen{.as_image = kPages});
}

TEST_F(ListenerTest, GarbageIsRefusedByNameAndCostsOthersNothing) {
  if (!MakeStandIn()) GTEST_SKIP() << skip_;
  Listen();
  const UniqueFd uffd = stand_in_->Uffd();
  const UniqueFd second = stand_in_->Uffd();
  const UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const std::string text = RegionsText(stand_in_->regions());
  EXPECT_THAT(AnswerTo("hello", {}), HasSubstr("does not begin with"));
  EXPECT_THAT(AnswerTo("[nonsense]", {uffd.get()}), HasSubstr("no JSON array"));
  EXPECT_THAT(AnswerTo("[{", {uffd.get()}),
              HasSubstr("the connection ended after 2 bytes"));
  EXPECT_THAT(AnswerTo("", {}), HasSubstr("ended after 0 bytes"));
  EXPECT_THAT(AnswerTo(text, {}), HasSubstr("no descriptor"));
  EXPECT_THAT(AnswerTo(text, {uffd.get(), second.get()}),
              HasSubstr("several descriptors"));
  EXPECT_THAT(AnswerTo(text, std::vector<int>(16, null.get())),
              HasSubstr("several descriptors"));
  EXPECT_THAT(AnswerTo(text, {null.get()}), HasSubstr("no userfaultfd"));
  std::vector<GuestRegion> regions = stand_in_->regions();
  regions.push_back(regions[0]);
  EXPECT_THAT(AnswerTo(RegionsText(regions), {uffd.get()}),
              HasSubstr("regions 0 and 1 overlap"));
  regions = stand_in_->regions();
  regions[0].image_offset_bytes = kPageBytes;
  EXPECT_THAT(AnswerTo(RegionsText(regions), {uffd.get()}),
              HasSubstr("is this the image of this guest?"));
  EXPECT_THAT(AnswerTo("[" + std::string(70'000, ' '), {}),
              HasSubstr("more than 65536 bytes"));
  EXPECT_THAT(told(), HasSubstr(absl::StrCat("pid ", getpid())));
  EXPECT_THAT(server_->guests(), SizeIs(0));
  // And the next one is served.
  EXPECT_EQ(AnswerTo(text, {uffd.get()}), "{\"ok\":true}\n");
  EXPECT_EQ(stand_in_->Look(0, kPages), Seen{.as_image = kPages});
}

TEST_F(ListenerTest, AClientThatStallsIsDroppedAndHoldsUpNobody) {
  if (!MakeStandIn()) GTEST_SKIP() << skip_;
  Listen({.handshake_deadline = std::chrono::milliseconds(50)});
  RawClient stalls(path_);
  stalls.Send("[", {});
  const UniqueFd uffd = stand_in_->Uffd();
  EXPECT_EQ(AnswerTo(RegionsText(stand_in_->regions()), {uffd.get()}),
            "{\"ok\":true}\n");
  EXPECT_EQ(stand_in_->Look(0, kPages), Seen{.as_image = kPages});
  EXPECT_THAT(stalls.Answer(), HasSubstr("no complete message came within 50"));
}

TEST_F(ListenerTest, OnlySoManyWaitAtATime) {
  Listen({.handshake_deadline = std::chrono::hours(1), .max_waiting = 2});
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 2; ++i) {
    clients.push_back(std::make_unique<RawClient>(path_));
    ASSERT_TRUE(clients.back()->connected());
  }
  EXPECT_THAT(AnswerTo("", {}), HasSubstr("2 connections wait"));
  clients.pop_back();
  // That one's end may be seen a little later.
  while (AnswerTo("hello", {}).find("does not begin") == std::string::npos) {
  }
}

TEST_F(ListenerTest, OtherUsersAreRefusedWhereUsersAreNamed) {
  Listen({.users = {getuid() + 1}});
  EXPECT_THAT(AnswerTo("hello", {}),
              HasSubstr(absl::StrCat("user ", getuid(), " is not served")));
}

TEST_F(ListenerTest, APathIsTakenFromNobodyWhoListens) {
  Listen();
  EXPECT_EQ(ListenAt(path_).status().code(), absl::StatusCode::kAlreadyExists);
  listener_.reset();
  EXPECT_TRUE(ListenAt(path_).ok()) << "left behind by a server that has died";
  std::filesystem::remove(path_);
  std::ofstream(path_) << "a file";
  EXPECT_THAT(std::string(ListenAt(path_).status().message()),
              HasSubstr("no socket"));
  EXPECT_THAT(std::string(ListenAt(std::string(200, 'x')).status().message()),
              HasSubstr("it may have 1 to 107"));
}

TEST_F(ListenerTest, ARefusedClientMayBeKilledSinceItWouldWaitForEver) {
  Listen({.kill_refused = true});
  const ChildResult child = RunInChild([this]() -> std::string {
    absl::StatusOr<Uffd> uffd = Uffd::Open(RealKernel(), {});
    if (!uffd.ok()) return "skip";
    RawClient client(path_);
    client.Send("[nonsense]", {uffd->fd()});
    pause();
    return "goes on";
  });
  if (child.output == "skip") GTEST_SKIP() << "no userfaultfd";
  EXPECT_EQ(child.signal, SIGKILL);
  EXPECT_THAT(told(), HasSubstr("it is killed"));
}

// ---- The client library -----------------------------------------------------

// Memory of a child that has it served, and what it finds there.
std::string UseClient(const std::string& path, const Image& image,
                      uint64_t take_back_after) {
  const ScratchMemory memory(kPages * kPageBytes);
  const std::vector<GuestRegion> regions = {
      {.start = memory.address(), .bytes = memory.bytes()}};
  absl::StatusOr<std::unique_ptr<Client>> client =
      Client::Connect(path, regions);
  if (!client.ok()) return client.status().ToString();
  for (uint64_t page = 0; page < kPages; ++page) {
    if (page == take_back_after) {
      const absl::Status back = (*client)->TakeBack(absl::Minutes(1));
      if (!back.ok()) return back.ToString();
      client->reset();
    }
    if (std::memcmp(memory.data() + page * kPageBytes,
                    image.PageBytes(PageIndex(page)), kPageBytes) != 0) {
      return absl::StrCat("page ", page, " is not the image's");
    }
  }
  return "all pages";
}

TEST_F(ListenerTest, AClientGetsItsMemoryServedAndTakesItBack) {
  Listen();
  for (const uint64_t after : {kPages, uint64_t{0}, uint64_t{10}}) {
    const ChildResult child =
        RunInChild([&] { return UseClient(path_, *image_, after); });
    if (child.output.find("PERMISSION_DENIED") != std::string::npos) {
      GTEST_SKIP() << child.output;
    }
    EXPECT_EQ(child.output, "all pages");
  }
}

TEST_F(ListenerTest, AClientIsToldWhyItIsRefused) {
  Listen();
  const ChildResult child = RunInChild([this]() -> std::string {
    const ScratchMemory memory(2 * kPages * kPageBytes);
    const std::vector<GuestRegion> regions = {
        {.start = memory.address(), .bytes = memory.bytes()}};
    return Client::Connect(path_, regions).status().ToString();
  });
  if (child.output.find("PERMISSION_DENIED") != std::string::npos) {
    GTEST_SKIP() << child.output;
  }
  EXPECT_THAT(child.output, HasSubstr("the server says: the region at"));
  EXPECT_THAT(child.output, HasSubstr("is this the image of this guest?"));
}

TEST_F(ListenerTest, AClientWithoutAServerSaysWhere) {
  const std::vector<GuestRegion> regions = {{.start = 4096, .bytes = 4096}};
  const absl::Status none =
      Client::Connect("/tmp/nobody-listens-here", regions).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.message()),
              HasSubstr("/tmp/nobody-listens-here"));
}

TEST_F(ListenerTest, AClientDoesNotWaitForEverToBeAccepted) {
  const UniqueFd full(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = SocketAddress(path_).value();
  const auto* const to = reinterpret_cast<const sockaddr*>(&address);
  ASSERT_EQ(bind(full.get(), to, sizeof address), 0);
  ASSERT_EQ(listen(full.get(), 0), 0);
  const UniqueFd waits(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(connect(waits.get(), to, sizeof address), 0);
  const std::vector<GuestRegion> regions = {{.start = 4096, .bytes = 4096}};
  const absl::Status late =
      Client::Connect(path_, regions,
                      {.answer_deadline = absl::Milliseconds(1)})
          .status();
  EXPECT_EQ(late.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(late.message()), HasSubstr("has not accepted"));
}

}  // namespace
}  // namespace firsttouch
