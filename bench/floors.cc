// What bounds the cycle of a memory whose guests write to other pages each
// time, whoever does it.
//
//   bazel run -c opt //bench:floors
//
// copy/...    memcpy of an image of 1 MiB needs to find out nothing; to read
//             the memory and the image (a word of each cache line) is the least
//             that finds out without the kernel which pages changed.
// kernel/...  with the kernel's help: what the first write to a page costs that
//             is protected asynchronously (`per page`), a scan for such pages
//             where none was written, and to protect them all again.

#include <sys/utsname.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/pagemap.h"
#include "firsttouch/uffd/uffd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

constexpr uint64_t kImageBytes = 1 << 20;

// A word of each cache line: nobody reads less.
uint64_t SumOfLines(const std::byte* bytes, uint64_t size) {
  constexpr uint64_t kLineBytes = 64;
  uint64_t sum = 0;
  for (uint64_t at = 0; at < size; at += kLineBytes) {
    uint64_t word;
    memcpy(&word, bytes + at, sizeof word);
    sum += word;
  }
  return sum;
}

// Times body(memory, image).
template <typename Body>
void TimeCopies(benchmark::State& state, Body body) {
  const ImageRef image = PatternImage(kImageBytes);
  const Mapping mapping(kImageBytes, image);
  WriteEachPage(mapping.base(), kImageBytes);
  for (auto _ : state) body(mapping.base(), image->data());
}

// Private pages that are protected asynchronously; or why there are none.
class TrackedPages {
 public:
  explicit TrackedPages(uint64_t pages)
      : pagemap_(Pagemap::Open(RealKernel())),
        uffd_(Uffd::Open(RealKernel(),
                         {.required_features = kUffdFeaturePagefaultFlagWp |
                                               kUffdFeatureWpAsync |
                                               kUffdFeatureWpHugetlbfsShmem})),
        mapping_(pages * kPageBytes, PatternImage(pages * kPageBytes)) {
    status_ = pagemap_.status();
    status_.Update(uffd_.status());
    if (!status_.ok()) return;
    status_ = uffd_->Register(start(), mapping_.bytes(), kUffdRegisterWp,
                              kUffdIoctlWriteProtect);
  }

  const absl::Status& status() const { return status_; }
  void Write() { WriteEachPage(mapping_.base(), mapping_.bytes()); }
  void Protect() { Scan(ScanRequest::UnmarkedAndProtect(start(), end()), {}); }
  void Find() {
    PageRegion regions[16];
    Scan(ScanRequest::Unmarked(start(), end()), regions);
  }

 private:
  uintptr_t start() const {
    return reinterpret_cast<uintptr_t>(mapping_.base());
  }
  uintptr_t end() const { return start() + mapping_.bytes(); }

  void Scan(const ScanRequest& request, std::span<PageRegion> regions) {
    if (!ScanPages(RealKernel(), pagemap_->fd(), request, regions.data(),
                   regions.size(), [](const PageRegion&) { return true; })
             .ok()) {
      Die("PAGEMAP_SCAN failed");
    }
  }

  absl::StatusOr<Pagemap> pagemap_;
  // Before the memory that it guards: that is unmapped first.
  absl::StatusOr<Uffd> uffd_;
  Mapping mapping_;
  absl::Status status_;
};

// Times `measured`, before each of which is `prepare`, or nothing (null).
template <auto prepare, auto measured>
void TimePages(benchmark::State& state, uint64_t pages) {
  TrackedPages tracked(pages);
  if (!tracked.status().ok()) {
    return state.SkipWithError(tracked.status().ToString().c_str());
  }
  tracked.Write();
  tracked.Protect();
  for (auto _ : state) {
    if constexpr (prepare != nullptr) {
      state.PauseTiming();
      (tracked.*prepare)();
      state.ResumeTiming();
    }
    (tracked.*measured)();
  }
}

void RegisterFloors() {
  const auto add = [](const std::string& name, auto body) {
    benchmark::RegisterBenchmark(name.c_str(), body);
  };
  add("copy/memcpy of image", [](benchmark::State& state) {
    TimeCopies(state, [](std::byte* memory, const std::byte* image) {
      memcpy(memory, image, kImageBytes);
      benchmark::ClobberMemory();
    });
  });
  add("copy/read memory and image", [](benchmark::State& state) {
    TimeCopies(state, [](const std::byte* memory, const std::byte* image) {
      benchmark::DoNotOptimize(SumOfLines(memory, kImageBytes) +
                               SumOfLines(image, kImageBytes));
    });
  });
  add("kernel/first writes to 256 pages", [](benchmark::State& state) {
    TimePages<&TrackedPages::Protect, &TrackedPages::Write>(state, 256);
    state.counters["per page"] =
        benchmark::Counter(256, benchmark::Counter::kIsIterationInvariantRate |
                                    benchmark::Counter::kInvert);
  });
  for (uint64_t pages : {256, 1024}) {
    add(absl::StrCat("kernel/scan of ", pages, " pages"),
        [pages](benchmark::State& state) {
          TimePages<nullptr, &TrackedPages::Find>(state, pages);
        });
    add(absl::StrCat("kernel/protect ", pages, " pages"),
        [pages](benchmark::State& state) {
          TimePages<&TrackedPages::Write, &TrackedPages::Protect>(state, pages);
        });
  }
}

int Main(int argc, char** argv) {
  // What is compared takes turns, so that a disturbance meets both. An argument
  // overrides.
  std::vector<std::string> arguments = {
      argv[0], "--benchmark_enable_random_interleaving=true",
      "--benchmark_repetitions=5", "--benchmark_report_aggregates_only=true",
      "--benchmark_min_time=0.02"};
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  int count = static_cast<int>(pointers.size());
  pointers.push_back(nullptr);

  benchmark::Initialize(&count, pointers.data());
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) return 1;
  utsname name;
  if (uname(&name) == 0) benchmark::AddCustomContext("kernel", name.release);
  RegisterFloors();
  if (benchmark::RunSpecifiedBenchmarks() == 0) return 1;
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace firsttouch::bench

int main(int argc, char** argv) { return firsttouch::bench::Main(argc, argv); }
