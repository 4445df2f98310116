// A timer interrupts guests at any time, again and again, and its handler
// leaves by siglongjmp: an embedder ends guests like that when they have run
// for too long. Whatever the guests were doing, the next lease sees its initial
// bytes, bounds hold, and no thread waits for them. interrupted_faults_test
// chooses the instruction; here it is random, and other guests run meanwhile.
//
// More interruptions of each guest, or others:
//   bazel test //service:timer_interrupts_test
//       --test_env=FIRSTTOUCH_INTERRUPTIONS=100000
//       --test_env=FIRSTTOUCH_INTERRUPTED_SEED=7 --test_timeout=3600

#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/page_source.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/units.h"
#include "gtest/gtest.h"

namespace firsttouch {
namespace {

constexpr uint64_t kMaxPages = 64;
constexpr uint64_t kImagePages = 24;
constexpr uint32_t kGuests = 2;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* const value = getenv(name);
  return value == nullptr ? otherwise : strtoull(value, nullptr, 10);
}

// Where a thread's guest jumps to when its time is over. Used in signal
// handlers.
struct Escape {
  sigjmp_buf jump;
  volatile sig_atomic_t in_guest = 0;
};
thread_local Escape g_escape;

void OnTimer(int) {
  if (g_escape.in_guest == 0) return;
  g_escape.in_guest = 0;
  siglongjmp(g_escape.jump, 1);
}

// A timer that interrupts the thread that made it, once for each time it is
// set.
class ThreadTimer {
 public:
  ThreadTimer() {
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGUSR1;
    event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
    is_made_ = timer_create(CLOCK_MONOTONIC, &event, &timer_) == 0;
  }
  ~ThreadTimer() {
    if (is_made_) timer_delete(timer_);
  }
  ThreadTimer(const ThreadTimer&) = delete;
  ThreadTimer& operator=(const ThreadTimer&) = delete;

  bool Set(long nanoseconds) {
    const itimerspec once = {.it_interval = {},
                             .it_value = {.tv_sec = 0, .tv_nsec = nanoseconds}};
    return is_made_ && timer_settime(timer_, 0, &once, nullptr) == 0;
  }

 private:
  timer_t timer_ = nullptr;
  bool is_made_ = false;
};

class PatternSource : public PageSource {
 public:
  explicit PatternSource(ImageRef image) : image_(std::move(image)) {}
  absl::Status Fetch(PageIndex first, std::span<std::byte> bytes) override {
    return image_->Read(first.offset_bytes(), bytes);
  }

 private:
  const ImageRef image_;
};

// Touches pages, in bounds and beyond, until it is interrupted.
[[noreturn]] void RunGuest(const Memory& memory, uint64_t size_bytes,
                           std::minstd_rand& random) {
  for (;;) {
    const uint64_t at = random() % size_bytes;
    switch (random() % 8) {
      case 0:
        TrapOf([&] { Load(memory, size_bytes + at % 65536); });
        break;
      case 1:
      case 2:
      case 3:
        Store(memory, at, 0xee);
        break;
      default:
        Load(memory, at);
    }
  }
}

// Returns false where the guest could not be interrupted.
bool RunAndLeaveGuest(const Memory& memory, ThreadTimer& timer,
                      long nanoseconds, std::minstd_rand& random) {
  const uint64_t size_bytes = memory.size_bytes();
  if (sigsetjmp(g_escape.jump, 1) != 0) return true;
  g_escape.in_guest = 1;
  if (!timer.Set(nanoseconds)) {
    g_escape.in_guest = 0;
    return false;
  }
  RunGuest(memory, size_bytes, random);
}

// Whether the handler blocks what FillFaultHandlerMask() says. Where it does
// not, a fault can be left half-way: memory stays safe, but other threads may
// wait forever for a page of a source.
enum class Mask { kBlocks, kNothing };

void HostHandler(int signal, siginfo_t* info, void* context) {
  if (HandleFault(signal, info, context) != FaultOutcome::kResolved) abort();
}

// Installs the host's own handler, which blocks nothing, for its lifetime.
class UnmaskedHandler {
 public:
  UnmaskedHandler() {
    struct sigaction action = {};
    action.sa_sigaction = HostHandler;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &bus_);
    sigaction(SIGSEGV, &action, &segv_);
  }
  ~UnmaskedHandler() {
    sigaction(SIGBUS, &bus_, nullptr);
    sigaction(SIGSEGV, &segv_, nullptr);
  }
  UnmaskedHandler(const UnmaskedHandler&) = delete;
  UnmaskedHandler& operator=(const UnmaskedHandler&) = delete;

 private:
  struct sigaction bus_;
  struct sigaction segv_;
};

