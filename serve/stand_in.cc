#include "firsttouch/serve/stand_in.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/serve/handshake.h"
#include "firsttouch/serve/unix_socket.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/uffd.h"

namespace firsttouch {
namespace {

enum : uint64_t {
  kLook = 1,
  kWrite,
  kGiveBack,
  kUnmap,
  kMove,
  kUnregister,
  kLookInFork,
  kRace,
  kJoin,
  kExit,
};

struct Command {
  uint64_t what = 0;
  uint64_t first = 0;
  uint64_t pages = 0;
  char path[sizeof(sockaddr_un::sun_path)] = {};
};

constexpr size_t kReasonBytes = 256;
struct Hello {
  char reason[kReasonBytes] = {};  // Empty: all is well.
  uint64_t regions = 0;
  GuestRegion region[8];
};

thread_local sigjmp_buf g_jump;
thread_local volatile bool g_jumps = false;

void OnSigbus(int) {
  if (g_jumps) siglongjmp(g_jump, 1);
  _exit(77);
}

// The process itself.
class Body {
 public:
  Body(const StandInOptions& options, int socket)
      : options_(options), socket_(socket) {}

  [[noreturn]] void Run() {
    Hello hello;
    const std::string reason = Prepare(hello);
    std::strncpy(hello.reason, reason.c_str(), kReasonBytes - 1);
    SendHello(hello);
    if (!reason.empty()) _exit(1);
    struct sigaction action = {};
    action.sa_handler = OnSigbus;
    action.sa_flags = SA_NODEFER;
    sigaction(SIGBUS, &action, nullptr);
    Command command;
    while (recv(socket_, &command, sizeof command, 0) == sizeof command) {
      const StandIn::Seen seen = Do(command);
      send(socket_, &seen, sizeof seen, MSG_NOSIGNAL);
    }
    _exit(0);
  }

 private:
  std::string Prepare(Hello& hello) {
    const uint64_t features =
        kUffdFeatureEventRemove | kUffdFeatureEventUnmap |
        kUffdFeatureEventRemap |
        (options_.fork_events ? kUffdFeatureEventFork : 0);
    absl::StatusOr<class Uffd> uffd =
        Uffd::Open(RealKernel(), {.required_features = features});
    if (!uffd.ok()) return uffd.status().ToString();
    uffd_.emplace(*std::move(uffd));
    const uint64_t each = options_.pages / options_.regions;
    hello.regions = options_.regions;
    for (uint64_t i = 0; i < options_.regions; ++i) {
      void* const mapped =
          mmap(reinterpret_cast<void*>(options_.address), each * kPageBytes,
               PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS |
                   (options_.huge_pages ? MAP_HUGETLB : MAP_NORESERVE) |
                   (options_.address != 0 ? MAP_FIXED_NOREPLACE : 0),
               -1, 0);
      if (mapped == MAP_FAILED) {
        return absl::StrCat("mmap of ", each, " pages: ", ErrnoText(errno));
      }
      madvise(mapped, each * kPageBytes, MADV_NOHUGEPAGE);
      const uintptr_t start = reinterpret_cast<uintptr_t>(mapped);
      const absl::Status registered = uffd_->Register(
          start, each * kPageBytes,
          kUffdRegisterMissing | (options_.track_writes ? kUffdRegisterWp : 0),
          kUffdIoctlCopy);
      if (!registered.ok()) return registered.ToString();
      for (uint64_t p = 0; p < each; ++p) {
        at_.push_back(static_cast<char*>(mapped) + p * kPageBytes);
      }
      hello.region[i] = {
          .start = start,
          .bytes = each * kPageBytes,
          .image_offset_bytes = i * each * kPageBytes,
          .page_bytes = options_.huge_pages ? kHugePageBytes : kPageBytes,
          .track_writes = options_.track_writes,
      };
    }
    return "";
  }

  void SendHello(const Hello& hello) {
    regions_.assign(hello.region, hello.region + hello.regions);
    SendWithUffd(socket_, &hello, sizeof hello);
  }

  // The connection stays open until the process ends.
  bool Join(const char* path) {
    const int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path, sizeof address.sun_path);
    if (connect(connection, reinterpret_cast<sockaddr*>(&address),
                sizeof address) != 0) {
      return false;
    }
    const std::string text = RegionsText(regions_);
    SendWithUffd(connection, text.data(), text.size());
    return true;
  }

  void SendWithUffd(int to, const void* what, size_t size) {
    const int fd = uffd_.has_value() ? uffd_->fd() : -1;
    SendWithDescriptors(to, {static_cast<const char*>(what), size},
                        {&fd, uffd_.has_value() ? size_t{1} : 0});
  }

