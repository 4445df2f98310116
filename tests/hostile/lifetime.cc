// Ends in the wrong order: the userfaultfd closed under a live memory, the
// process or the pool gone while threads are at work.

#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "firsttouch/service/signals.h"
#include "firsttouch/tests/hostile/program.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::hostile {
namespace {

constexpr uint64_t kPages = 64;

// Closes every userfaultfd that this process has by its number.
int CloseUserfaultfds() {
  std::vector<int> found;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target =
        std::filesystem::read_symlink(entry.path(), error).string();
    int fd = -1;
    if (target.find("userfaultfd") != std::string::npos &&
        absl::SimpleAtoi(entry.path().filename().string(), &fd)) {
      found.push_back(fd);
    }
  }
  for (const int fd : found) close(fd);
  return static_cast<int>(found.size());
}

// Tenants of `service` on threads of their own, until Stop().
class Tenants {
 public:
  Tenants(Service& service, const ImageRef& image, int threads) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this, &service, image, i] {
        HOSTILE_CHECK_OK(EnsureAlternateStack());
        Run(service, image, i);
      });
    }
    // Busy before anybody goes on.
    while (cycles_.load() < threads) std::this_thread::yield();
  }

  void Stop() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  // For a process that ends under them.
  void Forget() {
    for (std::thread& thread : threads_) thread.detach();
    threads_.clear();
  }

 private:
  void Run(Service& service, const ImageRef& image, int number) {
    const auto secret = std::byte(200 + number);
    while (!stop_) {
      Memory memory =
          Acquire(service, {.image = image, .size_bytes = kPages * kPageBytes});
      for (uint64_t page = 0; page < kPages; ++page) {
        std::byte* const at = memory.base() + page * kPageBytes;
        HOSTILE_CHECK(Peek(at) == PatternByte(1, page));
        if (page % 3 == 0) Poke(at, secret);
      }
      HOSTILE_CHECK_OK(memory.Release());
      ++cycles_;
    }
  }

  std::atomic<bool> stop_{false};
  std::atomic<int> cycles_{0};
  std::vector<std::thread> threads_;
};

}  // namespace

void UserfaultfdClosed(const Setting& setting) {
  if (setting.by_mappings()) Skip("a userfaultfd");
  std::unique_ptr<Service> service = MakeService(PoolOptions(setting));
  Memory memory = Acquire(*service, {.image = MakeImage(kPages, 1),
                                     .size_bytes = kPages * kPageBytes});
  Poke(memory.base(), std::byte{1});
  HOSTILE_CHECK(CloseUserfaultfds() >= 1);
  // Far from what the first touch filled.
  const std::byte got = Peek(memory.base() + 50 * kPageBytes);
  if (got == PatternByte(1, 50)) {
    std::printf("served all the same\n");
  } else {
    std::printf("read %d where the image has %d\n", static_cast<int>(got),
                static_cast<int>(PatternByte(1, 50)));
  }
}

void ExitsWhileThreadsRun(const Setting& setting) {
  ServiceOptions options = PoolOptions(setting);
  options.layout.instances = 4;
  // A static, as hosts have it: destroyed at exit, while the tenants go on with
  // memories that they hold.
  static std::unique_ptr<Service> service;
  service = MakeService(options);
  // A tenant holds its memory through the service's end and never asks for
  // another one.
  const ImageRef image = MakeImage(kPages, 1);
  static std::atomic<int> ready{0};
  for (int i = 0; i < 4; ++i) {
    std::thread([image] {
      HOSTILE_CHECK_OK(EnsureAlternateStack());
      Memory memory = Acquire(
          *service, {.image = image, .size_bytes = kPages * kPageBytes});
      for (uint64_t round = 0;; ++round) {
        for (uint64_t page = 0; page < kPages; ++page) {
          std::byte* const at = memory.base() + page * kPageBytes;
          HOSTILE_CHECK(Peek(at + 1) == PatternByte(1, page));
          Poke(at, std::byte(round));
        }
        HOSTILE_CHECK_OK(memory.Reset());
        if (round == 1) ++ready;
      }
    }).detach();
  }
  while (ready < 4) std::this_thread::yield();
  std::printf("leaving\n");
  exit(0);
}

void DestroyedWhileBusy(const Setting& setting) {
  const ImageRef image = MakeImage(kPages, 1);
  int mappings = 0, descriptors = 0, threads = 0;
  for (int round = 0; round < 30; ++round) {
    if (round == 5) {
      // What the C library keeps for threads is there by now.
      mappings = CountMappings();
      descriptors = CountDescriptors();
      threads = CountThreads();
    }
    ServiceOptions options = PoolOptions(setting);
    options.layout.instances = 4;
    std::unique_ptr<Service> service = MakeService(options);
    std::atomic<int> busy{0};
    std::atomic<bool> gone{false};
    std::vector<std::thread> holders;
    for (int i = 0; i < 3; ++i) {
      holders.emplace_back(
          [&, memory = Acquire(*service,
                               {.image = image,
                                .size_bytes = kPages * kPageBytes})]() mutable {
            HOSTILE_CHECK_OK(EnsureAlternateStack());
            ++busy;
            // Until the service is gone and once more after that.
            for (bool last = false; !last;) {
              last = gone;
              for (uint64_t page = 0; page < kPages; ++page) {
                std::byte* const at = memory.base() + page * kPageBytes;
                HOSTILE_CHECK(Peek(at) == PatternByte(1, page));
                Poke(at, std::byte{9});
              }
              HOSTILE_CHECK_OK(memory.Reset());
            }
            HOSTILE_CHECK_OK(memory.Release());
          });
    }
    while (busy < 3) std::this_thread::yield();
    service = nullptr;
    gone = true;
    for (std::thread& holder : holders) holder.join();
  }
  // The last memory took the pool with it, its threads and descriptors too. A
  // thread that was joined may be seen in /proc for a moment.
  for (int i = 0; i < 1'000'000 && CountThreads() != threads; ++i) {
    std::this_thread::yield();
  }
  HOSTILE_CHECK_EQ(CountThreads(), threads);
  HOSTILE_CHECK_EQ(CountDescriptors(), descriptors);
  // One left by each of 25 rounds would be more than the C library's arenas,
  // which come and go with what its threads happen to contend for.
  HOSTILE_CHECK(CountMappings() <= mappings + 20);
}

}  // namespace firsttouch::hostile
