// What the measurements are made of: images, pools, and the kernel's own
// mappings. Whatever fails ends the program with a line that says why.

#ifndef FIRSTTOUCH_BENCH_FIXTURE_H_
#define FIRSTTOUCH_BENCH_FIXTURE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/pool/layout.h"
#include "firsttouch/service/memory.h"
#include "firsttouch/service/options.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/supply_choice.h"

namespace firsttouch::bench {

[[noreturn]] void Die(std::string_view what);

inline void OrDie(const absl::Status& status) {
  if (!status.ok()) Die(status.ToString());
}

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) Die(value.status().ToString());
  return *std::move(value);
}

// An image all of whose pages are stored and differ from each other. No byte of
// it is 0 or 1, so that whoever writes a 1 changes the page.
ImageRef PatternImage(uint64_t bytes, uint32_t seed = 1);

// A new folder in `directory`, or where temporary ones usually are if that is
// empty. Ends with a slash.
std::string NewFolder(std::string directory, std::string_view name);

// A layout of one memory, with huge-page guards behind it.
LayoutOptions OneSlot(uint64_t memory_bytes,
                      uint64_t fault_around_bytes = 64 << 10);

// A memory without a resident page, in a pool of one slot that is free. Of an
// image the last kColdReadPages pages are there, and no others: a pool places
// early what earlier leases have touched, so the working set is made to say
// that guests read these only. (With fewer an image would not be mapped.)
inline constexpr uint64_t kColdReadPages = 3;
Memory ColdMemory(Service& pool, const ImageRef& image, uint64_t size_bytes);

// Memory from the kernel, private and never in huge pages, as the pool's.
class Mapping {
 public:
  // Of zeroes, aligned to 2 MiB; but from the start as the image's file is.
  explicit Mapping(uint64_t bytes, const ImageRef& image = nullptr);
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  std::byte* base() const { return base_; }
  uint64_t bytes() const { return bytes_; }

  // As when it was made.
  void MapAnew();
  // From now on the start is as this image's file is. Where the one before was
  // larger, what lies behind this one stays the other's.
  void Bind(const ImageRef& image);
  // Without a page in [from, to), all of it without arguments, by
  // MADV_DONTNEED.
  void Drop(uint64_t from, uint64_t to);
  void Drop() { Drop(0, bytes_); }

 private:
  std::byte* reservation_;
  uint64_t reservation_bytes_;
  std::byte* base_;
  uint64_t bytes_;
  ImageRef image_;
};

// Touches a byte in each page.
void ReadEachPage(const std::byte* base, uint64_t bytes);
void WriteEachPage(std::byte* base, uint64_t bytes);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_FIXTURE_H_
