// First touch, by every strategy, behind one interface: what first_touch
// and ratios measure is the same code.

#ifndef FIRSTTOUCH_BENCH_TOUCH_STRATEGIES_H_
#define FIRSTTOUCH_BENCH_TOUCH_STRATEGIES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "firsttouch/bench/fixture.h"

namespace firsttouch::bench {

// Bytes that one Touch() covers, a page at a time or more.
inline constexpr uint64_t kTouchBytes = 4 << 20;

// What is there at the first touch.
enum class Content { kImage, kZero };

class TouchStrategy {
 public:
  virtual ~TouchStrategy() = default;
  // Puts everything back to untouched. Not timed.
  virtual void Prepare() = 0;
  // Touches a byte in each page of kTouchBytes. Timed.
  virtual void Touch() = 0;
};

// Touched in a pool.
struct PoolTouch {
  Content content = Content::kImage;
  Access access = Access::kRead;
  uint64_t fault_around_bytes = 64 << 10;
  Backing backing = Backing::kShared;
  Resolve resolve = Resolve::kInThread;
  // Backing kCopied and content kImage: all fault-around ranges lie ready in a
  // staging area when they are touched.
  bool staged = false;
};
std::unique_ptr<TouchStrategy> MakePoolTouch(const PoolTouch& touch);
// Like "image/read/64KiB/shared/in-thread".
std::string PoolTouchName(const PoolTouch& touch);

// What the kernel does by itself.
enum class KernelTouchKind {
  // Anonymous memory, or a private mapping of the image's file (which the
  // kernel maps 64 KiB at a time around a read).
  kFault,
  // The same, but MADV_POPULATE_READ or _WRITE of each fault-around range
  // before it is
  // touched (5.14).
  kPopulate,
  // memcpy from the image, or memset, of each fault-around range into fresh
  // anonymous
  // memory.
  kCopy,
};
struct KernelTouch {
  KernelTouchKind kind = KernelTouchKind::kFault;
  Content content = Content::kImage;
  Access access = Access::kRead;
  uint64_t fault_around_bytes = 64 << 10;
};
std::unique_ptr<TouchStrategy> MakeKernelTouch(const KernelTouch& touch);
std::string KernelTouchName(const KernelTouch& touch);

struct NamedTouchStrategy {
  std::string name;
  std::function<std::unique_ptr<TouchStrategy>()> make;
};
// All of the above.
std::vector<NamedTouchStrategy> AllTouchStrategies();

// "4KiB", "2MiB".
std::string BytesName(uint64_t bytes);

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_TOUCH_STRATEGIES_H_