  StandIn::Seen Look(uint64_t first, uint64_t pages) {
    StandIn::Seen seen;
    for (uint64_t p = first; p < first + pages; ++p) LookAt(p, seen);
    return seen;
  }

  void LookAt(uint64_t page, StandIn::Seen& seen) {
    static const char kZeroes[kPageBytes] = {};
    g_jumps = true;
    if (sigsetjmp(g_jump, 1) != 0) {
      g_jumps = false;
      ++seen.sigbus;
      return;
    }
    // One access that can fault, then a comparison of what is there.
    const volatile char first_touch = *at_[page];
    static_cast<void>(first_touch);
    const bool zero = std::memcmp(at_[page], kZeroes, kPageBytes) == 0;
    const bool stored = options_.image->IsStored(PageIndex(page));
    const bool as_image =
        stored
            ? std::memcmp(at_[page], options_.image->PageBytes(PageIndex(page)),
                          kPageBytes) == 0
            : zero;
    g_jumps = false;
    if (as_image) {
      ++seen.as_image;
    } else {
      ++(zero ? seen.zero : seen.other);
    }
  }

  StandIn::Seen LookInFork(const Command& command) {
    int channel[2];
    if (pipe(channel) != 0) return {.hung = true};
    const pid_t child = fork();
    if (child == 0) {
      const StandIn::Seen seen = Look(command.first, command.pages);
      _exit(write(channel[1], &seen, sizeof seen) == sizeof seen ? 0 : 1);
    }
    close(channel[1]);
    StandIn::Seen seen;
    seen.hung = read(channel[0], &seen, sizeof seen) != sizeof seen;
    close(channel[0]);
    int status;
    waitpid(child, &status, 0);
    return seen;
  }

  StandIn::Seen Race(uint64_t threads, uint64_t rounds) {
    const uint64_t pages = at_.size();
    // Pages that may have been given back: set before they are.
    std::vector<std::atomic<bool>> back(pages);
    std::vector<StandIn::Seen> seen(threads);
    std::vector<std::thread> running;
    for (uint64_t t = 0; t < threads; ++t) {
      running.emplace_back([&, t] {
        std::mt19937_64 random(t);
        for (uint64_t i = 0; i < rounds * pages; ++i) {
          const uint64_t page = random() % pages;
          StandIn::Seen one;
          LookAt(page, one);
          seen[t].as_image += one.as_image;
          // A page that is being dropped may be seen half-way: as the image, or
          // zero. What it may not be is zero without having been given back.
          if (one.zero > 0) {
            ++(back[page] ? seen[t].zero : seen[t].other);
          }
          if (one.other > 0 && !back[page]) ++seen[t].other;
          seen[t].sigbus += one.sigbus;
        }
      });
    }
    std::mt19937_64 random(threads + 1);
    for (uint64_t i = 0; i < rounds * 8; ++i) {
      const uint64_t page = random() % pages;
      back[page] = true;
      madvise(at_[page], kPageBytes, MADV_DONTNEED);
    }
    for (std::thread& thread : running) thread.join();
    StandIn::Seen sum;
    for (const StandIn::Seen& one : seen) {
      sum.as_image += one.as_image;
      sum.zero += one.zero;
      sum.other += one.other;
      sum.sigbus += one.sigbus;
    }
    // Now that nothing is dropped any more: zero where given back, else the
    // image.
    for (uint64_t page = 0; page < pages; ++page) {
      StandIn::Seen one;
      LookAt(page, one);
      const bool stored = options_.image->IsStored(PageIndex(page));
      if (back[page] && stored ? one.zero != 1 : one.as_image != 1) ++sum.other;
    }
    return sum;
  }

