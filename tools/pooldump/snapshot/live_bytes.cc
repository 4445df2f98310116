#include "firsttouch/tools/pooldump/snapshot/live_bytes.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/control/block.h"

namespace firsttouch::pooldump {
namespace {

// Where to look for holes costs less than to read them.
constexpr uint64_t kSmallRecordBytes = 32768;
constexpr uint64_t kAheadBytes = uint64_t{1} << 18;

}  // namespace

LiveBytes::~LiveBytes() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_bytes_);
}

absl::Status LiveBytes::MapRecords(const ControlHeader& header) {
  slots_ = SpanOf(header.slots);
  images_ = SpanOf(header.images);
  if (header.pages.record_bytes <= kSmallRecordBytes) {
    ahead_ = SpanOf(header.pages);
  }
  const uint64_t end = std::max(slots_.end, images_.end);
  void* const mapped = mmap(nullptr, end, PROT_READ, MAP_SHARED, fd_.get(), 0);
  if (mapped == MAP_FAILED) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("mmap of ", end, " bytes of a control block"));
  }
  mapping_ = mapped;
  mapped_bytes_ = end;
  return absl::OkStatus();
}

absl::Status LiveBytes::Read(uint64_t offset, std::span<uint64_t> into) {
  const uint64_t end = offset + into.size_bytes();
  if (slots_.Contains(offset, end) || images_.Contains(offset, end)) {
    const auto* from = reinterpret_cast<const uint64_t*>(
        static_cast<const std::byte*>(mapping_) + offset);
    for (uint64_t& word : into) {
      word = __atomic_load_n(from++, __ATOMIC_ACQUIRE);
    }
    return absl::OkStatus();
  }
  if (!ahead_.Contains(offset, end) || into.size_bytes() > kAheadBytes) {
    return Pread(offset, into);
  }
  if (!read_.Contains(offset, end)) {
    read_ = {offset, std::min(offset + kAheadBytes, ahead_.end)};
    buffer_.resize((read_.end - read_.offset) / 8);
    if (absl::Status status = Pread(offset, buffer_); !status.ok()) {
      read_ = {};
      return status;
    }
  }
  std::copy_n(buffer_.begin() +
                  static_cast<std::ptrdiff_t>((offset - read_.offset) / 8),
              into.size(), into.begin());
  return absl::OkStatus();
}

absl::StatusOr<BlockBytes::Part> LiveBytes::NextData(uint64_t offset,
                                                     uint64_t end) {
  if (ahead_.Contains(offset, end)) return Part{offset, end};
  const off_t data = lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return Part{end, end};
  if (data < 0) {
    return absl::ErrnoToStatus(errno, "lseek in a control block");
  }
  const auto from = static_cast<uint64_t>(data);
  if (from >= end) return Part{end, end};
  const off_t hole = lseek(fd_.get(), data, SEEK_HOLE);
  if (hole < 0) {
    return absl::ErrnoToStatus(errno, "lseek in a control block");
  }
  return Part{from, std::min(static_cast<uint64_t>(hole), end)};
}

LiveBytes::Span LiveBytes::SpanOf(const ControlSection& section) {
  return {section.offset_bytes,
          section.offset_bytes + section.record_bytes * section.records};
}

absl::Status LiveBytes::Pread(uint64_t offset, std::span<uint64_t> into) const {
  auto* to = reinterpret_cast<char*>(into.data());
  size_t left = into.size_bytes();
  while (left > 0) {
    const ssize_t got = pread(fd_.get(), to, left, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return absl::ErrnoToStatus(errno, "reading a control block");
    }
    if (got == 0) return absl::DataLossError("a control block has shrunk");
    to += got;
    offset += static_cast<uint64_t>(got);
    left -= static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

}  // namespace firsttouch::pooldump
