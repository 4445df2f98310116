// The ways of supplying memory that sqlite_tenants compares.

#ifndef FIRSTTOUCH_EXAMPLES_SUPPLY_H_
#define FIRSTTOUCH_EXAMPLES_SUPPLY_H_

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"

namespace firsttouch::examples {

// One column of the table.
enum class Way {
  kSharedInThread,
  kCopiedInThread,
  kSharedHandlerThread,
  kCopiedHandlerThread,
  // The kernel's own ways, for comparison.
  kPrivateMapping,
  kEagerCopy,
};

// All ways, in the table's order.
std::vector<Way> AllWays();

// The name in JSON and in flags: "shared/in-thread".
std::string_view FullName(Way way);

// Counts since the supply was made.
struct SupplyCounts {
  // Zero for the kernel's own ways.
  uint64_t minor_faults = 0;
  uint64_t missing_read_faults = 0;
  uint64_t missing_write_faults = 0;
  uint64_t write_protect_faults = 0;
  // Page faults that the kernel resolved by itself, in the whole process.
  uint64_t kernel_page_faults = 0;
  // System calls made to supply, reset and protect memory.
  uint64_t kernel_calls = 0;
};

// A source of memories in one of the ways.
class Supply {
 public:
  // A pool of `slots` memories of up to `max_memory_bytes`. Fails with the
  // reason where this machine does not allow the way.
  static absl::StatusOr<std::unique_ptr<Supply>> Create(
      Way way, uint32_t slots, uint64_t max_memory_bytes);

  virtual ~Supply() = default;

  virtual wasm2c::MemorySource* source() = 0;
  virtual SupplyCounts Counts() const = 0;
  // The first address of the pool's memories.
  virtual uintptr_t base() const = 0;
  virtual uint64_t bytes() const = 0;

  // The anonymous memory (private to this process, not shared with an image)
  // that its memories have now, by /proc/self/smaps.
  absl::StatusOr<uint64_t> AnonymousBytes() const;
};

}  // namespace firsttouch::examples

#endif  // FIRSTTOUCH_EXAMPLES_SUPPLY_H_
