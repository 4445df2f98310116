// The readers of control blocks and cores, as fuzzers' targets.

#ifndef FIRSTTOUCH_TESTS_FUZZ_SNAPSHOT_TARGET_H_
#define FIRSTTOUCH_TESTS_FUZZ_SNAPSHOT_TARGET_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace firsttouch {

// Reads all that can be asked of the bytes of a block, or of a core. Return if
// the readers do what they promise, end the process if not: text that cannot be
// printed, sums that are not those of the slots, runs of pages with gaps.
void ReadAsControlBlock(std::span<const uint8_t> input);
void ReadAsCore(std::span<const uint8_t> input);

// Inputs that are read to their end.
std::vector<std::string> ControlBlockSeeds();
std::vector<std::string> CoreSeeds();

}  // namespace firsttouch

#endif  // FIRSTTOUCH_TESTS_FUZZ_SNAPSHOT_TARGET_H_