class TimerInterruptsTest
    : public testing::TestWithParam<std::tuple<Way, Mask>> {
 protected:
  const Way& way() const { return std::get<0>(GetParam()); }
  Mask mask() const { return std::get<1>(GetParam()); }

  // Runs one guest after the other on this thread; returns "" where all is
  // well.
  std::string RunGuests(Service& service, uint64_t seed) const {
    std::minstd_rand random(static_cast<uint32_t>(seed));
    ThreadTimer timer;
    const uint64_t times =
        FromEnvironment("FIRSTTOUCH_INTERRUPTIONS", kInterruptions);
    ImageRef image;
    for (uint64_t i = 0; i < times; ++i) {
      const std::string when =
          absl::StrCat("seed ", seed, ", interruption ", i, ": ");
      // No page of a new image is known or present.
      if (i % 4 == 0) {
        image = PatternImage(absl::StrCat("image ", i), kImagePages, {3});
        if (mask() == Mask::kBlocks && i % 8 == 0) {
          image = *ImageFromSource(
              {.name = "sourced", .size_bytes = image->size_bytes()},
              std::make_shared<PatternSource>(image), {.chunk_pages = 2});
        }
      }
      const uint64_t size_bytes =
          (kImagePages + 1 + random() % (kMaxPages - kImagePages)) * kPageBytes;
      absl::StatusOr<Memory> memory =
          service.Acquire({.image = image, .size_bytes = size_bytes});
      if (!memory.ok()) return when + memory.status().ToString();
      // The time ranges from the first instruction to when most pages are
      // present.
      const long nanoseconds = 1 + static_cast<long>(random() % 300'000);
      if (!RunAndLeaveGuest(*memory, timer, nanoseconds, random)) {
        return "the timer could not be set";
      }
      if (absl::Status released = memory->Release(); !released.ok()) {
        return when + released.ToString();
      }
      constexpr uint64_t kNextBytes = kImagePages * kPageBytes;
      absl::StatusOr<Memory> next =
          service.Acquire({.image = image, .size_bytes = kNextBytes});
      if (!next.ok()) return when + next.status().ToString();
      if (std::optional<uint64_t> at =
              FirstDifference(*next, InitialBytes(image, kNextBytes))) {
        return absl::StrCat(when, "byte ", *at, " is another lease's");
      }
      for (uint64_t page = kImagePages; page < kMaxPages; ++page) {
        if (!TrapOf([&] { Load(*next, page * kPageBytes); })) {
          return absl::StrCat(when, "page ", page, " can be read");
        }
      }
    }
    return "";
  }

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr uint64_t kInterruptions = 20;
#else
  static constexpr uint64_t kInterruptions = 400;
#endif
};

TEST_P(TimerInterruptsTest, TheNextLeaseIsCleanAndNobodyWaits) {
  if (const std::string missing = MissingFor(way()); !missing.empty()) {
    GTEST_SKIP() << "this machine has no " << missing;
  }
  struct sigaction leave = {};
  leave.sa_handler = OnTimer;
  leave.sa_flags = SA_RESTART;
  struct sigaction before;
  ASSERT_EQ(sigaction(SIGUSR1, &leave, &before), 0);
  std::optional<UnmaskedHandler> unmasked;
  if (mask() == Mask::kNothing) unmasked.emplace();
  {
    absl::StatusOr<std::unique_ptr<Service>> service = Service::Create(
        {.name = "interrupted",
         .layout = {.instances = kGuests,
                    .max_memory_bytes = kMaxPages * kPageBytes,
                    .guard_after_bytes = 65536},
         .supply = Asking(way()),
         .signals = mask() == Mask::kNothing ? SignalOwnership::kHost
                                             : SignalOwnership::kInstall,
         .trap_callback = JumpOutOfTrap});
    ASSERT_TRUE(service.ok()) << service.status();
    const uint64_t seed = FromEnvironment("FIRSTTOUCH_INTERRUPTED_SEED", 1);
    std::vector<std::string> wrong(kGuests);
    std::vector<std::thread> guests;
    for (uint32_t guest = 0; guest < kGuests; ++guest) {
      guests.emplace_back([&, guest] {
        wrong[guest] = RunGuests(**service, seed * kGuests + guest);
      });
    }
    for (std::thread& guest : guests) guest.join();
    for (const std::string& text : wrong) EXPECT_EQ(text, "");
    EXPECT_EQ((*service)->Stats().slots_quarantined, 0u);
  }
  sigaction(SIGUSR1, &before, nullptr);
}

std::string CaseName(
    const testing::TestParamInfo<std::tuple<Way, Mask>>& info) {
  return WayName({std::get<0>(info.param), 0}) +
         (std::get<1>(info.param) == Mask::kBlocks ? "" : "WithoutTheMask");
}

INSTANTIATE_TEST_SUITE_P(
    Ways, TimerInterruptsTest,
    testing::Combine(AllWays(), testing::Values(Mask::kBlocks, Mask::kNothing)),
    CaseName);

}  // namespace
}  // namespace firsttouch
