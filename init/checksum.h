// A checksum of a page: finds damage, at the speed of reading.
//
// It is no digest: who wants to can make other bytes with the same one.
// digest.h has what tells contents apart.
//
// Threads: any. Not async-signal-safe.

#ifndef FIRSTTOUCH_INIT_CHECKSUM_H_
#define FIRSTTOUCH_INIT_CHECKSUM_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace firsttouch {

// XXH3 of 64 bits, without a seed.
uint64_t ChecksumOf(std::span<const std::byte> bytes);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_CHECKSUM_H_
