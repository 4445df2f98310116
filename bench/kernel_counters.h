// What the kernel counts by itself.

#ifndef FIRSTTOUCH_BENCH_KERNEL_COUNTERS_H_
#define FIRSTTOUCH_BENCH_KERNEL_COUNTERS_H_

#include <cstddef>
#include <cstdint>
#include <optional>

namespace firsttouch::bench {

// Page faults of this process so far that needed no disk (getrusage).
uint64_t MinorFaults();

// Interrupts so far by which a core was told to forget translations, all cores
// and all processes (the TLB line of /proc/interrupts); nullopt without one.
std::optional<uint64_t> TlbShootdowns();

// Bytes in [base, base + bytes) that belong to this process alone: anonymous
// pages, resident or swapped out. Counts whole mappings (/proc/self/smaps), so
// the range should be one or more of them. nullopt where smaps is not to be
// read.
std::optional<uint64_t> PrivateBytes(const std::byte* base, uint64_t bytes);

// The same for all of this process: what it has that no other has
// (/proc/self/smaps_rollup), control blocks included.
std::optional<uint64_t> PrivateBytesOfProcess();

}  // namespace firsttouch::bench

#endif  // FIRSTTOUCH_BENCH_KERNEL_COUNTERS_H_
