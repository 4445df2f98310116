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
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
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

void ReadBoth(benchmark::State& state) {
  const ImageRef image = PatternImage(kImageBytes);
  Mapping mapping(kImageBytes, image);
  WriteEachPage(mapping.base(), kImageBytes);
  for (auto _ : state) {
    benchmark::DoNotOptimize(SumOfLines(mapping.base(), kImageBytes) +
                             SumOfLines(image->data(), kImageBytes));
  }
}

void CopyImage(benchmark::State& state) {
  const ImageRef image = PatternImage(kImageBytes);
  const Mapping mapping(kImageBytes, image);
  for (auto _ : state) {
    memcpy(mapping.base(), image->data(), kImageBytes);
    benchmark::ClobberMemory();
  }
}

// Private pages, all protected asynchronously.
class TrackedPages {
 public:
  static absl::StatusOr<TrackedPages> Make(uint64_t pages) {
    absl::StatusOr<Pagemap> pagemap = Pagemap::Open(RealKernel());
    if (!pagemap.ok()) return pagemap.status();
    absl::StatusOr<Uffd> uffd = Uffd::Open(
        RealKernel(), {.required_features = kUffdFeaturePagefaultFlagWp |
                                            kUffdFeatureWpAsync |
                                            kUffdFeatureWpHugetlbfsShmem});
    if (!uffd.ok()) return uffd.status();
    TrackedPages tracked(pages, *std::move(uffd), *std::move(pagemap));
    const absl::Status status =
        tracked.uffd_.Register(tracked.start(), tracked.bytes(),
                               kUffdRegisterWp, kUffdIoctlWriteProtect);
    if (!status.ok()) return status;
    tracked.Write();
    tracked.Protect();
    return tracked;
  }

  void Write() { WriteEachPage(mapping_->base(), bytes()); }
  void Protect() {
    Scan(ScanRequest::UnmarkedAndProtect(start(), start() + bytes()), {});
  }
  void Find() {
    PageRegion regions[16];
    Scan(ScanRequest::Unmarked(start(), start() + bytes()), regions);
  }

 private:
  TrackedPages(uint64_t pages, Uffd uffd, Pagemap pagemap)
      : uffd_(std::move(uffd)),
        pagemap_(std::move(pagemap)),
        mapping_(std::make_unique<Mapping>(pages * kPageBytes,
                                           PatternImage(pages * kPageBytes))) {}

  uintptr_t start() const {
    return reinterpret_cast<uintptr_t>(mapping_->base());
  }
  uint64_t bytes() const { return mapping_->bytes(); }

  void Scan(const ScanRequest& request, std::span<PageRegion> regions) {
    if (!ScanPages(RealKernel(), pagemap_.fd(), request, regions.data(),
                   regions.size(), [](const PageRegion&) { return true; })
             .ok()) {
      Die("PAGEMAP_SCAN failed");
    }
  }

  // Before the memory that it guards: that is unmapped first.
  Uffd uffd_;
  Pagemap pagemap_;
  std::unique_ptr<Mapping> mapping_;
};

// Runs `measure` with pages, or says why there are none.
void WithTrackedPages(benchmark::State& state, uint64_t pages,
                      absl::FunctionRef<void(TrackedPages&)> measure) {
  absl::StatusOr<TrackedPages> tracked = TrackedPages::Make(pages);
  if (!tracked.ok()) {
    return state.SkipWithError(tracked.status().ToString().c_str());
  }
  measure(*tracked);
}

void FirstWrites(benchmark::State& state) {
  constexpr uint64_t kPages = 256;
  WithTrackedPages(state, kPages, [&](TrackedPages& tracked) {
    for (auto _ : state) {
      tracked.Write();
      state.PauseTiming();
      tracked.Protect();
      state.ResumeTiming();
    }
  });
  state.counters["per page"] =
      benchmark::Counter(kPages, benchmark::Counter::kIsIterationInvariantRate |
                                     benchmark::Counter::kInvert);
}

void Find(benchmark::State& state, uint64_t pages) {
  WithTrackedPages(state, pages, [&](TrackedPages& tracked) {
    for (auto _ : state) tracked.Find();
  });
}

void Protect(benchmark::State& state, uint64_t pages) {
  WithTrackedPages(state, pages, [&](TrackedPages& tracked) {
    for (auto _ : state) {
      state.PauseTiming();
      tracked.Write();
      state.ResumeTiming();
      tracked.Protect();
    }
  });
}

void RegisterFloors() {
  benchmark::RegisterBenchmark("copy/memcpy of image", CopyImage);
  benchmark::RegisterBenchmark("copy/read memory and image", ReadBoth);
  benchmark::RegisterBenchmark("kernel/first writes to 256 pages", FirstWrites);
  for (uint64_t pages : {256, 1024}) {
    benchmark::RegisterBenchmark(
        absl::StrCat("kernel/scan of ", pages, " pages").c_str(),
        [pages](benchmark::State& state) { Find(state, pages); });
    benchmark::RegisterBenchmark(
        absl::StrCat("kernel/protect ", pages, " pages").c_str(),
        [pages](benchmark::State& state) { Protect(state, pages); });
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
