// A host with a crash reporter and a pool: what guests touch is the pool's, and
// what the host does wrong is the reporter's, whoever came first.
//
//   crash_reporter ORDER CRASH REPORT
//
// ORDER: "before", the reporter is installed before the service, whose handler
// hands on what is not a pool's; "after", in front of it, and asks it first;
// "owner", it has the signals, and the service installs nothing.
// CRASH: what the host does once its guests have run.

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/examples/crash_report.h"
#include "firsttouch/service/run_trapped.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/signals.h"

namespace firsttouch::examples {
namespace {

constexpr uint64_t kMemoryBytes = 1 << 20;

// What the service's handler would be asked.
bool AskPool(int signal, siginfo_t* info, void* context) {
  return HandleFault(signal, info, context) == FaultOutcome::kResolved;
}

absl::Status Install(const char* report, FirstChance first_chance) {
  sigset_t mask;
  // What a handler that asks the pool must block.
  FillFaultHandlerMask(&mask);
  if (InstallCrashReporter(report, first_chance, mask)) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, "InstallCrashReporter");
}

absl::StatusOr<std::unique_ptr<Service>> MakePool(SignalOwnership signals) {
  ServiceOptions options;
  options.name = "crash-reporter";
  options.layout = {.instances = 2,
                    .max_memory_bytes = kMemoryBytes,
                    .guard_after_bytes = kMemoryBytes};
  options.signals = signals;
  return Service::Create(std::move(options));
}

absl::StatusOr<std::unique_ptr<Service>> Start(std::string_view order,
                                               const char* report) {
  if (!GiveCrashStack()) return absl::ErrnoToStatus(errno, "GiveCrashStack");
  if (order == "before") {
    if (absl::Status status = Install(report, nullptr); !status.ok()) {
      return status;
    }
    return MakePool(SignalOwnership::kInstall);
  }
  if (order == "owner") {
    if (absl::Status status = Install(report, AskPool); !status.ok()) {
      return status;
    }
    return MakePool(SignalOwnership::kHost);
  }
  if (order == "after") {
    absl::StatusOr<std::unique_ptr<Service>> pool =
        MakePool(SignalOwnership::kInstall);
    if (!pool.ok()) return pool;
    if (absl::Status status = Install(report, AskPool); !status.ok()) {
      return status;
    }
    return pool;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("ORDER is \"", absl::string_view(order.data(), order.size()),
                   "\" and must be before, after or owner"));
}

// A guest that reads, writes, and leaves its memory at the end.
absl::Status RunGuest(Service& pool) {
  absl::StatusOr<Memory> memory = pool.Acquire({.size_bytes = kMemoryBytes});
  if (!memory.ok()) return memory.status();
  auto* const bytes = reinterpret_cast<volatile char*>(memory->base());
  int sum = 0;
  for (uint64_t at = 0; at < kMemoryBytes; at += 32768) {
    sum += bytes[at];
    bytes[at] = 1;
  }
  if (sum != 0) return absl::DataLossError("a memory was not clean");
  const absl::Status ended =
      RunTrapped(*memory, [&] { bytes[kMemoryBytes + 100] = 1; });
  if (!absl::IsOutOfRange(ended)) return absl::InternalError("no trap");
  return memory->Release();
}

// Some guests on two threads, one of which has no stack of the reporter's.
absl::Status RunGuests(Service& pool) {
  absl::Status other;
  std::thread thread([&] { other = RunGuest(pool); });
  const absl::Status here = RunGuest(pool);
  thread.join();
  return here.ok() ? other : here;
}

// The crashes. `at` is printed, for who reads the report.

void WriteTo(volatile char* at) {
  printf("touches %p\n", const_cast<char*>(at));
  fflush(stdout);
  *at = 1;
}

// A null pointer that the compiler does not know.
volatile char* Null() {
  static volatile char* volatile null;
  return null;
}

// The second page of a file that has one.
volatile char* BehindTheEnd() {
  const int fd = memfd_create("short", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, 8192) != 0) exit(1);
  void* const mapped =
      mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED || ftruncate(fd, 4096) != 0) exit(1);
  return static_cast<volatile char*>(mapped) + 5000;
}

// NOLINTNEXTLINE(misc-no-recursion): that is the crash.
int Overflow(volatile int& depth) {
  volatile char frame[1024];
  frame[0] = static_cast<char>(depth);
  depth = depth + 1;
  return depth == 0 ? 0 : Overflow(depth) + frame[0];
}

absl::Status Crash(std::string_view crash, Service& pool) {
  if (crash == "none") return absl::OkStatus();
  if (crash == "null") {
    WriteTo(Null());
  } else if (crash == "file") {
    WriteTo(BehindTheEnd());
  } else if (crash == "thread") {
    std::thread([] {
      if (!GiveCrashStack()) exit(1);
      WriteTo(Null() + 16);
    }).join();
  } else if (crash == "threads") {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([] {
        if (!GiveCrashStack()) exit(1);
        WriteTo(Null() + 16);
      });
    }
    for (std::thread& thread : threads) thread.join();
  } else if (crash == "leased" || crash == "trap") {
    absl::StatusOr<Memory> memory = pool.Acquire({.size_bytes = kMemoryBytes});
    if (!memory.ok()) return memory.status();
    memory->base()[0] = std::byte{1};
    WriteTo(crash == "leased"
                ? Null() + 32
                // A trap that nobody takes is a crash of the host's.
                : reinterpret_cast<char*>(memory->base()) + kMemoryBytes);
  } else if (crash == "overflow") {
    volatile int depth = 1;
    return absl::InternalError(
        absl::StrCat("came back from ", Overflow(depth)));
  } else if (crash == "sent") {
    raise(SIGSEGV);
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "CRASH is \"", absl::string_view(crash.data(), crash.size()),
        "\" and must be none, null, file, thread, threads, leased, trap, "
        "overflow or sent"));
  }
  return absl::InternalError("nothing happened");
}

absl::Status Run(std::string_view order, std::string_view crash,
                 const char* report) {
  absl::StatusOr<std::unique_ptr<Service>> pool = Start(order, report);
  if (!pool.ok()) return pool.status();
  for (int i = 0; i < 3; ++i) {
    if (absl::Status status = RunGuests(**pool); !status.ok()) return status;
  }
  const ServiceStats stats = (*pool)->Stats();
  printf("guests: %llu memories, %llu traps, %s\n",
         static_cast<unsigned long long>(stats.handovers),
         static_cast<unsigned long long>(stats.traps),
         access(report, F_OK) == 0 ? "a report" : "no report");
  fflush(stdout);
  return Crash(crash, **pool);
}

}  // namespace
}  // namespace firsttouch::examples

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: crash_reporter ORDER CRASH REPORT\n");
    return 64;
  }
  const absl::Status status =
      firsttouch::examples::Run(argv[1], argv[2], argv[3]);
  if (!status.ok()) {
    fprintf(stderr, "crash_reporter: %s\n",
            absl::StrCat(status.message()).c_str());
    return 1;
  }
  return 0;
}
