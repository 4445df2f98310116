// Control blocks and cores for tests and fuzzers, made without a pool.

#ifndef FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_TEST_BLOCK_H_
#define FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_TEST_BLOCK_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/control/control_block.h"
#include "firsttouch/tools/pooldump/snapshot/block_reader.h"

namespace firsttouch::pooldump {

// Where the pool of TestBlock() is: 3 slots of 300 pages, 2 pages of guard in
// front and 4 behind each.
inline constexpr uint64_t kTestBase = uint64_t{0x700000000000};
inline constexpr uint64_t kTestMemoryPages = 300;
inline constexpr uint64_t kTestFirstSlot = kTestBase + 2 * 4096;
inline constexpr uint64_t kTestStride = (kTestMemoryPages + 4) * 4096;

// The bytes of a block of pool "test". Slot 0 is held, 100 pages of size, with
// 5 cycles, bound to image 7, "greeting", of 70 pages; its page 0 is clean,
// 1 untracked, 2 dirty, 3 hot, and 299 hot. Slot 1 is free. Slot 2 is
// quarantined.
std::string TestBlock();
// The same, to be written to.
std::unique_ptr<ControlBlock> MakeTestBlock();

// A record of its section of slots, unlike the service's.
struct alignas(64) TestRecord {
  uint8_t tracking = 0;
  uint32_t state = 0;
  uint64_t traps = 0;
  uint64_t size_bytes = 0;
  uint64_t handovers = 0;
  uint64_t initial_bytes = 0;
};
// Its states.
enum TestState : uint32_t {
  kTestFree,
  kTestHeld,
  kTestQuarantined,
  kTestReturning
};

// A core with that block, of a process that a touch of `fault` ended.
std::string TestCore(const std::string& block, uint64_t fault);

// A block that lies in memory.
class MemoryBytes : public BlockBytes {
 public:
  explicit MemoryBytes(std::string_view bytes);
  uint64_t bytes() const override { return bytes_; }
  absl::Status Read(uint64_t offset, std::span<uint64_t> into) override;
  absl::StatusOr<Part> NextData(uint64_t offset, uint64_t end) override;

 private:
  std::vector<uint64_t> words_;
  uint64_t bytes_;
};

}  // namespace firsttouch::pooldump

#endif  // FIRSTTOUCH_TOOLS_POOLDUMP_SNAPSHOT_TEST_BLOCK_H_
