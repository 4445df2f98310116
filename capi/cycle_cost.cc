// What a steady cycle costs through C beside C++: acquire, write to some pages,
// release, in turn in one process.
//
//   ./bazelw run -c opt //capi:cycle_cost
//
// Three ways: C++; the C interface, linked into the program; and the C
// interface of libfirsttouch.so, as other languages have it. The shared library
// is a second copy of everything, with a pool of its own.

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/capi/firsttouch.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/service/service.h"

namespace firsttouch {
namespace {

constexpr uint64_t kPage = FT_PAGE_BYTES;
constexpr uint64_t kImageBytes = 64 * kPage;
constexpr uint64_t kMemoryBytes = 256 * kPage;
constexpr int kRounds = 301;
constexpr int kCycles = 2000;

[[noreturn]] void Die(const char* what) {
  fprintf(stderr, "cycle_cost: %s\n", what);
  exit(1);
}

std::vector<std::byte> ImageBytes() {
  return std::vector<std::byte>(kImageBytes, std::byte{'i'});
}

inline void WritePages(void* base, int pages) {
  auto* const bytes = static_cast<volatile char*>(base);
  for (int i = 0; i < pages; ++i) bytes[i * kPage] = 1;
}

// The functions of the interface, wherever they come from.
struct Functions {
  decltype(&ft_pool_create) pool_create;
  decltype(&ft_image_from_bytes) image_from_bytes;
  decltype(&ft_memory_acquire) memory_acquire;
  decltype(&ft_memory_release) memory_release;
};

Functions Linked() {
  return {&ft_pool_create, &ft_image_from_bytes, &ft_memory_acquire,
          &ft_memory_release};
}

template <typename Function>
void Load(void* library, const char* name, Function** into) {
  *into = reinterpret_cast<Function*>(dlsym(library, name));
  if (*into == nullptr) Die(dlerror());
}

Functions Loaded(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) Die(dlerror());
  Functions functions = {};
  Load(library, "ft_pool_create", &functions.pool_create);
  Load(library, "ft_image_from_bytes", &functions.image_from_bytes);
  Load(library, "ft_memory_acquire", &functions.memory_acquire);
  Load(library, "ft_memory_release", &functions.memory_release);
  return functions;
}

class InC {
 public:
  explicit InC(const Functions& functions) : functions_(functions) {
    ft_error error = FT_ERROR_INIT;
    ft_layout_options layout = FT_LAYOUT_OPTIONS_INIT;
    layout.instances = 1;
    layout.max_memory_bytes = kMemoryBytes;
    layout.guard_after_bytes = kMemoryBytes;
    ft_pool_options options = FT_POOL_OPTIONS_INIT;
    options.layout = &layout;
    if (functions.pool_create(&options, &pool_, &error) != FT_OK) {
      Die(error.message);
    }
    const std::vector<std::byte> bytes = ImageBytes();
    ft_image_options image = FT_IMAGE_OPTIONS_INIT;
    image.size_bytes = bytes.size();
    if (functions.image_from_bytes(&image, bytes.data(), bytes.size(),
                                   &options_.image, &error) != FT_OK) {
      Die(error.message);
    }
    options_.size_bytes = kMemoryBytes;
  }

  void Cycle(int pages) const {
    ft_memory memory;
    void* base = nullptr;
    if (functions_.memory_acquire(pool_, &options_, &memory, &base, nullptr) !=
        FT_OK) {
      Die("ft_memory_acquire");
    }
    WritePages(base, pages);
    if (functions_.memory_release(memory, nullptr) != FT_OK) {
      Die("ft_memory_release");
    }
  }

