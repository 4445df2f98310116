// Virtual machines that go on from a snapshot whose memory a server fills: what
// the guest finds there, through KVM.

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/serve/address_map.h"
#include "firsttouch/serve/client.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/listener.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/tests/kvm/tiny_vm.h"
#include "firsttouch/uffd/test_util.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

using Answer = TinyVm::Answer;

constexpr uint64_t kMemoryBytes = uint64_t{8} << 20;
constexpr uint64_t kMemoryPages = kMemoryBytes / kPageBytes;
// Where the pattern is, and where nothing was ever written.
constexpr uint64_t kPattern = 512;
constexpr uint64_t kPatternPages = 600;
constexpr uint64_t kUntouched = 1500;
constexpr uint64_t kUntouchedPages = kMemoryPages - kUntouched;
constexpr uint32_t kSeed = 4711;

// What a machine goes on from.
struct Snapshot {
  std::string file;  // The memory.
  TinyVm::Processor processor;
};

// A process that serves an image at a socket.
class ServerProcess {
 public:
  ServerProcess(const std::string& image, const std::string& socket) {
    absl::StatusOr<UniqueFd> listening = ListenAt(socket);
    if (!listening.ok()) return;
    pid_ = fork();
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    Serve(image, *std::move(listening));
  }
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;
  ~ServerProcess() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

 private:
  [[noreturn]] static void Serve(const std::string& path, UniqueFd listening) {
    absl::StatusOr<std::shared_ptr<GuestImage>> image =
        GuestImage::OpenFile(path);
    if (!image.ok()) _exit(1);
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start({});
    if (!server.ok()) _exit(1);
    ListenerOptions options;
    options.image = [&](const PeerProcess&) { return *image; };
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Start(**server, std::move(listening), options);
    if (!listener.ok()) _exit(1);
    while (true) pause();
  }

  pid_t pid_ = -1;
};

// A machine, its memory, and who fills it.
struct Restored {
  std::unique_ptr<ServerProcess> server;
  std::unique_ptr<ScratchMemory> memory;
  std::unique_ptr<Client> client;
  std::unique_ptr<TinyVm> vm;

  std::span<std::byte> bytes() const { return BytesOf(*memory); }
  static std::span<std::byte> BytesOf(const ScratchMemory& memory) {
    return {reinterpret_cast<std::byte*>(memory.data()), memory.bytes()};
  }
};

class KvmTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string folder = "/tmp/firsttouch-kvm-XXXXXX";
    folder_ = mkdtemp(folder.data());
    ScratchMemory memory(kMemoryBytes);
    TinyVm::WriteProgram(Restored::BytesOf(memory));
    absl::StatusOr<std::unique_ptr<TinyVm>> vm =
        TinyVm::Create(Restored::BytesOf(memory));
    if (vm.status().code() == absl::StatusCode::kUnavailable) {
      GTEST_SKIP() << vm.status().message();
    }
    ASSERT_TRUE(vm.ok()) << vm.status();
    EXPECT_EQ(Does(**vm, TinyVm::kFill, kPattern, kPatternPages),
              (Answer{.as_pattern = kPatternPages}));
    first_ = Save(**vm, Restored::BytesOf(memory), "first.ftimg");
  }
  ~KvmTest() override { std::filesystem::remove_all(folder_); }

  static Answer Does(TinyVm& vm, TinyVm::What what, uint64_t first,
                     uint64_t pages, uint32_t seed = kSeed) {
    absl::StatusOr<Answer> answer = vm.Order(what, first, pages, seed);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.value_or(Answer());
  }

  // Pauses the machine and keeps what it is.
  Snapshot Save(TinyVm& vm, std::span<std::byte> memory,
                const std::string& name) {
    Snapshot snapshot;
    absl::StatusOr<TinyVm::Processor> processor = vm.Pause();
    EXPECT_TRUE(processor.ok()) << processor.status();
    if (processor.ok()) snapshot.processor = *processor;
    snapshot.file = folder_ + "/" + name;
    absl::StatusOr<ImageRef> image =
        ImageFromBytes({.name = name, .size_bytes = memory.size()}, memory);
    EXPECT_TRUE(image.ok()) << image.status();
    if (image.ok()) {
      EXPECT_TRUE(WriteImageFile(**image, snapshot.file).ok());
    }
    return snapshot;
  }

  // A machine that goes on from there. Null, with `skip_` set: the kernel does
  // not let this process have faults of KVM's served.
  std::unique_ptr<Restored> Restore(const Snapshot& snapshot) {
    auto restored = std::make_unique<Restored>();
    const std::string socket = absl::StrCat(snapshot.file, ".sock");
    restored->server = std::make_unique<ServerProcess>(snapshot.file, socket);
    restored->memory = std::make_unique<ScratchMemory>(kMemoryBytes);
    const GuestRegion region = {.start = restored->memory->address(),
                                .bytes = kMemoryBytes};
    absl::StatusOr<std::unique_ptr<Client>> client =
        Client::Connect(socket, {&region, 1}, {.kernel_faults = true});
    if (client.status().code() == absl::StatusCode::kPermissionDenied) {
      skip_ = std::string(client.status().message());
      return nullptr;
    }
    EXPECT_TRUE(client.ok()) << client.status();
    if (!client.ok()) return nullptr;
    restored->client = *std::move(client);
    absl::StatusOr<std::unique_ptr<TinyVm>> vm =
        TinyVm::Create(restored->bytes(), &snapshot.processor);
    EXPECT_TRUE(vm.ok()) << vm.status();
    if (!vm.ok()) return nullptr;
    restored->vm = *std::move(vm);
    return restored;
  }

  // As a balloon does.
  static void GiveBack(const Restored& restored, uint64_t first,
                       uint64_t pages) {
    EXPECT_EQ(madvise(restored.memory->data() + first * kPageBytes,
                      pages * kPageBytes, MADV_DONTNEED),
              0);
  }

  std::string folder_;
  std::string skip_;
  Snapshot first_;
};

