// Whether this machine has room for a layout, and if not: which limit it
// exceeds, what was asked, and the largest pool that would fit. The facts are a
// plain struct, so that the answer is a pure function of them and a test can
// try any machine; ReadLimitFacts reads them from the running machine.
#ifndef FIRSTTOUCH_POOL_LIMITS_H_
#define FIRSTTOUCH_POOL_LIMITS_H_

#include <cstdint>
#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "firsttouch/pool/layout.h"

namespace firsttouch {

// vm.overcommit_memory.
enum class Overcommit : int { kHeuristic = 0, kAlways = 1, kNever = 2 };

inline constexpr uint64_t kUnlimited = ~uint64_t{0};

// The facts that decide whether a mapping is granted. Values that could not be
// read keep their defaults, which are the most permissive ones.
struct LimitFacts {
  // User-space addresses have this many bits (47 on x86-64).
  uint32_t address_space_bits = 47;
  // The longest run of user-space addresses without a mapping.
  uint64_t largest_gap_bytes = kUnlimited;
  // RLIMIT_AS (ulimit -v), soft limit; kUnlimited for none.
  uint64_t rlimit_as_bytes = kUnlimited;
  // How much of that this process already uses (VmSize).
  uint64_t mapped_bytes = 0;
  // vm.max_map_count and the mappings this process has now.
  uint64_t max_map_count = kUnlimited;
  uint64_t maps = 0;
  Overcommit overcommit = Overcommit::kHeuristic;
  // In mode kNever: CommitLimit and Committed_AS of /proc/meminfo. The kernel
  // then counts a private writable mapping in full, MAP_NORESERVE or not.
  uint64_t commit_limit_bytes = kUnlimited;
  uint64_t committed_bytes = 0;
  // MemAvailable and SwapFree of /proc/meminfo: how much can be allocated
  // before the kernel ends a process for lack of memory.
  uint64_t available_memory_bytes = kUnlimited;
};

// What a slot costs once in use, which the layout does not know.
struct LimitUse {
  // The mappings that the whole pool needs, whatever its slots do.
  uint64_t fixed_maps = 1;
  // The base has to be a multiple of this (as in ReservationOptions), so that
  // up to this much of a gap may be lost in front of it. A power of two.
  uint64_t alignment_bytes = uint64_t{1} << 32;
  // The mappings that each slot may add: 2 where an image is mapped into the
  // slot (the image's and the one behind it), 0 for a pool that copies.
  uint64_t maps_per_slot = 0;
};

enum class Limit { kAddressSpace, kRlimitAs, kMapCount, kOvercommit };

// "address space", "RLIMIT_AS", "vm.max_map_count", "overcommit". Static.
std::string_view LimitName(Limit limit);

// The answer as numbers, for tools.
struct LimitVerdict {
  // The tightest limit that the layout exceeds; nullopt: it fits.
  std::optional<Limit> exceeded;
  // In the unit of that limit: bytes, or mappings for kMapCount.
  uint64_t asked = 0;
  uint64_t available = 0;
  // The largest number of instances, everything else as asked, for which no
  // limit is exceeded; 0 when not even one fits. At least what was asked for if
  // nothing is exceeded.
  uint32_t largest_instances = 0;
};

// Pure. Counts the whole reservation against each limit.
LimitVerdict JudgeLimits(const PoolLayout& layout, const LimitUse& use,
                         const LimitFacts& facts);

// OK, or ResourceExhausted with the limit's name and value, the bytes asked,
// the slots, the largest pool that fits and the way out. Pure.
absl::Status CheckLimits(const PoolLayout& layout, const LimitUse& use,
                         const LimitFacts& facts);

// OK, or ResourceExhausted where the pool's own records, `bytes_per_instance`
// (not 0) for each instance, need more memory than there is; the error has what
// is asked, what there is, and the most instances that fit. Call it before they
// are allocated. Pure.
absl::Status CheckBookKeeping(const PoolLayout& layout,
                              uint64_t bytes_per_instance,
                              const LimitFacts& facts);

// The facts of this process now. Reads /proc; never fails (facts that cannot be
// read keep their defaults). Allocates only some KiB, so that it can be called
// at the limit of mappings; not for signal handlers.
LimitFacts ReadLimitFacts();

// Like ReadLimitFacts(), without the mappings and the gap between them, which
// take long in a process that has many.
LimitFacts ReadMemoryFacts();

}  // namespace firsttouch

#endif  // FIRSTTOUCH_POOL_LIMITS_H_
