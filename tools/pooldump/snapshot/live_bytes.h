// The control block of a running process.
//
// Thread-compatible. Allocates.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LIVE_BYTES_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LIVE_BYTES_H_

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/block.h"
#include "firsttouch/tools/pooldump/snapshot/block_bytes.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::pooldump {

// The block of a process that goes on writing it. Records of slots and images,
// which are always there, are mapped, so that each word is read by one
// instruction; the rest is read by calls, since a touch of a hole would
// allocate a page for it. Page states of small memories are read many at once,
// holes and all, and remembered: for one reading of the pool.
class LiveBytes : public BlockBytes {
 public:
  // `fd` is a memfd that cannot shrink.
  LiveBytes(UniqueFd fd, uint64_t bytes) : fd_(std::move(fd)), bytes_(bytes) {}
  ~LiveBytes() override;
  LiveBytes(const LiveBytes&) = delete;
  LiveBytes& operator=(const LiveBytes&) = delete;

  uint64_t bytes() const override { return bytes_; }

  // Maps the records, once the header has been checked.
  absl::Status MapRecords(const ControlHeader& header);

  absl::Status Read(uint64_t offset, std::span<uint64_t> into) override;
  absl::StatusOr<Part> NextData(uint64_t offset, uint64_t end) override;

 private:
  struct Span {
    uint64_t offset = 0;
    uint64_t end = 0;
    bool Contains(uint64_t from, uint64_t to) const {
      return from >= offset && to <= end;
    }
  };
  static Span SpanOf(const ControlSection& section);

  absl::Status Pread(uint64_t offset, std::span<uint64_t> into) const;

  const UniqueFd fd_;
  const uint64_t bytes_;
  void* mapping_ = nullptr;
  uint64_t mapped_bytes_ = 0;
  Span slots_;
  Span images_;
  // What is read ahead, and what buffer_ has of it.
  Span ahead_;
  Span read_;
  std::vector<uint64_t> buffer_;
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_LIVE_BYTES_H_
