// Where the linear memories of wasm2c guests come from.
//
// A seam: guests ask a MemorySource for memories and know nothing about how
// they are supplied. PoolMemorySource (pool_memory.h) supplies them from a
// firsttouch service. Others exist to compare with, and in tests.

#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_GUEST_MEMORY_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_GUEST_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/service/trap.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::wasm2c {

// Bytes of a WebAssembly page.
inline constexpr uint64_t kWasmPageBytes = 65536;

// The most that a memory can have: one page short of 4 GiB, because
// wasm_rt_memory_t keeps the size in 32 bits.
inline constexpr uint64_t kMaxGuestMemoryBytes = 65535 * kWasmPageBytes;

// How far generated code can reach from the start of a memory: a 32-bit index,
// a 32-bit constant offset and the access itself, rounded up to a page. All of
// it must be memory or guard.
inline constexpr uint64_t kReachBytes = (uint64_t{1} << 33) + kPageBytes;

// One linear memory of one guest. Gives itself back when it is destroyed.
//
// The guest that has it, and the host while that guest runs, may read and write
// [base(), base() + size_bytes()) with ordinary loads and stores. A touch
// further up, within kReachBytes, is a trap and never reaches other memory.
//
// Not thread-safe, except that distinct memories are independent.
class GuestMemory {
 public:
  virtual ~GuestMemory() = default;

  // The first byte. Stays the same for as long as the object lives.
  virtual std::byte* base() const = 0;
  virtual uint64_t size_bytes() const = 0;

  // Makes the memory larger; the new bytes read as zero. Fails, and changes
  // nothing, when the size is larger than what the source reserves
  // (OutOfRange), or when the kernel refuses.
  virtual absl::Status Grow(uint64_t new_size_bytes) = 0;

  // Puts contents and size back to what they were when the memory was acquired.
  virtual absl::Status Reset() = 0;

  // Makes a range ready for a system call that reads or writes it. The kernel
  // supplies no pages of a pool that are missing: read(2) into them gives
  // EFAULT or a short count. OutOfRange when the range does not end within
  // size_bytes().
  virtual absl::Status MakeReady(uint64_t offset_bytes, uint64_t bytes,
                                 Access access) = 0;

  // The present contents as an image.
  virtual absl::StatusOr<ImageRef> Snapshot(std::string_view name) = 0;
};

// What a memory should be at first.
struct MemoryRequest {
  // Null: all zero.
  ImageRef image;
  // At least the image's size.
  uint64_t size_bytes = 0;
};

// Thread-safe. Must outlive its memories.
class MemorySource {
 public:
  virtual ~MemorySource() = default;

  // The memories of one guest. ResourceExhausted when all slots are in use.
  virtual absl::StatusOr<std::vector<std::unique_ptr<GuestMemory>>> Acquire(
      std::span<const MemoryRequest> requests) = 0;
};

}  // namespace firsttouch::wasm2c

#endif  // FIRSTTOUCH_INTEGRATIONS_WASM2C_GUEST_MEMORY_H_
