// Recycling a memory, clean for the next lease, by every strategy, behind one
// interface.
//
// A strategy is one row of bench:cycle. To add one (another policy of
// firsttouch, another baseline), write a factory and put it into
// AllCycleStrategies().

#ifndef FIRSTTOUCH_BENCH_CYCLE_STRATEGIES_H_
#define FIRSTTOUCH_BENCH_CYCLE_STRATEGIES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "firsttouch/init/image.h"

namespace firsttouch::bench {

inline constexpr uint64_t kCycleImageBytes = 1 << 20;
inline constexpr uint64_t kCycleMemoryBytes = 4 << 20;

// The pages that a tenant writes to.
using PageList = std::span<const uint32_t>;

// One memory at a time, for one thread.
class CycleSlot {
 public:
  virtual ~CycleSlot() = default;
  // A memory that starts as the image says, zeroes behind it.
  virtual std::byte* Acquire(const ImageRef& image) = 0;
  // The tenant has gone; it wrote to these pages and to no others. (All but the
  // memcpy limit have to find that out.)
  virtual void Release(PageList changed) = 0;
};

// What all threads of a measurement share.
class CycleStrategy {
 public:
  virtual ~CycleStrategy() = default;
  virtual std::unique_ptr<CycleSlot> NewSlot() = 0;
  // Bytes that idle slots keep for themselves, all slots together; after every
  // slot was released.
  virtual std::optional<uint64_t> PrivateBytesOfAll() = 0;
};

struct CycleStrategyFactory {
  // At most 22 characters.
  std::string name;
  // For up to `slots` slots. An error says why this machine cannot.
  absl::StatusOr<std::unique_ptr<CycleStrategy>> (*make)(uint32_t slots);
  // What only knows the changed pages because the measurement tells is a limit,
  // and no slot of its own can be cold.
  bool is_limit = false;
};

// The rows that are compared with each other.
inline constexpr char kDefaultName[] = "default options";
inline constexpr char kCopyOnWriteName[] = "CoW + MADV_DONTNEED";
inline constexpr char kScanName[] = "CoW + PAGEMAP_SCAN";
inline constexpr char kCopyImageName[] = "memcpy of the image";
inline constexpr char kLimitName[] = "memcpy of the changed";

// This library's first, the one with default options in front; then the others.
const std::vector<CycleStrategyFactory>& AllCycleStrategies();

// What a pool with default options is on this machine, in a few words.
std::string DescribeDefaultOptions();

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_CYCLE_STRATEGIES_H_
