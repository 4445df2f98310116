// The numbers that name things in a pool. They are three types, so that a
// memory's slot is never passed where an instance is meant. All are plain
// values: trivially copyable, async-signal-safe, no allocation.
//
//   SlotIndex      one memory of the pool, counted over all instances (flat)
//   InstanceIndex  one instance: memories_per_instance neighbouring slots
//   MemoryIndex    one memory of an instance, 0-based
//
//   slot = instance * memories_per_instance + memory
//
// PoolLayout (pool/layout.h) converts between them.
#ifndef FIRSTTOUCH_POOL_IDS_H_
#define FIRSTTOUCH_POOL_IDS_H_

#include <compare>
#include <cstdint>

namespace firsttouch {

namespace pool_internal {

// `Tag` only distinguishes the types.
template <typename Tag>
class StrongIndex {
 public:
  constexpr StrongIndex() noexcept = default;
  constexpr explicit StrongIndex(uint32_t value) noexcept : value_(value) {}
  constexpr uint32_t value() const noexcept { return value_; }
  friend constexpr auto operator<=>(StrongIndex,
                                    StrongIndex) noexcept = default;

 private:
  uint32_t value_ = 0;
};

}  // namespace pool_internal

using SlotIndex = pool_internal::StrongIndex<struct SlotIndexTag>;
using InstanceIndex = pool_internal::StrongIndex<struct InstanceIndexTag>;
using MemoryIndex = pool_internal::StrongIndex<struct MemoryIndexTag>;

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_IDS_H_
