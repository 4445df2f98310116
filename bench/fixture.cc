#include "firsttouch/bench/fixture.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/working_set.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::bench {
namespace {

constexpr uint64_t kHugePageBytes = 2 << 20;
constexpr int kFixed = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;

}  // namespace

void Die(std::string_view what) {
  std::fprintf(stderr, "bench: %.*s\n", static_cast<int>(what.size()),
               what.data());
  std::exit(1);
}

ImageRef PatternImage(uint64_t bytes, uint32_t seed) {
  return OrDie(ImageFromCallback(
      {.name = absl::StrCat("bench-", seed), .size_bytes = bytes},
      [seed](PageIndex page, std::span<std::byte, kPageBytes> contents) {
        uint32_t value = seed * 2654435761u + page.value() * 40503u + 1;
        for (size_t i = 0; i < contents.size(); i += sizeof value) {
          value = value * 1664525u + 1013904223u;
          const uint32_t bytes = value | 0x02020202u;
          memcpy(contents.data() + i, &bytes, sizeof bytes);
        }
        return absl::OkStatus();
      }));
}

std::string NewFolder(std::string directory, std::string_view name) {
  if (directory.empty()) directory = std::filesystem::temp_directory_path();
  std::string folder = std::move(directory);
  folder.append("/").append(name).append(".XXXXXX");
  if (mkdtemp(folder.data()) == nullptr) {
    Die(absl::StrCat("--directory: cannot make a folder ", folder));
  }
  return folder + "/";
}

LayoutOptions OneSlot(uint64_t memory_bytes, uint64_t fault_around_bytes) {
  return {.instances = 1,
          .max_memory_bytes = memory_bytes,
          .guard_after_bytes = kHugePageBytes,
          .fault_around_bytes = fault_around_bytes};
}

Memory ColdMemory(Service& pool, const ImageRef& image, uint64_t size_bytes) {
  // A lease of no bytes leaves nothing.
  OrDie(OrDie(pool.Acquire({.image = nullptr, .size_bytes = 0})).Release());
  if (image != nullptr) {
    const uint64_t pages = image->pages().value();
    WorkingSet::Words read((pages + 63) / 64);
    for (uint64_t page = pages - kColdReadPages; page < pages; ++page) {
      read[page / 64] |= uint64_t{1} << page % 64;
    }
    image->working_set().Replace({}, read);
  }
  return OrDie(pool.Acquire({.image = image, .size_bytes = size_bytes}));
}

Mapping::Mapping(uint64_t bytes, const ImageRef& image)
    : reservation_bytes_(bytes + kHugePageBytes), bytes_(bytes), image_(image) {
  void* const mapped = mmap(nullptr, reservation_bytes_, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) Die("mmap failed");
  reservation_ = static_cast<std::byte*>(mapped);
  const auto address = reinterpret_cast<uintptr_t>(mapped);
  base_ = reservation_ + (-address & (kHugePageBytes - 1));
  MapAnew();
}

Mapping::~Mapping() { munmap(reservation_, reservation_bytes_); }

void Mapping::MapAnew() {
  const uint64_t image_bytes = image_ == nullptr ? 0 : image_->pages().bytes();
  if (image_ != nullptr) Bind(image_);
  if (bytes_ > image_bytes &&
      mmap(base_ + image_bytes, bytes_ - image_bytes, PROT_READ | PROT_WRITE,
           kFixed | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) {
    Die("mmap failed");
  }
  // Fails on a kernel without huge pages, where there is nothing to avoid.
  madvise(base_, bytes_, MADV_NOHUGEPAGE);
}

void Mapping::Bind(const ImageRef& image) {
  image_ = image;
  if (mmap(base_, image->pages().bytes(), PROT_READ | PROT_WRITE, kFixed,
           image->memfd(), 0) == MAP_FAILED) {
    Die("mmap of an image failed");
  }
}

void Mapping::Drop(uint64_t from, uint64_t to) {
  if (madvise(base_ + from, to - from, MADV_DONTNEED) != 0) {
    Die("MADV_DONTNEED failed");
  }
}

void ReadEachPage(const std::byte* base, uint64_t bytes) {
  const volatile std::byte* const memory = base;
  for (uint64_t i = 0; i < bytes; i += kPageBytes) {
    static_cast<void>(memory[i]);
  }
}

void WriteEachPage(std::byte* base, uint64_t bytes) {
  volatile std::byte* const memory = base;
  for (uint64_t i = 0; i < bytes; i += kPageBytes) {
    memory[i] = std::byte{1};
  }
}

}  // namespace firsttouch::bench
