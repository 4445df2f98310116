#include "firsttouch/tests/hostile/program.h"

#include <setjmp.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/service/supply_choice.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::hostile {
namespace {

// Where the innermost Traps() of this thread waits.
struct Catch {
  jmp_buf jump;
  TrapInfo trap;
};
thread_local Catch* t_catch = nullptr;

int CountEntries(const char* directory) {
  const std::filesystem::directory_iterator entries(directory);
  return static_cast<int>(std::distance(begin(entries), end(entries)));
}

}  // namespace

void Skip(const std::string& missing) {
  std::printf("skipped: %s\n", missing.c_str());
  std::fflush(stdout);
  _exit(kSkipExitCode);
}

void Fail(const char* file, int line, const std::string& text) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, text.c_str());
  _exit(1);
}

ServiceOptions PoolOptions(const Setting& setting) {
  ServiceOptions options;
  options.name = "hostile";
  options.layout.instances = 1;
  options.layout.max_memory_bytes = 64 * kPageBytes;
  options.layout.guard_before_bytes = 1 << 20;
  options.layout.guard_after_bytes = 1 << 20;
  // Two handler threads: they are to get in each other's way.
  options.supply = ChoiceOf(setting.supply, setting.backing, setting.resolve,
                            std::nullopt, /*handler_threads=*/2);
  options.strategy = SlotStrategy::kNextAvailable;
  return options;
}

std::unique_ptr<Service> MakeService(ServiceOptions options) {
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Create(std::move(options));
  if (service.ok()) return *std::move(service);
  switch (service.status().code()) {
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
      Skip(service.status().ToString());
    default:
      Fail(__FILE__, __LINE__, service.status().ToString());
  }
}

Memory Acquire(Service& service, const MemoryOptions& options) {
  absl::StatusOr<Memory> memory = service.Acquire(options);
  HOSTILE_CHECK_OK(memory.status());
  return *std::move(memory);
}

std::byte PatternByte(int seed, uint64_t page) {
  if (page % 4 == 3) return std::byte{0};
  return std::byte(1 + (seed * 31 + page * 7) % 255);
}

ImageRef MakeImage(uint64_t pages, int seed) {
  absl::StatusOr<ImageRef> image = ImageFromCallback(
      {.name = absl::StrCat("image ", seed), .size_bytes = pages * kPageBytes},
      [&](PageIndex page, std::span<std::byte, kPageBytes> bytes) {
        std::fill(bytes.begin(), bytes.end(), PatternByte(seed, page.value()));
        return absl::OkStatus();
      });
  HOSTILE_CHECK_OK(image.status());
  return *std::move(image);
}

std::byte Peek(const std::byte* address) {
  return *static_cast<const volatile std::byte*>(address);
}

void Poke(std::byte* address, std::byte value) {
  *static_cast<volatile std::byte*>(address) = value;
}

bool Traps(const std::function<void()>& touch, TrapInfo* info) {
  Catch here;
  Catch* const outer = t_catch;
  // Without the mask: a trap must leave it as it was.
  if (_setjmp(here.jump) == 0) {
    t_catch = &here;
    touch();
    t_catch = outer;
    return false;
  }
  t_catch = outer;
  if (info != nullptr) *info = here.trap;
  return true;
}

TrapAction CatchTrap(const TrapInfo& trap) {
  if (t_catch == nullptr) return TrapAction::kUnhandled;
  t_catch->trap = trap;
  _longjmp(t_catch->jump, 1);
}

int CountMappings() {
  std::ifstream maps("/proc/self/maps");
  return static_cast<int>(std::count(std::istreambuf_iterator<char>(maps),
                                     std::istreambuf_iterator<char>(), '\n'));
}

int CountDescriptors() { return CountEntries("/proc/self/fd"); }

int CountThreads() { return CountEntries("/proc/self/task"); }

}  // namespace firsttouch::hostile
