#include "firsttouch/init/image.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/memfd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

alignas(kPageBytes) constexpr std::byte kZeroPage[kPageBytes] = {};

uint64_t NextId() {
  static std::atomic<uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace

Image::Image(MemfdCalls& calls) : calls_(calls), id_(NextId()) {}

Image::~Image() {
  if (data_ != nullptr) {
    calls_.Unmap(reinterpret_cast<uintptr_t>(data_), pages().bytes());
  }
  if (memfd_ >= 0) calls_.Close(memfd_);
}

const std::byte* Image::PageBytes(PageIndex page) const {
  return IsStored(page) ? data_ + page.offset_bytes() : kZeroPage;
}

absl::Status Image::Read(uint64_t offset_bytes,
                         std::span<std::byte> into) const {
  if (offset_bytes > size_bytes_ || into.size() > size_bytes_ - offset_bytes) {
    return absl::OutOfRangeError(absl::StrCat(
        "image '", name_, "': read of offset ", offset_bytes, " + ",
        into.size(), " bytes exceeds size_bytes ", size_bytes_));
  }
  for (size_t done = 0; done < into.size();) {
    const uint64_t position = offset_bytes + done;
    const size_t in_page = position % kPageBytes;
    const size_t chunk =
        std::min<size_t>(kPageBytes - in_page, into.size() - done);
    std::memcpy(into.data() + done,
                PageBytes(PageContaining(position)) + in_page, chunk);
    done += chunk;
  }
  return absl::OkStatus();
}

}  // namespace firsttouch