 private:
  const Functions functions_;
  ft_pool pool_ = {};
  ft_memory_options options_ = FT_MEMORY_OPTIONS_INIT;
};

class InCpp {
 public:
  InCpp() {
    const std::vector<std::byte> bytes = ImageBytes();
    absl::StatusOr<ImageRef> image =
        ImageFromBytes({.name = "", .size_bytes = bytes.size()}, bytes);
    if (!image.ok()) Die("ImageFromBytes");
    options_.image = *std::move(image);
    options_.size_bytes = kMemoryBytes;
    absl::StatusOr<std::unique_ptr<Service>> service =
        Service::Create({.layout = {.instances = 1,
                                    .max_memory_bytes = kMemoryBytes,
                                    .guard_after_bytes = kMemoryBytes}});
    if (!service.ok()) Die("Service::Create");
    service_ = *std::move(service);
  }

  // As docs/embedding.md has it.
  void Cycle(int pages) const {
    absl::StatusOr<Memory> memory = service_->Acquire(
        {.image = options_.image, .size_bytes = kMemoryBytes});
    if (!memory.ok()) Die("Acquire");
    WritePages(memory->base(), pages);
    if (!memory->Release().ok()) Die("Release");
  }

  // With options that are kept: no reference to the image is counted.
  void CycleWithKeptOptions(int pages) const {
    absl::StatusOr<Memory> memory = service_->Acquire(options_);
    if (!memory.ok()) Die("Acquire");
    WritePages(memory->base(), pages);
    if (!memory->Release().ok()) Die("Release");
  }

 private:
  std::unique_ptr<Service> service_;
  MemoryOptions options_;
};

// ns of one cycle, of many in a row.
template <typename Cycle>
double Measure(Cycle cycle) {
  const auto before = std::chrono::steady_clock::now();
  for (int i = 0; i < kCycles; ++i) cycle();
  const std::chrono::duration<double, std::nano> took =
      std::chrono::steady_clock::now() - before;
  return took.count() / kCycles;
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2,
                   values.end());
  return values[values.size() / 2];
}

// The median of what the second takes more than the first, round by round.
double MedianDifference(const std::vector<double>& first,
                        const std::vector<double>& second) {
  std::vector<double> differences;
  differences.reserve(first.size());
  for (size_t i = 0; i < first.size(); ++i) {
    differences.push_back(second[i] - first[i]);
  }
  return Median(std::move(differences));
}

void Run(const char* library) {
  const InCpp cpp;
  const InC linked(Linked());
  const InC loaded(Loaded(library));
  printf(
      "ns a cycle: medians of %d rounds of %d cycles, and of what C takes\n"
      "more than C++ (more than C++ with options that are kept)\n\n",
      kRounds, kCycles);
  printf("%5s %7s %7s %10s %17s %13s %17s\n", "pages", "C++", "kept",
         "C, linked", "more", "C, shared", "more");
  // A host has threads, and then counting references takes atomic instructions.
  std::thread([] {}).join();
  for (const int pages : {0, 1, 4, 16}) {
    std::vector<double> in_cpp;
    std::vector<double> kept;
    std::vector<double> in_linked;
    std::vector<double> in_loaded;
    for (int round = 0; round < kRounds; ++round) {
      in_cpp.push_back(Measure([&] { cpp.Cycle(pages); }));
      kept.push_back(Measure([&] { cpp.CycleWithKeptOptions(pages); }));
      in_linked.push_back(Measure([&] { linked.Cycle(pages); }));
      in_loaded.push_back(Measure([&] { loaded.Cycle(pages); }));
    }
    printf("%5d %7.1f %7.1f %10.1f %+8.1f (%+6.1f) %13.1f %+8.1f (%+6.1f)\n",
           pages, Median(in_cpp), Median(kept), Median(in_linked),
           MedianDifference(in_cpp, in_linked),
           MedianDifference(kept, in_linked), Median(in_loaded),
           MedianDifference(in_cpp, in_loaded),
           MedianDifference(kept, in_loaded));
  }
}

}  // namespace
}  // namespace firsttouch

int main(int argc, char** argv) {
  if (argc != 2) firsttouch::Die("give the path of libfirsttouch.so");
  firsttouch::Run(argv[1]);
  return 0;
}