  StandIn::Seen Do(const Command& command) {
    const uint64_t bytes = command.pages * kPageBytes;
    switch (command.what) {
      case kLook:
        return Look(command.first, command.pages);
      case kWrite:
        for (uint64_t p = command.first; p < command.first + command.pages;
             ++p) {
          *reinterpret_cast<volatile char*>(at_[p]) = static_cast<char>(0xA5);
        }
        return {};
      case kGiveBack:
        return {.hung = madvise(at_[command.first], bytes, MADV_DONTNEED) != 0};
      case kUnmap:
        return {.hung = munmap(at_[command.first], bytes) != 0};
      case kMove: {
        // To where nothing is.
        void* const to =
            mmap(nullptr, bytes, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (to == MAP_FAILED ||
            mremap(at_[command.first], bytes, bytes,
                   MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) {
          return {.hung = true};
        }
        for (uint64_t p = 0; p < command.pages; ++p) {
          at_[command.first + p] = static_cast<char*>(to) + p * kPageBytes;
        }
        return {};
      }
      case kUnregister:
        return {.hung = !uffd_
                             ->Unregister(reinterpret_cast<uintptr_t>(
                                              at_[command.first]),
                                          bytes)
                             .ok()};
      case kLookInFork:
        return LookInFork(command);
      case kJoin:
        return {.hung = !Join(command.path)};
      case kRace:
        return Race(command.first, command.pages);
      default:
        _exit(0);
    }
  }

  const StandInOptions options_;
  const int socket_;
  std::optional<class Uffd> uffd_;
  std::vector<char*> at_;
  std::vector<GuestRegion> regions_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StandIn>> StandIn::Start(
    const StandInOptions& options) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0) {
    return absl::ErrnoToStatus(errno, "socketpair");
  }
  std::unique_ptr<StandIn> stand_in(new StandIn());
  stand_in->socket_.reset(sockets[0]);
  UniqueFd theirs(sockets[1]);
  const pid_t parent = getpid();
  stand_in->pid_ = fork();
  if (stand_in->pid_ < 0) return absl::ErrnoToStatus(errno, "fork");
  if (stand_in->pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    stand_in->socket_.reset();
    Body(options, theirs.get()).Run();
  }
  theirs.reset();
  const timeval minute = {.tv_sec = 60};
  setsockopt(stand_in->socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &minute,
             sizeof minute);
  Hello hello;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec bytes = {&hello, sizeof hello};
  msghdr message = {};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(stand_in->socket_.get(), &message, MSG_CMSG_CLOEXEC) !=
      sizeof hello) {
    return absl::InternalError("the stand-in process does not answer");
  }
  if (hello.reason[0] != '\0') return absl::UnavailableError(hello.reason);
  if (const cmsghdr* const header = CMSG_FIRSTHDR(&message)) {
    int fd;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    stand_in->uffd_.reset(fd);
  }
  stand_in->regions_.assign(hello.region, hello.region + hello.regions);
  return stand_in;
}

StandIn::~StandIn() { Kill(); }

UniqueFd StandIn::Uffd() const {
  return UniqueFd(
      static_cast<int>(RealKernel().DupCloexec(uffd_.get(), 0).value));
}

UniqueFd StandIn::Pidfd() const {
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
}

bool StandIn::Order(uint64_t what, uint64_t first, uint64_t pages,
                    const std::string& path) {
  Command command;
  command.what = what;
  command.first = first;
  command.pages = pages;
  std::strncpy(command.path, path.c_str(), sizeof command.path - 1);
  return send(socket_.get(), &command, sizeof command, MSG_NOSIGNAL) ==
         sizeof command;
}

StandIn::Seen StandIn::Answer() {
  Seen seen;
  if (recv(socket_.get(), &seen, sizeof seen, 0) != sizeof seen) {
    return {.hung = true};
  }
  return seen;
}

StandIn::Seen StandIn::Look(uint64_t first, uint64_t pages) {
  BeginLook(first, pages);
  return Answer();
}

void StandIn::BeginLook(uint64_t first, uint64_t pages) {
  Order(kLook, first, pages);
}

bool StandIn::Write(uint64_t first, uint64_t pages) {
  return Order(kWrite, first, pages) && !Answer().hung;
}

bool StandIn::GiveBack(uint64_t first, uint64_t pages) {
  return Order(kGiveBack, first, pages) && !Answer().hung;
}

bool StandIn::Unmap(uint64_t first, uint64_t pages) {
  return Order(kUnmap, first, pages) && !Answer().hung;
}

bool StandIn::Move(uint64_t first, uint64_t pages) {
  return Order(kMove, first, pages) && !Answer().hung;
}

bool StandIn::Unregister(uint64_t first, uint64_t pages) {
  return Order(kUnregister, first, pages) && !Answer().hung;
}

StandIn::Seen StandIn::LookInFork(uint64_t first, uint64_t pages) {
  Order(kLookInFork, first, pages);
  return Answer();
}

StandIn::Seen StandIn::Race(uint64_t threads, uint64_t rounds) {
  BeginRace(threads, rounds);
  return Answer();
}

void StandIn::BeginRace(uint64_t threads, uint64_t rounds) {
  Order(kRace, threads, rounds);
}

bool StandIn::Join(const std::string& path) {
  return Order(kJoin, 0, 0, path) && !Answer().hung;
}

void StandIn::Exit() { Order(kExit, 0, 0); }

void StandIn::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  WaitForSignal();
}

int StandIn::WaitForSignal() {
  if (pid_ <= 0) return 0;
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

}  // namespace firsttouch
