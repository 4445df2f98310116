// Handing a memory to the next guest, clean, by every strategy there is, behind
// one interface.
//
// A strategy is one row of bench:cycle. To add one (another policy of
// firsttouch, another baseline), write a factory and put it into
// AllCycleStrategies().

#ifndef FIRSTTOUCH_BENCH_CYCLE_STRATEGIES_H_
#define FIRSTTOUCH_BENCH_CYCLE_STRATEGIES_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"
#include "firsttouch/integrations/wasm2c/guest_memory.h"
#include "firsttouch/pool/layout.h"

namespace firsttouch::bench {

inline constexpr uint64_t kCycleImageBytes = 1 << 20;
inline constexpr uint64_t kCycleMemoryBytes = 4 << 20;

// The pages that a guest writes to.
using PageList = std::span<const uint32_t>;

// One memory at a time, for one thread.
class CycleSlot {
 public:
  virtual ~CycleSlot() = default;
  // A memory that starts as the image says, zeroes behind it.
  virtual std::byte* Acquire(const ImageRef& image) = 0;
  // The guest has gone; it wrote to these pages and to no others, of the first
  // `bytes` of the memory. (All but the memcpy limit have to find that out.)
  // nullopt: nobody knows which.
  virtual void Release(std::optional<PageList> changed, uint64_t bytes) = 0;
};

// What all threads of a measurement share.
class CycleStrategy {
 public:
  virtual ~CycleStrategy() = default;
  virtual std::unique_ptr<CycleSlot> NewSlot() = 0;
  // One memory at a time, for one thread, of a wasm2c guest that stays in its
  // bounds: not all strategies have guards.
  virtual std::unique_ptr<wasm2c::MemorySource> NewSource() = 0;
  // Bytes that idle slots keep for themselves, all slots together; after every
  // slot was released.
  virtual std::optional<uint64_t> PrivateBytesOfAll() = 0;
};

struct CycleStrategyFactory {
  // An error says why this machine cannot.
  using Make = std::function<absl::StatusOr<std::unique_ptr<CycleStrategy>>(
      const LayoutOptions& layout)>;
  struct Traits {
    // What only knows the changed pages because the measurement tells is a
    // limit, and no slot of its own can be cold.
    bool is_limit = false;
    // Whether it is a row of the table of SQLite.
    bool for_sqlite = false;
  };

  // At most 22 characters.
  std::string name;
  Make make;
  Traits traits;
};

// The rows that are compared with each other.
inline constexpr char kDefaultName[] = "default options";
inline constexpr char kCopyOnWriteName[] = "CoW + MADV_DONTNEED";
inline constexpr char kScanName[] = "CoW + PAGEMAP_SCAN";
inline constexpr char kCopyImageName[] = "memcpy of the image";
inline constexpr char kLimitName[] = "memcpy of the changed";

// This library's first, the one with default options in front; then the others.
const std::vector<CycleStrategyFactory>& AllCycleStrategies();

// For so many slots of kCycleMemoryBytes.
LayoutOptions CycleLayout(uint32_t slots);

// What a pool with default options is on this machine, in a few words.
std::string DescribeDefaultOptions();

// Memories of at most `max_bytes` for guests of wasm2c that stay in their
// bounds, one at a time, in a slot that is told the size in whole pages when a
// guest is gone.
std::unique_ptr<wasm2c::MemorySource> SourceOf(std::unique_ptr<CycleSlot> slot,
                                               uint64_t max_bytes);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CYCLE_STRATEGIES_H_