TEST_F(KvmTest, ARestoredGuestFindsWhatItHasLeft) {
  const std::unique_ptr<Restored> guest = Restore(first_);
  if (guest == nullptr) GTEST_SKIP() << skip_;
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kPattern, kPatternPages),
            (Answer{.as_pattern = kPatternPages}));
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kUntouched, kUntouchedPages),
            (Answer{.zero = kUntouchedPages}));
  // Other bytes would be seen.
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kPattern, 10, kSeed + 1),
            (Answer{.other = 10}));
  // What it writes stays.
  EXPECT_EQ(Does(*guest->vm, TinyVm::kFill, kUntouched, 20),
            (Answer{.as_pattern = 20}));
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kUntouched, kUntouchedPages),
            (Answer{.as_pattern = 20, .zero = kUntouchedPages - 20}));
}

TEST_F(KvmTest, PagesThatABalloonHasTakenAreZeroAndNeverWhatTheyWere) {
  const std::unique_ptr<Restored> guest = Restore(first_);
  if (guest == nullptr) GTEST_SKIP() << skip_;
  // Of pages that the guest has touched, and of pages that it has not.
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kPattern, 100),
            (Answer{.as_pattern = 100}));
  GiveBack(*guest, kPattern + 50, 150);
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kPattern, kPatternPages),
            (Answer{.as_pattern = kPatternPages - 150, .zero = 150}));
  // They are memory like any other again.
  EXPECT_EQ(Does(*guest->vm, TinyVm::kFill, kPattern + 50, 150, 1),
            (Answer{.as_pattern = 150}));
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kPattern + 50, 150, 1),
            (Answer{.as_pattern = 150}));
  GiveBack(*guest, kPattern + 100, 10);
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kPattern + 50, 150, 1),
            (Answer{.as_pattern = 140, .zero = 10}));
}

TEST_F(KvmTest, ASnapshotOfARestoredGuestIsASnapshotLikeAnyOther) {
  std::unique_ptr<Restored> guest = Restore(first_);
  if (guest == nullptr) GTEST_SKIP() << skip_;
  GiveBack(*guest, kPattern, 30);
  EXPECT_EQ(Does(*guest->vm, TinyVm::kFill, kUntouched, 40, 2),
            (Answer{.as_pattern = 40}));
  // Reads all of the memory, of which the guest has touched little.
  const Snapshot second = Save(*guest->vm, guest->bytes(), "second.ftimg");
  guest.reset();
  guest = Restore(second);
  ASSERT_NE(guest, nullptr) << skip_;
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kPattern, kPatternPages),
            (Answer{.as_pattern = kPatternPages - 30, .zero = 30}));
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kUntouched, 50, 2),
            (Answer{.as_pattern = 40, .zero = 10}));
}

TEST_F(KvmTest, AGuestWhoseMemoryWasTakenBackNeedsNoServer) {
  const std::unique_ptr<Restored> guest = Restore(first_);
  if (guest == nullptr) GTEST_SKIP() << skip_;
  GiveBack(*guest, kPattern, 7);
  const absl::Status back = guest->client->TakeBack(absl::Minutes(1));
  ASSERT_TRUE(back.ok()) << back;
  guest->server.reset();
  EXPECT_EQ(Does(*guest->vm, TinyVm::kLook, kPattern, kPatternPages),
            (Answer{.as_pattern = kPatternPages - 7, .zero = 7}));
}

}  // namespace
}  // namespace firsttouch
